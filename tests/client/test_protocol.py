"""Tests of client/PROTOCOL.md: its examples are what the server sends and understands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.api import WindowLedger
from server.bodies import OfferBody
from server.control import (
    Counters,
    done_message,
    ledger_message,
    parse_command,
    problem_message,
    state_message,
    stats_message,
)
from server.errors import SessionLimitReached, reply_for
from server.ledger import History, report
from server.lifecycle import State

pytestmark = pytest.mark.unit

TEXT = (Path(__file__).resolve().parents[2] / "client" / "PROTOCOL.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, Any] = {
    name: json.loads(body) for name, body in re.findall(r"^```json (\w+)\n(.*?)^```$", TEXT, re.S | re.M)
}


def shape(value: Any) -> Any:
    """Keys and kinds of a message, without its values; null fits anything and is left out."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def window() -> Any:
    made = WindowLedger(
        window=41,
        epoch=0,
        captured_s=1.0,
        admitted_s=1.1,
        features_s=1.2,
        steps_s=(1.3, 1.4),
        decoded_s=1.5,
        copied_s=1.55,
    )
    return report(made, paced_s=1.6, lead_s=0.1, level_dbfs=-20.0, budget_s=0.8)


def test_every_example_of_the_contract_is_known_here() -> None:
    assert set(EXAMPLES) == {
        "error", "info", "portraits", "upload", "offer", "answer", "state", "ledger", "stats", "problem",
        "interrupt", "set_portrait", "update", "done",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["interrupt", "set_portrait", "update"])
def test_the_commands_are_understood(name: str) -> None:
    command = parse_command(json.dumps(EXAMPLES[name]))
    assert command.model_dump(exclude_none=True) == EXAMPLES[name]


def test_the_offer_is_understood() -> None:
    OfferBody.model_validate_json(json.dumps(EXAMPLES["offer"]))
    OfferBody.model_validate({"sdp": "v=0", "type": "offer"})


def test_messages_have_the_shape_of_the_examples() -> None:
    history = History()
    history.add(window())
    history.add_ttff(0.84)
    sent = {
        "state": state_message(
            session_id="s", state=State.LIVE, epoch=0, portrait="ada", playout_delay_ms=720, engine="ready"
        ),
        "ledger": ledger_message(window()),
        "stats": stats_message(history, Counters(), gap_ms=0.0, silence_ms=1.0),
        "done": done_message(3),
        "problem": problem_message(reply_for(SessionLimitReached(1), retry_after_s=5)),
        "error": reply_for(SessionLimitReached(1), retry_after_s=5).body,
    }
    for name, message in sent.items():
        assert shape(json.loads(json.dumps(message))) == shape(EXAMPLES[name]), name


def test_the_latency_in_the_example_is_the_sum_of_its_stages() -> None:
    ledger = EXAMPLES["ledger"]
    stages = {**ledger["stages_ms"], "steps": sum(ledger["stages_ms"]["steps"])}
    assert sum(stages.values()) == pytest.approx(ledger["latency_ms"], abs=0.5)
