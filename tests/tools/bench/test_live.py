"""A short live session against a server that the bench starts itself."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.errors import WorkerError, WorkerStartTimeout
from tools.bench.live import run, served, show

pytestmark = pytest.mark.contract


def test_a_live_session_is_measured(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(32_000) / 5)).astype("<i2").tobytes())
    arguments = ["--engine", "pattern", "--set", "log.level=error"]
    report = run(arguments, seconds=4, audio=tmp_path / "a.wav", ready_timeout_s=60)
    assert report["engine"]["name"] == "pattern"
    assert report["session"]["windows"] >= 3
    assert report["session"]["distinct_frames"] > 20
    out = io.StringIO()
    show(report, Console(file=out, width=100))
    assert "latency_p99_ms" in out.getvalue()


def test_a_server_that_cannot_start_is_an_error() -> None:
    failure = pytest.raises(WorkerError, match="the server ended with exit code 2")
    with failure, served(["--set", "nothing=1"], ready_timeout_s=60):
        pass


def test_an_engine_that_is_not_ready_in_its_time_is_an_error() -> None:
    slow = ["--engine", "pattern", "--set", "engine.pattern.warm_up_ms=60000", "--set", "log.level=error"]
    with pytest.raises(WorkerStartTimeout, match="not ready after 1 s"), served(slow, ready_timeout_s=1):
        pass


def test_an_engine_that_has_given_up_is_not_waited_for() -> None:
    """It ends with the server's own words, and long before the time that the engine has."""
    crash = ("fault=crash", "fault_at_warm_up=true")
    settings = [*(f"engine.pattern.{value}" for value in crash), "engine.max_restarts=0", "log.level=error"]
    arguments = ["--engine", "pattern", *(part for setting in settings for part in ("--set", setting))]
    with pytest.raises(WorkerError, match="worker 0 ended with exit code"), served(arguments, ready_timeout_s=3600):
        pass
