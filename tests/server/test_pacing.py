"""Tests of server/pacing.py: when frames leave and what stands in for missing ones."""

import pytest

from pipeline.geometry import FRAMES_PER_BLOCK
from server.pacing import Pacing, Picture, Schedule, choose_picture, choose_playout_delay_s, rest_index

pytestmark = pytest.mark.unit


def test_ticks_are_half_frames_after_anchor_and_playout_delay() -> None:
    schedule = Schedule(anchor_s=100.0, playout_delay_s=0.7)
    assert schedule.due_s(0) == pytest.approx(100.7)
    assert schedule.due_s(3) == pytest.approx(100.76)


def test_no_tick_is_due_before_the_playout_delay_has_passed() -> None:
    assert Schedule(anchor_s=100.0, playout_delay_s=0.7).newest_due(100.69) == -1


def test_a_tick_is_due_in_its_exact_moment_for_hours() -> None:
    schedule = Schedule(anchor_s=1e6 + 0.1, playout_delay_s=0.7)
    for tick in (0, 1, 49, 12345, 10_000_000):
        assert schedule.newest_due(schedule.due_s(tick)) == tick
        assert schedule.newest_due(schedule.due_s(tick) - 0.001) == tick - 1


def test_a_ready_frame_is_shown_and_ends_any_hold() -> None:
    for state in (Pacing(), Pacing(is_flowing=True, num_held=5), Pacing(num_rested=9)):
        assert choose_picture(state, is_ready=True) == (Pacing(is_flowing=True), Picture.FRESH)


def test_the_last_frame_is_held_for_one_block_and_then_the_face_rests() -> None:
    state = Pacing(is_flowing=True)
    choices = []
    for _ in range(FRAMES_PER_BLOCK + 2):
        state, choice = choose_picture(state, is_ready=False)
        choices.append(choice)
    assert choices == [Picture.HELD] * FRAMES_PER_BLOCK + [Picture.REST] * 2
    assert state == Pacing(num_rested=2)


def test_nothing_is_held_before_the_first_fresh_frame() -> None:
    assert choose_picture(Pacing(), is_ready=False) == (Pacing(num_rested=1), Picture.REST)


def test_the_rest_block_is_played_back_and_forth_without_repeating_its_ends() -> None:
    assert [rest_index(i, 4) for i in range(13)] == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]


def test_a_rest_block_of_one_frame_is_that_frame() -> None:
    assert [rest_index(i, 1) for i in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("compute_s", "delay_s"),
    [
        pytest.param(0.1, 0.76, id="need and margin fit the budget"),
        pytest.param(0.25, 0.82, id="the margin is cut to the budget"),
        pytest.param(0.4, 1.06, id="an engine that is too slow keeps its margin"),
    ],
)
def test_the_playout_delay_is_need_and_margin_within_the_budget(compute_s: float, delay_s: float) -> None:
    chosen = choose_playout_delay_s(right_context_s=0.08, compute_s=compute_s, margin_s=0.1, budget_s=0.8, guard_s=0.02)
    assert chosen == pytest.approx(delay_s)
