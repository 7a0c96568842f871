import numpy as np
import pytest

from pipeline.api import StreamParams
from pipeline.geometry import FRAMES_PER_BLOCK, WINDOW_SAMPLES
from pipeline.host.ring import SlotCredit
from pipeline.worker.late import LateState
from pipeline.worker.streams import WorkerStream, pick_stream
from pipeline.worker.windows import WindowAssembler
from tests.fakes.model import FakeModelStream

pytestmark = pytest.mark.unit


def make(number: int, *, complete_s: float | None, num_slots: int = 24, is_live: bool = False) -> WorkerStream:
    stream = WorkerStream(
        number,
        model_stream=FakeModelStream(),
        windows=WindowAssembler(right_context_samples=0, capacity_samples=32_000),
        credit=SlotCredit(first_slot=0, num_slots=num_slots),
        num_steps=4,
        is_live=is_live,
    )
    if complete_s is not None:
        stream.windows.push(np.ones(WINDOW_SAMPLES, np.int16), pts=0, captured_s=complete_s)
    return stream


def test_the_oldest_complete_window_is_picked() -> None:
    streams = [make(0, complete_s=2.0), make(1, complete_s=1.0), make(2, complete_s=None)]
    assert pick_stream(streams) is streams[1]


def test_a_stream_without_room_for_a_whole_window_is_passed_over() -> None:
    full, free = make(0, complete_s=1.0), make(1, complete_s=2.0)
    full.credit.take(24 - FRAMES_PER_BLOCK + 1)
    assert pick_stream([full, free]) is free
    full.credit.release(1)
    assert pick_stream([full, free]) is full


def test_nothing_is_picked_where_nothing_is_complete() -> None:
    assert pick_stream([]) is None
    assert pick_stream([make(0, complete_s=None)]) is None


def test_only_live_streams_follow_the_late_policy() -> None:
    for is_live, expected in ((True, 2), (False, 4)):
        stream = make(0, complete_s=None, is_live=is_live)
        stream.late_state = LateState(max_steps=2, num_calm_windows=0)
        assert stream.max_steps == expected


def test_an_interrupt_reaches_the_model_once_at_the_next_block_edge() -> None:
    stream = make(0, complete_s=1.0)
    stream.interrupt(3)
    assert stream.epoch == 3
    assert not stream.is_runnable
    assert isinstance(stream.model_stream, FakeModelStream)
    assert stream.model_stream.calls == []
    stream.cross_block_edge()
    stream.cross_block_edge()
    assert stream.model_stream.calls == ["interrupt"]


def test_a_window_that_is_skipped_after_an_interrupt_is_heard_after_it() -> None:
    stream, model_stream = make(0, complete_s=1.0), FakeModelStream()
    stream.model_stream = model_stream
    stream.interrupt(1)
    stream.windows.push(np.full(WINDOW_SAMPLES, 5, np.int16), pts=WINDOW_SAMPLES, captured_s=2.0)
    stream.skip_window()
    stream.cross_block_edge()
    assert model_stream.calls == ["interrupt", ("skip", 5, WINDOW_SAMPLES)]
    assert stream.windows.next_window == 2


def test_a_live_stream_keeps_its_prompt_until_the_next_can_be_had_and_nothing_else_waits() -> None:
    stream, model_stream = make(0, complete_s=1.0, is_live=True), FakeModelStream()
    stream.model_stream = model_stream
    stream.pending_params = StreamParams(prompt="sing")
    stream.pending_portrait = np.zeros((4, 2, 3), np.uint8)
    stream.interrupt(1)
    stream.cross_block_edge()
    stream.cross_block_edge()
    assert model_stream.calls == ["interrupt", ("set_portrait", 0, (4, 2, 3))]
    model_stream.ready_prompts.add("sing")
    stream.cross_block_edge()
    stream.cross_block_edge()
    assert model_stream.calls[2:] == [("update", 1.0, "sing")]


def test_newer_parameters_take_the_place_of_those_that_wait() -> None:
    stream, model_stream = make(0, complete_s=1.0, is_live=True), FakeModelStream()
    stream.model_stream = model_stream
    for params in (StreamParams(prompt="sing"), StreamParams(liveliness=0.5)):
        stream.pending_params = params
        stream.cross_block_edge()
    model_stream.ready_prompts.add("sing")
    stream.cross_block_edge()
    assert model_stream.calls == [("update", 0.5)]


def test_a_file_waits_for_its_prompt() -> None:
    stream, model_stream = make(0, complete_s=1.0), FakeModelStream()
    stream.model_stream = model_stream
    stream.pending_params = StreamParams(prompt="sing")
    stream.cross_block_edge()
    assert model_stream.calls == [("update", 1.0, "sing")]


def test_a_prompt_that_cannot_be_read_leaves_the_one_so_far_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once; what came with it holds."""
    stream, model_stream = make(3, complete_s=1.0, is_live=True), FakeModelStream()
    stream.model_stream = model_stream
    model_stream.ready_prompts = model_stream.unreadable_prompts = {"bad"}
    stream.pending_params = StreamParams(prompt="bad", liveliness=0.5)
    stream.pending_portrait = np.zeros((4, 2, 3), np.uint8)
    stream.cross_block_edge()
    stream.cross_block_edge()
    assert model_stream.calls == [("update", 0.5), ("set_portrait", 0, (4, 2, 3))]
    assert [record.getMessage() for record in caplog.records] == [
        "stream 3 keeps its prompt: the new one cannot be read"
    ]
