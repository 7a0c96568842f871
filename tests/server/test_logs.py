"""Tests of server/logs.py: lines for people and for machines."""

import json
import logging
from collections.abc import Iterator

import pytest

from server.config import LogConfig
from server.logs import SessionLog, install_logging, or_logged

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_for_machines_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    install_logging(LogConfig(format="json"))
    try:
        raise ValueError("no")
    except ValueError:
        SessionLog(logging.getLogger("x"), "s-1").exception("it failed: %d", 7)
    entry = json.loads(capsys.readouterr().err)
    assert entry["message"] == "it failed: 7"
    assert (entry["level"], entry["logger"], entry["session_id"]) == ("error", "x", "s-1")
    assert "ValueError: no" in entry["traceback"]


def test_a_line_for_people_names_session_or_worker(capsys: pytest.CaptureFixture[str]) -> None:
    install_logging(LogConfig())
    SessionLog(logging.getLogger("x"), "s-1").info("hello")
    logging.getLogger("y").info("from a worker", extra={"rank": 3})
    logging.getLogger("z").debug("too quiet")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("INFO    x [s-1]: hello")
    assert lines[1].endswith("INFO    y [3]: from a worker")
    assert len(lines) == 2


def test_installing_twice_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    install_logging(LogConfig())
    install_logging(LogConfig(level="warning"))
    logging.getLogger("x").warning("once")
    logging.getLogger("x").info("never")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_nobody_takes_is_logged_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    or_logged(lines.append)("ready")
    assert lines == ["ready"]
    assert caplog.messages == []

    def broken(line: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    or_logged(broken)("ready")
    assert caplog.messages == ["not announced ([Errno 32] Broken pipe): ready"]
