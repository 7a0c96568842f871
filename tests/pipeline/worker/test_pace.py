"""What is given up on a slow machine, in which order, and when that ends."""

from __future__ import annotations

import pytest

from pipeline.worker.model import WarmTimes
from pipeline.worker.pace import Load, lighter_loads, settle

pytestmark = pytest.mark.unit

FIRST = Load(num_threads=1, num_steps=4, height_px=384, width_px=256)


def ladder(first: Load = FIRST, most_threads: int = 2, fewest_steps: int = 2) -> list[tuple[int, int, int]]:
    loads = lighter_loads(first, most_threads=most_threads, fewest_steps=fewest_steps, smaller_px=[(288, 192)])
    return [(load.num_threads, load.num_steps, load.height_px) for load in loads]


def test_threads_come_first_then_steps_then_the_picture_with_all_steps_again() -> None:
    assert ladder() == [(2, 4, 384), (2, 3, 384), (2, 2, 384), (2, 4, 288), (2, 3, 288), (2, 2, 288)]


def test_what_the_user_has_set_stays() -> None:
    assert ladder(most_threads=1, fewest_steps=4) == [(1, 4, 288)]


def test_threads_are_never_taken_away() -> None:
    many = Load(num_threads=3, num_steps=4, height_px=384, width_px=256)
    assert ladder(many)[0] == (3, 3, 384)


@pytest.mark.parametrize(
    ("seconds_at_full_load", "expected"),
    [(0.2, (1, 4, 384)), (0.7, (2, 4, 384)), (0.9, (2, 3, 384)), (1.4, (2, 3, 288)), (9.0, (2, 2, 288))],
)
def test_the_heaviest_that_holds_the_pace_is_kept_or_else_the_lightest(
    seconds_at_full_load: float, expected: tuple[int, int, int]
) -> None:
    """A machine where two threads are 1.8 times as fast, and time goes with steps and pixels."""
    measured = []

    def measure(load: Load) -> WarmTimes:
        measured.append(load)
        speed = {1: 1.0, 2: 1.8}[load.num_threads]
        work = (0.2 + 0.2 * load.num_steps) * (load.height_px / 384) ** 2
        return WarmTimes(window_s=seconds_at_full_load * work / speed, start_s=0.1)

    lighter = lighter_loads(FIRST, most_threads=2, fewest_steps=2, smaller_px=[(288, 192)])
    load, times = settle(FIRST, measure(FIRST), lighter, measure, limit_s=0.4)
    assert (load.num_threads, load.num_steps, load.height_px) == expected
    assert measured[-1] == load
    assert times.window_s <= 0.4 or expected == (2, 2, 288)


def test_a_load_is_told_in_words() -> None:
    assert str(FIRST) == "1 thread, 4 steps, 256x384 px"
    assert str(Load(num_threads=2, num_steps=2, height_px=288, width_px=192)) == "2 threads, 2 steps, 192x288 px"
