"""The motion planner: reproducible however it is cut, bounded, and alive in the ways that it promises."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.motion import BLINK_SHAPE, EYE_PER_HEAD, MOTION_CHANNELS, MotionPlanner

pytestmark = pytest.mark.unit

FRAMES = 25 * 120
YAW, PITCH, ROLL, BLINK, GAZE_X, GAZE_Y, BROW = range(7)


def speech(seed: int = 0, num_frames: int = FRAMES) -> NDArray[np.float32]:
    """Two minutes of loudness with syllables and pauses."""
    rng = np.random.default_rng(seed)
    syllables = np.clip(1 + np.sin(np.arange(num_frames) * 1.3) + 0.4 * rng.normal(size=num_frames), 0, 3)
    talking = (np.arange(num_frames) // 60) % 4 > 0
    return (syllables * talking).astype(np.float32)


def plan(
    loudness: NDArray[np.float32], *, seed: int = 0, liveliness: float = 1.0, look: float = 0.8
) -> NDArray[np.float32]:
    return MotionPlanner(seed).plan(loudness, StreamParams(liveliness=liveliness, look_at_camera=look))


def test_there_is_a_row_per_frame_and_a_column_per_channel() -> None:
    motion = plan(speech(num_frames=24))
    assert motion.shape == (24, len(MOTION_CHANNELS))
    assert motion.dtype == np.float32


@pytest.mark.parametrize("cut", [1, 7, 12])
def test_the_plan_is_the_same_however_the_frames_are_cut(cut: int) -> None:
    loudness = speech(num_frames=420)
    planner, params = MotionPlanner(3), StreamParams()
    parts = [planner.plan(loudness[first : first + cut], params) for first in range(0, 420, cut)]
    np.testing.assert_array_equal(np.concatenate(parts), MotionPlanner(3).plan(loudness, params))


def test_the_plan_knows_nothing_of_sound_to_come() -> None:
    one, other = speech(), speech()
    other[300:] = 0
    np.testing.assert_array_equal(plan(one)[:300], plan(other)[:300])
    assert not np.array_equal(plan(one)[300:], plan(other)[300:])


def test_seeds_give_different_plans() -> None:
    assert np.abs(plan(speech(), seed=1)[:, YAW] - plan(speech(), seed=2)[:, YAW]).max() > 0.03


@pytest.mark.parametrize("seed", range(3))
def test_blinks_close_the_eyes_for_a_few_frames_and_come_every_few_seconds(seed: int) -> None:
    blink = plan(speech(), seed=seed)[:, BLINK]
    starts = np.flatnonzero((blink > 0) & (np.roll(blink, 1) == 0))
    starts = starts[starts + len(BLINK_SHAPE) <= FRAMES]
    for start in starts:
        np.testing.assert_allclose(blink[start : start + len(BLINK_SHAPE)], BLINK_SHAPE, rtol=1e-6)
    assert blink.max() == 1.0
    per_minute = len(starts) / (FRAMES / 25 / 60)
    assert 8 <= per_minute <= 40
    assert np.diff(starts).max() < 25 * 12


def test_eyes_blink_in_silence_too() -> None:
    blink = plan(np.zeros(FRAMES, np.float32))[:, BLINK]
    assert (blink == 1.0).sum() > 10


def test_liveliness_scales_the_head_exactly_and_zero_holds_it_still() -> None:
    still, calm, lively = (plan(speech(), liveliness=value) for value in (0.0, 1.0, 2.0))
    pose = slice(YAW, ROLL + 1)
    assert not still[:, pose].any()
    assert not still[:, BROW].any()
    np.testing.assert_allclose(lively[:, pose], 2 * calm[:, pose], atol=1e-6)
    assert still[:, BLINK].any(), "eyes blink however still the head is"


def test_the_head_moves_more_in_speech_than_in_silence() -> None:
    spoken, silent = (plan(x) for x in (speech(), np.zeros(FRAMES, np.float32)))
    for channel in (YAW, PITCH, ROLL):
        assert spoken[:, channel].std() > 1.2 * silent[:, channel].std()


def test_everything_stays_within_what_the_model_was_trained_with() -> None:
    for seed in range(5):
        motion = plan(speech(seed), seed=seed, liveliness=2.0, look=0.3)
        assert np.abs(motion[:, YAW]).max() < 0.3
        assert np.abs(motion[:, PITCH]).max() < 0.25
        assert np.abs(motion[:, ROLL]).max() < 0.15
        assert 0 <= motion[:, BLINK].min() <= motion[:, BLINK].max() <= 1
        assert np.abs(motion[:, GAZE_X : GAZE_Y + 1]).max() <= 0.6 + 1e-6
        assert -0.2 <= motion[:, BROW].min() <= motion[:, BROW].max() <= 1


def test_the_head_never_jumps() -> None:
    """At most 1.5 degrees from one frame to the next."""
    pose = plan(speech())[:, YAW : ROLL + 1]
    assert np.abs(np.diff(pose, axis=0)).max() < np.radians(1.5)


def test_eyes_rest_on_the_viewer_while_the_head_turns() -> None:
    """With no glances, what is left of the gaze after undoing the head's turn is next to nothing."""
    motion = plan(speech(), look=1.0, liveliness=1.5)
    assert np.abs(motion[:, GAZE_X] + EYE_PER_HEAD * motion[:, YAW]).max() < 0.1
    assert np.abs(motion[:, GAZE_Y] - EYE_PER_HEAD * motion[:, PITCH]).max() < 0.06
    assert np.corrcoef(motion[:, GAZE_X], motion[:, YAW])[0, 1] < -0.9


def test_looking_at_the_camera_less_means_more_glances() -> None:
    def away(look: float) -> float:
        motion = plan(speech(), look=look)
        return float((np.abs(motion[:, GAZE_X] + EYE_PER_HEAD * motion[:, YAW]) > 0.1).mean())

    assert away(1.0) == 0
    assert 0.02 < away(0.8) < away(0.2)
    assert away(0.2) > 0.2


def test_brows_rise_with_stress_and_rest_in_silence() -> None:
    assert plan(speech())[:, BROW].max() > 0.15
    assert np.abs(plan(np.zeros(FRAMES, np.float32))[:, BROW]).max() == 0
