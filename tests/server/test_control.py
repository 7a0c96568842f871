"""Tests of server/control.py: commands that are understood, and those that are not."""

import pytest

from pipeline.api import StreamParams
from server.control import (
    Counters,
    Interrupt,
    Params,
    SetPortrait,
    Update,
    done_message,
    parse_command,
    problem_message,
    stats_message,
)
from server.errors import ErrorReply, RequestError
from server.ledger import History

pytestmark = pytest.mark.unit


def test_every_command_is_understood() -> None:
    assert isinstance(parse_command('{"type": "interrupt"}'), Interrupt)
    chosen = parse_command('{"type": "set_portrait", "id": "a", "portrait": "ada"}')
    assert isinstance(chosen, SetPortrait)
    assert (chosen.id, chosen.portrait) == ("a", "ada")
    changed = parse_command('{"type": "update", "id": 3, "params": {"liveliness": 0.5}}')
    assert isinstance(changed, Update)
    assert changed.params.apply_to(StreamParams(look_at_camera=0.3)) == StreamParams(liveliness=0.5, look_at_camera=0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid JSON"),
        ("[]", "object"),
        ("{}", "discriminator"),
        ('{"type": "explode"}', "explode"),
        ('{"type": "interrupt", "now": true}', "now"),
        ('{"type": "interrupt", "id": 1.5}', "id"),
        ('{"type": "update", "params": {"liveliness": 3}}', "less than or equal to 2"),
        ('{"type": "update", "params": {"liveliness": NaN}}', "liveliness"),
        ('{"type": "set_portrait", "portrait": 7}', "portrait"),
        ('{"type": "update", "params": {"prompt": ""}}', "params.prompt"),
        (f'{{"type": "update", "params": {{"prompt": "{2001 * "a"}"}}}}', "at most 2000"),
    ],
)
def test_what_is_not_understood_is_named(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_command(text)
    assert message in str(caught.value)


def test_nothing_given_changes_nothing() -> None:
    params = StreamParams(liveliness=1.7, look_at_camera=0.1, prompt="A man laughs")
    assert Params().apply_to(params) == params


def test_answers_carry_the_id_of_their_command() -> None:
    assert done_message(3) == {"type": "done", "id": 3}
    reply = ErrorReply(status=404, code="not_found", message="gone")
    assert problem_message(reply, "a")["id"] == "a"
    assert "id" not in problem_message(reply)


def test_figures_before_the_first_window_are_null_and_not_zero() -> None:
    stats = stats_message(History(), Counters(), gap_ms=0.0, silence_ms=0.0)
    assert stats["windows"] == 0
    assert stats["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert stats["pace_ms"] == {"p50": None, "p99": None}
