"""Running a model in the process of the bench."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import EngineConfig, PatternConfig
from pipeline.worker.pattern import PatternModel, read_frame_index
from tools.bench.run import describe_machine, generate, to_rgb, windows_of

pytestmark = pytest.mark.unit


def test_windows_overlap_by_the_right_context_and_the_last_is_padded() -> None:
    pcm = np.arange(1, 7680 * 2 + 11).astype(np.int16)
    windows = list(windows_of(pcm, 1280))
    assert [window.index for window in windows] == [0, 1, 2]
    assert all(window.pcm.shape == (7680 + 1280,) for window in windows)
    assert np.array_equal(windows[0].pcm, pcm[: 7680 + 1280])
    assert np.array_equal(windows[2].pcm[:10], pcm[-10:])
    assert not windows[2].pcm[10:].any()


def test_a_stream_gives_its_frames_one_by_one() -> None:
    model = PatternModel(EngineConfig(name="pattern", pattern=PatternConfig(height_px=192, width_px=128)))
    frames = list(generate(model, np.zeros((192, 128, 3), np.uint8), np.zeros(7680 * 2, np.int16)))
    assert len(frames) == 24
    assert all(frame.shape == (192, 128, 3) for frame in frames)
    # Grey pictures have equal channels; limited range was stretched, which the bar code survives.
    assert [read_frame_index(frame[..., 1].copy(), 192) for frame in frames] == list(range(24))


@pytest.mark.parametrize(
    ("yuv", "rgb"), [((16, 128, 128), (0, 0, 0)), ((235, 128, 128), (255, 255, 255)), ((81, 90, 240), (254, 0, 0))]
)
def test_colours_are_those_of_bt601_limited_range(yuv: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    picture = np.empty((24, 16), np.uint8)
    picture[:16] = yuv[0]
    picture[16:20] = yuv[1]
    picture[20:] = yuv[2]
    assert np.abs(to_rgb(picture).astype(int) - rgb).max() <= 2


def test_the_machine_is_named() -> None:
    machine = describe_machine()
    assert set(machine) == {"cpu", "num_cores", "python", "torch", "commit"}
    assert all(machine.values())
