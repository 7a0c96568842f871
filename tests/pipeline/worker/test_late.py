import pytest

from pipeline.geometry import WINDOW_S
from pipeline.worker import late
from pipeline.worker.late import CALM_WINDOWS, LateState, Load

pytestmark = pytest.mark.unit


def load(window_s: float, *, step_s: float = 0.02, num_live_streams: int = 1) -> Load:
    return Load(window_s=window_s, step_s=step_s, num_live_streams=num_live_streams)


def run(state: LateState, num_windows: int, *, lateness_s: float, load: Load) -> LateState:
    for _ in range(num_windows):
        state = late.after_window(state, lateness_s=lateness_s, load=load, num_steps=4)
    return state


def test_a_stream_that_holds_the_pace_keeps_all_steps() -> None:
    assert run(late.start(4), 100, lateness_s=0.0, load=load(0.15)).max_steps == 4


def test_a_load_near_the_pace_costs_one_step_per_window_down_to_two() -> None:
    state = late.start(4)
    taken = []
    for _ in range(4):
        state = late.after_window(state, lateness_s=0.0, load=load(0.45), num_steps=4)
        taken.append(state.max_steps)
    assert taken == [3, 2, 2, 2]


def test_waiting_for_a_quarter_of_a_window_costs_a_step_though_windows_are_cheap() -> None:
    assert run(late.start(4), 1, lateness_s=0.13, load=load(0.1)).max_steps == 3


def test_streams_that_share_the_worker_share_the_pace() -> None:
    assert run(late.start(4), 1, lateness_s=0.0, load=load(0.15, num_live_streams=2)).max_steps == 4
    assert run(late.start(4), 1, lateness_s=0.0, load=load(0.15, num_live_streams=3)).max_steps == 3


def test_a_model_with_fewer_steps_than_the_floor_keeps_them() -> None:
    state = late.after_window(late.start(1), lateness_s=1.0, load=load(0.6), num_steps=1)
    assert state.max_steps == 1


def test_a_step_comes_back_after_a_run_of_calm_windows_and_the_count_begins_again() -> None:
    state = LateState(max_steps=2, num_calm_windows=0)
    state = run(state, CALM_WINDOWS - 1, lateness_s=0.0, load=load(0.2))
    assert state.max_steps == 2
    state = run(state, 1, lateness_s=0.0, load=load(0.2))
    assert state == LateState(max_steps=3, num_calm_windows=0)
    assert run(state, CALM_WINDOWS, lateness_s=0.0, load=load(0.2)).max_steps == 4


@pytest.mark.parametrize(
    ("lateness_s", "disturbance"), [(0.06, load(0.2)), (0.0, load(0.37, step_s=0.05)), (0.0, load(0.39, step_s=0.0))]
)
def test_one_disturbed_window_starts_the_calm_count_again(lateness_s: float, disturbance: Load) -> None:
    state = LateState(max_steps=3, num_calm_windows=CALM_WINDOWS - 1)
    state = run(state, 1, lateness_s=lateness_s, load=disturbance)
    assert state == LateState(max_steps=3, num_calm_windows=0)


def test_steps_do_not_flicker_where_one_more_would_not_hold() -> None:
    """At 3 steps the load is calm, at 4 it is not: the stream stays at 3."""
    assert (
        run(LateState(max_steps=3, num_calm_windows=0), 200, lateness_s=0.0, load=load(0.35, step_s=0.1)).max_steps == 3
    )


@pytest.mark.parametrize(
    ("lateness_s", "num_complete", "expected"),
    [
        (0.0, 0, 0),
        (5.0, 0, 0),
        (0.0, 1, 0),
        (0.47, 2, 0),
        (0.49, 2, 1),
        (5.0, 1, 0),
        (1.0, 3, 2),
        (9.9, 3, 2),
        (0.5, 9, 1),
        (-0.1, 2, 0),
    ],
)
def test_windows_that_waited_for_a_whole_window_are_dropped_but_never_the_newest(
    lateness_s: float, num_complete: int, expected: int
) -> None:
    assert late.num_windows_to_skip(lateness_s=lateness_s, num_complete=num_complete) == expected


def test_the_delay_never_grows_however_slow_the_worker_is() -> None:
    """A worker that needs 700 ms per window begins no window later than one window after it was complete."""
    now_s, next_window, begun = 0.0, 0, []
    while next_window < 300:
        num_complete = int(now_s / WINDOW_S) - next_window
        if num_complete <= 0:
            now_s = (next_window + 1) * WINDOW_S
            continue
        lateness_s = now_s - (next_window + 1) * WINDOW_S
        next_window += late.num_windows_to_skip(lateness_s=lateness_s, num_complete=num_complete)
        begun.append(now_s - (next_window + 1) * WINDOW_S)
        next_window += 1
        now_s += 0.7
    assert max(begun) <= WINDOW_S + 1e-9
    assert len(begun) < 230, "windows were dropped"
