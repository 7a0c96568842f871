"""What is given up on a slow machine, in which order, and when that ends."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.worker.model import WarmTimes
from pipeline.worker.pace import Leeway, Load, choose_precision, lighter_loads, settle

pytestmark = pytest.mark.unit

FIRST = Load(num_threads=1, num_steps=4, height_px=384, width_px=256)


LEEWAY = Leeway(most_threads=2, fewest_steps=2, smaller_px=[(288, 192)])


def ladder(leeway: Leeway = LEEWAY) -> list[tuple[int, int, int]]:
    return [(load.num_threads, load.num_steps, load.height_px) for load in lighter_loads(FIRST, leeway)]


def settled(
    seconds_at_full_load: float, speed_of_two: float, leeway: Leeway = LEEWAY, *, limit_s: float = 0.4
) -> tuple[tuple[int, int, int], WarmTimes, list[int]]:
    """Settle on a machine where time goes with steps and pixels; returns the load, its times, the threads measured."""
    threads = []

    def measure(load: Load) -> WarmTimes:
        threads.append(load.num_threads)
        speed = {1: 1.0, 2: speed_of_two}[load.num_threads]
        work = (0.2 + 0.2 * load.num_steps) * (load.height_px / 384) ** 2
        return WarmTimes(window_s=seconds_at_full_load * work / speed, start_s=0.1)

    load, times = settle(FIRST, measure(FIRST), leeway, measure, limit_s=limit_s)
    assert times == measure(load)
    return (load.num_threads, load.num_steps, load.height_px), times, threads[1:-1]


def test_steps_come_first_then_the_picture_with_all_steps_again() -> None:
    assert ladder() == [(1, 3, 384), (1, 2, 384), (1, 4, 288), (1, 3, 288), (1, 2, 288)]


def test_steps_that_the_user_has_set_stay() -> None:
    assert ladder(replace(LEEWAY, fewest_steps=4)) == [(1, 4, 288)]


@pytest.mark.parametrize(
    ("seconds_at_full_load", "expected"),
    [(0.2, (1, 4, 384)), (0.7, (2, 4, 384)), (0.9, (2, 3, 384)), (1.4, (2, 3, 288)), (9.0, (2, 2, 288))],
)
def test_the_heaviest_that_holds_the_pace_is_kept_or_else_the_lightest(
    seconds_at_full_load: float, expected: tuple[int, int, int]
) -> None:
    """A machine where two threads are 1.8 times as fast."""
    load, times, threads = settled(seconds_at_full_load, 1.8)
    assert load == expected
    assert times.window_s <= 0.4 or expected == (2, 2, 288)
    assert set(threads) <= {2}


@pytest.mark.parametrize(
    ("seconds_at_full_load", "expected"), [(0.4, (1, 3, 384)), (0.55, (1, 2, 384)), (9.0, (1, 2, 288))]
)
def test_threads_that_make_it_slower_are_not_kept(seconds_at_full_load: float, expected: tuple[int, int, int]) -> None:
    """They are measured once, and everything lighter is made with the faster number."""
    load, _, threads = settled(seconds_at_full_load, 0.65, limit_s=0.384)
    assert load == expected
    assert threads == [2] + [1] * (len(threads) - 1)


def test_where_nothing_else_may_be_changed_the_faster_number_of_threads_is_kept() -> None:
    nothing = replace(LEEWAY, fewest_steps=4, smaller_px=[])
    assert settled(9.0, 0.6, nothing)[0] == (1, 4, 384)
    assert settled(9.0, 1.8, nothing)[0] == (2, 4, 384)


@pytest.mark.parametrize("most_threads", [1, 0])
def test_threads_that_the_user_has_set_stay(most_threads: int) -> None:
    load, _, threads = settled(9.0, 1.8, replace(LEEWAY, most_threads=most_threads))
    assert load == (1, 2, 288)
    assert set(threads) == {1}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"fp32": 0.532, "bf16": 0.213}, "bf16"),
        ({"fp32": 0.300, "bf16": 0.299}, "fp32"),
        ({"fp32": 0.300, "bf16": 0.240}, "fp32"),
        ({"fp32": 0.300, "bf16": 0.900}, "fp32"),
        ({"fp32": 0.430, "bf16": 0.350}, "bf16"),
        ({"fp32": 0.430, "bf16": 0.440}, "fp32"),
        ({"fp32": 0.300}, "fp32"),
        ({"bf16": 0.300}, "bf16"),
    ],
)
def test_bf16_is_chosen_where_it_is_clearly_faster_or_needed_or_asked_for(
    seconds: dict[str, float], expected: str
) -> None:
    timed = {name: WarmTimes(window_s=window_s, start_s=0.1) for name, window_s in seconds.items()}
    assert choose_precision(timed, limit_s=0.384) == expected


def test_a_movie_that_has_the_time_is_made_in_bf16_only_where_that_is_clearly_faster() -> None:
    timed = {"fp32": WarmTimes(window_s=0.43, start_s=0.1), "bf16": WarmTimes(window_s=0.35, start_s=0.1)}
    assert choose_precision(timed, limit_s=math.inf) == "fp32"


def test_a_load_is_told_in_words() -> None:
    assert str(FIRST) == "1 thread, 4 steps, 256x384 px"
    assert str(Load(num_threads=2, num_steps=2, height_px=288, width_px=192)) == "2 threads, 2 steps, 192x288 px"
