import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.geometry import WINDOW_SAMPLES
from pipeline.worker.windows import WindowAssembler

pytestmark = pytest.mark.unit

CONTEXT = 1280
SECOND = 16_000


def assembler(capacity_samples: int = 10 * SECOND) -> WindowAssembler:
    return WindowAssembler(right_context_samples=CONTEXT, capacity_samples=capacity_samples)


def ramp(first: int, num_samples: int) -> NDArray[np.int16]:
    """Samples that say where they belong; never 0."""
    return (np.arange(first, first + num_samples) % 30_000 + 1).astype(np.int16)


def push(windows: WindowAssembler, first: int, num_samples: int, captured_s: float = 0.0) -> None:
    windows.push(ramp(first, num_samples), pts=first, captured_s=captured_s)


def test_a_window_is_complete_when_its_right_context_is_there_and_not_a_sample_before() -> None:
    windows = assembler()
    push(windows, 0, WINDOW_SAMPLES + CONTEXT - 1)
    assert windows.num_complete == 0
    push(windows, WINDOW_SAMPLES + CONTEXT - 1, 1)
    assert windows.num_complete == 1
    window = windows.take()
    assert window.index == 0
    assert np.array_equal(window.pcm, ramp(0, WINDOW_SAMPLES + CONTEXT))
    assert windows.num_complete == 0


def test_windows_are_exact_for_any_packet_size_and_far_beyond_the_capacity() -> None:
    windows = assembler(capacity_samples=2 * SECOND)
    rng = np.random.default_rng(0)
    first = index = 0
    while index < 200:
        num_samples = int(rng.integers(1, 9_000))
        push(windows, first, num_samples)
        first += num_samples
        while windows.num_complete:
            window = windows.take()
            assert window.index == index
            assert np.array_equal(window.pcm, ramp(index * WINDOW_SAMPLES, WINDOW_SAMPLES + CONTEXT))
            index += 1


def test_a_gap_becomes_silence() -> None:
    windows = assembler()
    push(windows, 0, 1000)
    push(windows, 3000, WINDOW_SAMPLES)
    window = windows.take()
    assert np.array_equal(window.pcm[:1000], ramp(0, 1000))
    assert not window.pcm[1000:3000].any()
    assert np.array_equal(window.pcm[3000:], ramp(3000, WINDOW_SAMPLES + CONTEXT - 3000))


def test_sound_that_starts_late_begins_with_the_window_that_holds_it() -> None:
    windows = assembler()
    first = 1000 * WINDOW_SAMPLES + 500
    push(windows, first, 2 * WINDOW_SAMPLES)
    window = windows.take()
    assert window.index == 1000
    assert not window.pcm[:500].any()
    assert np.array_equal(window.pcm[500:], ramp(first, WINDOW_SAMPLES + CONTEXT - 500))


def test_the_end_fills_the_last_window_with_silence() -> None:
    windows = assembler()
    push(windows, 0, WINDOW_SAMPLES + 100)
    windows.end()
    assert windows.num_complete == 2
    assert np.array_equal(windows.take().pcm[: WINDOW_SAMPLES + 100], ramp(0, WINDOW_SAMPLES + 100))
    assert not windows.is_drained
    last = windows.take()
    assert last.index == 1
    assert np.array_equal(last.pcm[:100], ramp(WINDOW_SAMPLES, 100))
    assert not last.pcm[100:].any()
    assert len(last.pcm) == WINDOW_SAMPLES + CONTEXT
    assert windows.is_drained


def test_an_end_at_the_edge_of_a_window_adds_none() -> None:
    windows = assembler()
    push(windows, 0, WINDOW_SAMPLES)
    windows.end()
    windows.take()
    assert windows.is_drained


def test_an_end_without_any_sound_is_drained_at_once() -> None:
    windows = assembler()
    windows.end()
    assert windows.is_drained


def test_sound_after_the_end_breaks_an_invariant() -> None:
    windows = assembler()
    windows.end()
    with pytest.raises(AssertionError):
        push(windows, 0, 10)


def test_sound_that_was_already_pushed_breaks_an_invariant() -> None:
    windows = assembler()
    push(windows, 0, 10)
    with pytest.raises(AssertionError):
        push(windows, 9, 10)


def test_an_interrupt_drops_what_waits_and_goes_on_with_the_window_of_the_next_sample() -> None:
    windows = assembler()
    push(windows, 0, 3 * WINDOW_SAMPLES + 100)
    windows.interrupt()
    assert windows.num_complete == 0
    push(windows, 3 * WINDOW_SAMPLES + 100, WINDOW_SAMPLES + CONTEXT)
    window = windows.take()
    assert window.index == 3
    assert np.array_equal(window.pcm, ramp(3 * WINDOW_SAMPLES, WINDOW_SAMPLES + CONTEXT)), "sound stays as it was"


def test_an_interrupt_followed_by_a_jump_makes_no_windows_of_the_jump() -> None:
    windows = assembler()
    push(windows, 0, WINDOW_SAMPLES)
    windows.interrupt()
    push(windows, 50 * WINDOW_SAMPLES, WINDOW_SAMPLES + CONTEXT)
    assert windows.num_complete == 1
    assert windows.take().index == 50


def test_interrupts_without_end_that_let_no_window_complete_need_no_memory() -> None:
    windows = assembler()
    tracemalloc.start()
    try:
        for index in range(20_000):
            push(windows, 320 * index, 320)
            windows.interrupt()
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert windows.num_complete == 0
    assert held_bytes < 100_000


def test_an_interrupt_before_the_end_leaves_nothing_to_do() -> None:
    windows = assembler()
    push(windows, 0, WINDOW_SAMPLES + 100)
    windows.interrupt()
    windows.end()
    assert windows.is_drained


def test_taking_more_than_is_complete_breaks_an_invariant() -> None:
    windows = assembler()
    with pytest.raises(AssertionError):
        windows.take()


def test_the_times_are_those_of_the_packets_that_brought_the_last_sample_and_the_context() -> None:
    windows = assembler()
    for index, first in enumerate(range(0, 3 * WINDOW_SAMPLES, 320)):
        push(windows, first, 320, captured_s=float(index))
    assert windows.oldest_complete_s() == (WINDOW_SAMPLES + CONTEXT) // 320 - 1
    first, second = windows.take(), windows.take()
    assert (first.captured_s, first.complete_s) == (23, 27)
    assert (second.captured_s, second.complete_s) == (47, 51)


def test_after_the_end_the_last_packet_counts_for_the_context() -> None:
    windows = assembler()
    push(windows, 0, WINDOW_SAMPLES, captured_s=7.0)
    windows.end()
    window = windows.take()
    assert (window.captured_s, window.complete_s) == (7.0, 7.0)
