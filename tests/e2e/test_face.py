"""The embedded avatar in the browser: a face appears, its mouth follows the sound, and it rests in silence."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from pipeline.face import find_face

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.e2e.conftest import Server, Visitor

    Visit = Callable[..., Visitor]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

FACE = Path(__file__).parents[1] / "data" / "face.png"
SECONDS = 16
QUIET, LOUD = 0.005, 0.02
"""Levels (RMS, full scale 1) below which there is silence, and above which there is speech."""
FILTER_FRAMES = 12
"""Frames around a moment that have to be silent for the mouth to be at rest."""

SIZE, MOUTH = (64, 96), (20, 57, 24, 19)
"""The size at which the picture is looked at, and the part of it around the mouth: left, top, width, height."""

STILL = """async () => {
  const video = document.querySelector("#video");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  const bytes = new Uint8Array(await (await canvas.convertToBlob({type: "image/png"})).arrayBuffer());
  return Array.from(bytes);
}"""


@pytest.fixture(scope="module")
def engine() -> str:
    """The one that ships."""
    return "embedded"


@pytest.fixture
def visitor(visit: Visit, server: Server) -> Visitor:
    """A page with a head that holds still; skips where the engine itself measured that this machine is too slow."""
    server.skip_where_too_slow()
    visitor = visit()
    visitor.page.fill("#liveliness", "0")
    return visitor


def start(visitor: Visitor, server: Server) -> None:
    """Start; skips where no picture was ever live because the engine could not keep its pace beside this browser."""
    try:
        visitor.start()
    except PlaywrightTimeout:
        server.skip_where_it_was_late()
        raise


def still(visitor: Visitor) -> Image.Image:
    """The picture of this moment, as received."""
    return Image.open(io.BytesIO(bytes(visitor.page.evaluate(STILL)))).convert("RGB")


def silent_moments(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Moments with silence all around them."""
    loudest = np.lib.stride_tricks.sliding_window_view(
        np.pad(levels, FILTER_FRAMES, mode="edge"), 2 * FILTER_FRAMES + 1
    )
    silent: NDArray[np.bool_] = loudest.max(axis=1) < QUIET
    return silent


def likeness(lag: int, levels: NDArray[np.float64], opening: NDArray[np.float64]) -> float:
    """Correlation of the sound with the mouth `lag` frames later."""
    num = len(levels) - abs(lag)
    return float(np.corrcoef(np.sqrt(levels[max(0, -lag) :][:num]), opening[max(0, lag) :][:num])[0, 1])


def test_a_face_appears_and_says_what_is_said_and_rests_in_silence(visitor: Visitor, server: Server) -> None:
    """The mouth differs from its rest when there is sound, within two frames, and hardly moves when there is none.

    With perfect transport the correlation is 0.71 at lag 0 and below 0.5 from lag 2 on, and the motion in silence is
    4 % of that in speech. A loaded machine may stall Chromium, so there are three goes.
    """
    start(visitor, server)
    found = {}
    for _ in range(3):
        levels, mouth = visitor.sound_and_picture(seconds=SECONDS, size=SIZE, part=MOUTH)
        silent = silent_moments(levels)
        assert silent.sum() >= 10, "the pauses of speech are missing"
        assert (levels > LOUD).sum() >= 100, "hardly any speech arrived"
        opening = np.abs(mouth - np.median(mouth[silent], axis=0)).mean(axis=1)
        by_lag = {lag: likeness(lag, levels, opening) for lag in range(-12, 13)}
        motion = np.abs(np.diff(mouth, axis=0)).mean(axis=1)
        found = {
            "lag": max(by_lag, key=lambda lag: by_lag[lag]),
            "likeness": max(by_lag.values()),
            "rest": motion[silent[1:]].mean() / motion[levels[1:] > LOUD].mean(),
        }
        if abs(found["lag"]) <= 2 and found["likeness"] >= 0.5 and found["rest"] < 0.25:
            break
    visitor.shoot("embedded-live")
    picture = still(visitor)
    assert picture.size == (256, 384)
    assert find_face(picture) is not None
    if abs(found["lag"]) > 2 or found["likeness"] < 0.5:
        server.skip_where_it_was_late()
    assert abs(found["lag"]) <= 2, f"the mouth is {found['lag']} frames behind the sound: {found}"
    assert found["likeness"] >= 0.5, f"the mouth does not follow the sound: {found}"
    assert found["rest"] < 0.25, f"the mouth does not rest in silence: {found}"


def test_an_uploaded_picture_of_a_person_is_who_speaks(visitor: Visitor, server: Server) -> None:
    """The face is found, and what is received looks like the picture that was cut, not like another one."""
    visitor.page.click("#upload")
    visitor.page.set_input_files("#upload-file", FACE)
    visitor.page.wait_for_selector("#upload-dialog", state="hidden")
    path = (visitor.page.get_attribute("#still", "src") or "").removeprefix("/")
    cut = Image.open(io.BytesIO(server.get(path) or b"")).convert("L").resize((64, 96))
    start(visitor, server)
    received = still(visitor).convert("L").resize((64, 96))
    others = [
        Image.open(io.BytesIO(server.get(f"api/portraits/{name}.png") or b"")).convert("L").resize((64, 96))
        for name in ("ada", "ben", "dayo")
    ]
    alike = [np.corrcoef(np.ravel(received), np.ravel(picture))[0, 1] for picture in (cut, *others)]
    visitor.shoot("embedded-upload")
    assert alike[0] > 0.8, f"likeness to the uploaded picture and to three others: {alike}"
    assert alike[0] > max(alike[1:]) + 0.1, f"likeness to the uploaded picture and to three others: {alike}"
