"""The states of a session: pure, no I/O.

    connecting --connected--> warming --fresh frame--> live <--fresh frame / rest frame--> resting
    warming --late window--> resting
    any state --closed--> closed

`closed` is final. A held frame changes nothing: the session rests from the first frame of the rest block on.
"""

from enum import Enum

__all__ = ["Event", "State", "next_state"]


class State(Enum):
    """Where a session stands; the values are the words of the wire contract."""

    CONNECTING = "connecting"
    WARMING = "warming"
    LIVE = "live"
    RESTING = "resting"
    CLOSED = "closed"


class Event(Enum):
    """What moves a session."""

    CONNECTED = "connected"
    """The peer connection is up; media time starts."""
    FRESH_FRAME = "fresh_frame"
    """A frame of its own media time left."""
    REST_FRAME = "rest_frame"
    """A rest frame left in its place."""
    LATE_WINDOW = "late_window"
    """A whole window of frames came too late to be shown: an engine that does not hold the pace may never be live."""
    CLOSED = "closed"
    """The peer went away, somebody closed the session, or the server stops."""


_NEXT = {
    (State.CONNECTING, Event.CONNECTED): State.WARMING,
    (State.WARMING, Event.FRESH_FRAME): State.LIVE,
    (State.WARMING, Event.LATE_WINDOW): State.RESTING,
    (State.LIVE, Event.REST_FRAME): State.RESTING,
    (State.RESTING, Event.FRESH_FRAME): State.LIVE,
}


def next_state(state: State, event: Event) -> State:
    """Find the state after an event.

    Args:
        state: The state before.
        event: What happened.

    Returns:
        The new state; an event that means nothing in a state leaves it as it is.
    """
    if event is Event.CLOSED:
        return State.CLOSED
    return _NEXT.get((state, event), state)
