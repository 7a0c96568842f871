"""The page in Firefox: one press of the button, and the avatar is live."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import ARTEFACTS
from tests.e2e.firefox import Firefox

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

VIDEO = 'document.querySelector("#video")'
NUM_FRAMES = 50
FRAMES = f"""new Promise((resolve) => {{
  const video = {VIDEO};
  let num = 0;
  const count = () => (++num === {NUM_FRAMES} ? resolve(num) : video.requestVideoFrameCallback(count));
  video.requestVideoFrameCallback(count);
}})"""


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Not needed here."""
    return ""


@pytest.fixture
def firefox(tmp_path: Path) -> Iterator[Firefox]:
    """A fresh Firefox; skips where there is none."""
    executable = shutil.which("firefox-esr") or shutil.which("firefox")
    if executable is None:
        pytest.skip("no Firefox found (looked for firefox-esr, firefox); .ci/run installs it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    firefox = Firefox(executable, tmp_path, port)
    yield firefox
    firefox.close()


def test_the_avatar_is_live_and_the_microphone_is_heard(firefox: Firefox, server: Server) -> None:
    """Picture and sound play, the ledger fills, and the conversation ends when it is told to."""
    firefox.goto(server.url)
    firefox.wait_for('document.querySelector("#status-title").textContent === "Ready"', 15)
    firefox.click("#main")
    firefox.wait_for('!!document.querySelector("#stage[data-phase=live].has-picture")', 45)
    assert firefox.evaluate(FRAMES) == NUM_FRAMES
    width, height, is_paused, is_muted = firefox.evaluate(
        f"(video => [video.videoWidth, video.videoHeight, video.paused, video.muted])({VIDEO})"
    )
    assert (width, height) == (256, 384)
    assert not is_paused
    assert not is_muted
    tracks = f"{VIDEO}.srcObject.getTracks()"
    kinds = firefox.evaluate(f"{tracks}.map((track) => [track.kind, track.readyState, track.muted])")
    assert sorted(kinds) == [["audio", "live", False], ["video", "live", False]]
    firefox.wait_for('Number(document.querySelector("[data-figure=p50]").textContent) > 0', 15)
    firefox.shoot(ARTEFACTS / "firefox.png")
    firefox.click("#main")
    firefox.wait_for('document.querySelector("#stage").dataset.phase === "idle"', 5)
    server.wait_until_free()
    assert firefox.errors == []
