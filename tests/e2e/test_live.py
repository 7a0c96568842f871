"""The real server without a browser: a minute of the pattern engine, and of the embedded one where it has weights."""

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tools.loopback import Report, measure, read_sound

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SECONDS = 60.0


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """No browser is needed here."""
    return ""


@pytest.fixture(scope="module", params=["pattern", "embedded"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines, the embedded one where its weights are."""
    weights = Path(__file__).parents[2] / "pipeline" / "weights" / "embedded"
    if request.param == "embedded" and not any(weights.glob("*.safetensors")):
        pytest.skip("the embedded engine has no weights here")
    return str(request.param)


@pytest.fixture(scope="module")
def report(server: Any, speech_path: Path) -> Report:
    """A minute of speech."""
    server.skip_where_too_slow()
    with ThreadPoolExecutor(1) as own_thread:  # Playwright keeps an event loop in this one
        return own_thread.submit(lambda: asyncio.run(measure(server.url, read_sound(speech_path), SECONDS))).result()


@contextmanager
def unless_late(server: Any) -> Iterator[None]:
    """Skip, with the figures, what fails where the client left the engine too little of these cores."""
    try:
        yield
    except AssertionError:
        server.skip_where_it_was_late()
        raise


def test_the_session_is_live_and_every_window_is_accounted_for(report: Report, server: Any) -> None:
    with unless_late(server):
        assert report.states.index("live") <= 2, f"not live at once: {report.states}"
        assert report.windows >= (SECONDS - 4) / 0.48
        assert report.first_frame_s is not None
        assert report.first_frame_s < 5.0


def test_sound_and_picture_flow_to_the_end(report: Report, server: Any) -> None:
    with unless_late(server):
        assert report.sound_s >= SECONDS - 4
        assert report.frames >= 0.9 * 25 * (SECONDS - 4)


def test_sound_and_picture_stay_paired_within_40_ms(report: Report, engine: str, server: Any) -> None:
    if engine != "pattern":
        pytest.skip("only the pattern engine draws what it heard")
    with unless_late(server):
        assert report.skew_max_ms is not None
        assert abs(report.skew_max_ms) <= 40.0


def test_the_server_publishes_the_same_windows(report: Report, server: Any) -> None:
    with urllib.request.urlopen(f"{server.url}metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    counted = next(line for line in lines if line.startswith("window_latency_seconds_count"))
    assert float(counted.split()[1]) >= report.windows


def test_a_worker_that_is_killed_comes_back(report: Report, server: Any) -> None:
    del report
    if not server.workers():
        pytest.skip("the worker's process id is only known on Linux")
    os.kill(server.workers()[0], signal.SIGKILL)
    server._wait(lambda: server.get("readyz") is None, 10.0, "notice")
    server._wait(lambda: server.get("readyz") is not None, 60.0, "restart its worker")
