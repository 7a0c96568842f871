"""Timing a model: how many windows are made, which ones count, and when it ends early."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import EngineConfig, PatternConfig
from pipeline.worker.model import StageMarks
from pipeline.worker.pattern import PatternModel
from pipeline.worker.timing import time_windows

pytestmark = pytest.mark.unit


class VirtualModel(PatternModel):
    """A pattern engine on a clock of its own: each window takes as long as it is told to.

    Args:
        windows_s: Times of the windows; the last one goes for all that follow.
    """

    def __init__(self, windows_s: list[float]) -> None:
        super().__init__(EngineConfig(name="pattern", pattern=PatternConfig(height_px=192, width_px=128)))
        self.clock_s = 0.0
        self.num_made = 0
        self._windows_s = windows_s

    def now_s(self) -> float:
        return self.clock_s

    def open_stream(self, **arguments: object) -> VirtualModel:  # type: ignore[override]
        return self

    def generate(self, pcm: NDArray[np.int16], marks: StageMarks, max_steps: int) -> Iterator[NDArray[np.uint8]]:
        assert marks.window == self.num_made
        assert np.abs(pcm).max() > 1000
        window_s = self._windows_s[min(self.num_made, len(self._windows_s) - 1)]
        self.num_made += 1
        for _ in range(3):
            self.clock_s += window_s / 3
            yield np.zeros((4, 288, 128), np.uint8)

    def close(self) -> None:
        pass


def test_the_first_windows_do_not_count() -> None:
    model = VirtualModel([9.0, 9.0, 0.3])
    times = time_windows(model, num_warm=2, num_timed=3, longest_s=60, now_s=model.now_s)
    assert model.num_made == 5
    assert times.window_s == pytest.approx(0.3)
    assert times.start_s == pytest.approx(0.1), "the first four frames last longer than the next four take"


def test_one_slow_window_of_ten_is_left_out_of_account() -> None:
    model = VirtualModel([0.3, *[0.3] * 10, 0.9])
    times = time_windows(model, num_warm=1, num_timed=11, longest_s=60, now_s=model.now_s)
    assert times.window_s == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("longest_s", "num_made", "window_s"),
    [(0.1, 1, 30.0), (18.0, 1, 30.0), (25.0, 1, 30.0), (35.0, 3, 10.0), (79.0, 5, 10.0), (1000, 9, 10.0)],
)
def test_a_slow_model_is_timed_by_fewer_windows_but_by_one_at_least(
    longest_s: float, num_made: int, window_s: float
) -> None:
    """The last one that is made to be warm, where there is time for no more."""
    model = VirtualModel([30.0, 20.0, 10.0])
    times = time_windows(model, num_warm=2, num_timed=7, longest_s=longest_s, now_s=model.now_s)
    assert model.num_made == num_made
    assert times.window_s == pytest.approx(window_s)


def test_a_cold_window_that_takes_all_the_time_does_not_count_where_the_rest_is_quick() -> None:
    model = VirtualModel([5.0, 2.0, 0.4])
    times = time_windows(model, num_warm=3, num_timed=8, longest_s=6.0, now_s=model.now_s)
    assert model.num_made == 4
    assert times.window_s == pytest.approx(0.4)
