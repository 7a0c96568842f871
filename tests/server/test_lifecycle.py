"""Tests of server/lifecycle.py: every event in every state."""

import pytest

from server.lifecycle import Event, State, next_state

pytestmark = pytest.mark.unit

MOVES = {
    (State.CONNECTING, Event.CONNECTED): State.WARMING,
    (State.WARMING, Event.FRESH_FRAME): State.LIVE,
    (State.WARMING, Event.LATE_WINDOW): State.RESTING,
    (State.LIVE, Event.REST_FRAME): State.RESTING,
    (State.RESTING, Event.FRESH_FRAME): State.LIVE,
}


@pytest.mark.parametrize("state", State)
def test_closing_is_possible_in_every_state_and_final(state: State) -> None:
    assert next_state(state, Event.CLOSED) is State.CLOSED
    assert {next_state(State.CLOSED, event) for event in Event} == {State.CLOSED}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", [event for event in Event if event is not Event.CLOSED])
def test_only_the_drawn_moves_are_made(state: State, event: Event) -> None:
    assert next_state(state, event) is MOVES.get((state, event), state)
