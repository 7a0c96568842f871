"""Quality figures from streams whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.bench.quality import (
    LEAD_FRAMES,
    PAUSE_FRAMES,
    REST_FRAMES,
    Script,
    Take,
    identity,
    lip_sync,
    make_script,
    watch,
)
from tools.train.speech.librivox import HeldOutClip

pytestmark = pytest.mark.numerics

FACE = Path(__file__).parents[2] / "data" / "face.png"


def clip(num_frames: int, seed: int) -> HeldOutClip:
    rng = np.random.default_rng(seed)
    visemes = rng.dirichlet(np.full(15, 0.2), num_frames).astype(np.float32)
    visemes[10:13] = np.eye(15, dtype=np.float32)[1]
    return HeldOutClip(
        name=f"clip{seed}",
        text="",
        pcm=np.full(640 * num_frames, seed, np.int16),
        phones=(),
        visemes=visemes,
        loudness=np.ones(num_frames, np.float32),
        closures=((10, 12),),
    )


@pytest.fixture
def script() -> Script:
    return make_script([clip(200, 1), clip(150, 2)])


def test_a_script_puts_clips_in_a_row_with_their_labels(script: Script) -> None:
    second = LEAD_FRAMES + 200 + PAUSE_FRAMES
    count = len(script.opening)
    assert len(script.pcm) == 640 * count
    assert count % 12 == 0
    assert second + 150 + REST_FRAMES <= count < second + 150 + REST_FRAMES + 12
    assert np.unique(script.pcm[640 * LEAD_FRAMES : 640 * (LEAD_FRAMES + 200)]) == [1]
    assert np.unique(script.pcm[640 * second : 640 * (second + 150)]) == [2]
    assert script.closures == ((LEAD_FRAMES + 10, LEAD_FRAMES + 12), (second + 10, second + 12))
    assert script.opening[~script.is_speech].max() == 0
    assert script.visemes.shape == (len(script.opening), 15)
    np.testing.assert_allclose(script.visemes.sum(1), 1, atol=1e-5)
    assert script.loudness[~script.is_speech].max() == 0
    assert not (script.is_speech & script.is_silent).any()
    assert not script.is_silent[LEAD_FRAMES + 200 : LEAD_FRAMES + 208].any()
    assert script.is_silent[LEAD_FRAMES + 208 : second].all()


def test_a_mouth_that_does_what_it_should_scores_best(script: Script) -> None:
    count = len(script.opening)
    take = Take(
        opening=(0.3 * script.opening).tolist(),
        width=(1 - 0.2 * script.rounding).tolist(),
        differences=[1.0] * (count - 1),
        jumps=[1.0] * (count - 3),
    )
    figures = lip_sync(take, script)
    assert figures["lip_opening_correlation"] == pytest.approx(1)
    assert figures["lip_opening_lag_frames"] == 0
    assert figures["rounding_correlation"] == pytest.approx(1)
    assert figures["closure_rate"] == 1
    assert figures["closure_opening"] < 0.1 < figures["closure_opening_control"]
    assert figures["rounded_to_spread_width"] < 1
    assert figures["lip_opening_wide"] > 2 * figures["lip_opening_closed"]
    assert figures["silence_motion_ratio"] == 0
    for name in ("block_border_ratio", "block_border_ratio_at_rest", "latent_border_ratio", "block_jump_ratio"):
        assert figures[name] == pytest.approx(1)
    assert abs(figures["lip_opening_control"]) < 0.3


def test_a_late_mouth_shows_in_the_lag_and_a_restless_one_in_silence(script: Script) -> None:
    count = len(script.opening)
    rng = np.random.default_rng(0)
    opening = np.roll(script.opening, 3) + np.where(script.is_silent, rng.random(count), 0)
    take = Take(
        opening=opening.tolist(), width=[1.0] * count, differences=[1.0] * (count - 1), jumps=[1.0] * (count - 3)
    )
    figures = lip_sync(take, script)
    assert figures["lip_opening_lag_frames"] == 3
    assert figures["silence_motion_ratio"] > 0.5
    assert figures["rounding_correlation"] == 0


def face_frames(count: int) -> list[np.ndarray]:
    """The test face, a pixel further to the right in every frame."""
    face = Image.open(FACE).convert("RGB")
    frames = []
    for index in range(count):
        canvas = Image.new("RGB", (256, 256), (140, 140, 140))
        canvas.paste(face, (30 + index, 50))
        frames.append(np.array(canvas))
    return frames


def test_watching_counts_frames_without_a_face() -> None:
    frames = [*face_frames(3), np.full((256, 256, 3), 140, np.uint8), *face_frames(1)]
    take = watch(frames)
    assert (len(take.opening), len(take.differences), len(take.jumps), take.num_lost) == (5, 4, 2, 1)
    assert take.opening[3] == take.opening[2]
    assert take.differences[3] > take.differences[0] > 0


def test_identity_compares_the_first_with_the_last_second() -> None:
    first, last = identity((face_frames(1)[0] for _ in range(60)), 60)
    assert first.shape == (64, 64, 3)
    assert np.abs(first - last).mean() < 1


def test_identity_without_a_face_is_an_error() -> None:
    with pytest.raises(ValueError, match="no face was seen"):
        identity((np.full((32, 32, 3), 140, np.uint8) for _ in range(51)), 51)
