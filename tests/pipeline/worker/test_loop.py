"""The worker's main loop in this process: scripted messages in, messages out, a virtual clock, no waiting."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.api import EngineInfo, StreamParams, WindowLedger
from pipeline.config import EngineConfig
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.host import messages as m
from pipeline.host.ring import FrameRing, make_ring_file
from pipeline.worker.link import ParentLost, WorkerLink
from pipeline.worker.loop import WorkerLoop
from tests.fakes.model import CONTEXT_SAMPLES, HEIGHT_PX, WIDTH_PX, FakeModel, FakeModelStream

pytestmark = pytest.mark.unit

SLOTS_PER_STREAM = 24
FRAME_SHAPE = (HEIGHT_PX * 3 // 2, WIDTH_PX)


class Bench:
    """A worker loop with the server's ends of its socket and its ring in the test's hands."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.config = EngineConfig(name="pattern", max_streams=2, frame_slots=SLOTS_PER_STREAM)
        self.ring_fd = make_ring_file("visavis-test")
        self.server, self._theirs = socket.socketpair()
        self.ring = FrameRing(self.ring_fd, num_slots=2 * SLOTS_PER_STREAM, frame_shape=FRAME_SHAPE, is_owner=True)
        slot_bytes = FRAME_SHAPE[0] * FRAME_SHAPE[1]
        self.say(m.AttachRing(num_slots=2 * SLOTS_PER_STREAM, slot_bytes=slot_bytes))

    def say(self, *messages: m.Message) -> None:
        self.server.sendall(b"".join(m.encode_message(message) for message in messages))

    def run(self, model: FakeModel) -> list[m.Message]:
        """Run the loop until it ends; give what it said, heartbeats aside."""
        info = EngineInfo(
            name="fake",
            height_px=HEIGHT_PX,
            width_px=WIDTH_PX,
            num_steps=model.num_steps,
            right_context_s=0.04,
            warm_window_s=0.1,
            warm_start_s=0.1,
            max_streams=2,
            accepts_prompt=True,
            accepts_portrait=True,
        )
        link = WorkerLink(self._theirs, now_s=lambda: self.now_s)
        WorkerLoop(
            link, model=model, info=info, config=self.config, ring_fd=self.ring_fd, now_s=lambda: self.now_s
        ).run()
        link.close()
        said = m.MessageDecoder().feed(self.server.recv(1 << 20))
        self.num_heartbeats = sum(isinstance(message, m.Heartbeat) for message in said)
        return [message for message in said if not isinstance(message, m.Heartbeat)]

    def close(self) -> None:
        self.server.close()
        self._theirs.close()
        self.ring.close()
        os.close(self.ring_fd)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def open_stream(number: int = 0, place: int = 0, **changes: Any) -> m.OpenStream:
    settings: dict[str, Any] = {
        "has_portrait": False,
        "prompt": None,
        "seed": 0,
        "params": StreamParams(),
        "live": False,
        **changes,
    }
    return m.OpenStream(stream=number, place=place, **settings)


def windows(first: int, num_windows: int, *, number: int = 0, captured_s: float = 0.0) -> m.PushAudio:
    """Sound that completes so many windows from `first` on, given that what was pushed before had context too."""
    context = CONTEXT_SAMPLES
    pts = first * WINDOW_SAMPLES + (context if first else 0)
    num_samples = (first + num_windows) * WINDOW_SAMPLES + context - pts
    return m.PushAudio(stream=number, pts=pts, captured_s=captured_s, payload=np.ones(num_samples, np.int16).tobytes())


def frames_of(said: list[m.Message], number: int = 0) -> list[m.FramesMade]:
    return [message for message in said if isinstance(message, m.FramesMade) and message.stream == number]


def once(action: Callable[[], None], *, at: tuple[int, int]) -> Callable[[int, int], None]:
    """Do something before one batch of one window."""
    return lambda window, batch: action() if (window, batch) == at else None


def test_a_stream_runs_from_open_to_the_end_of_its_sound(bench: Bench) -> None:
    portrait = bytes(range(24))
    bench.say(
        open_stream(has_portrait=True, payload=portrait, prompt="calm", seed=5, params=StreamParams(liveliness=0.5)),
        windows(0, 1),
        m.EndAudio(stream=0),
    )
    stream = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(1, 1)))
    model = FakeModel(stream)
    said = bench.run(model)
    assert model.opened == [((HEIGHT_PX, WIDTH_PX, 3), "calm", 5, 0.5)]
    assert said[0] == m.StreamOpened(stream=0)
    made = frames_of(said)
    assert [(frames.window, frames.first_frame, frames.slots) for frames in made] == [
        (0, 0, (0, 1, 2, 3)),
        (0, 4, tuple(range(4, 12))),
        (1, 12, (12, 13, 14, 15)),
        (1, 16, tuple(range(16, 24))),
    ]
    assert [frames.ledger is None for frames in made] == [True, False, True, False]
    assert [int(frame[0, 0]) for frame in bench.ring.read((0, 11, 12, 23))] == [0, 0, 1, 1]
    assert stream.calls[-1] == "close"


def test_the_end_of_the_sound_is_told_once_after_the_last_frames(bench: Bench) -> None:
    stream = FakeModelStream()
    bench.say(open_stream(), windows(0, 1), m.EndAudio(stream=0), open_stream(1, 1, live=False))
    ending = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(9, 0)))
    bench.say(windows(9, 1, number=1))
    said = bench.run(FakeModel(stream, ending))
    done = [index for index, message in enumerate(said) if message == m.AudioDone(stream=0)]
    assert len(done) == 1
    assert all(said.index(frames) < done[0] for frames in frames_of(said))
    assert len(frames_of(said)) == 4


def test_a_window_begins_only_when_all_of_it_has_room_and_goes_on_when_slots_come_back(bench: Bench) -> None:
    other = FakeModelStream(during=once(lambda: bench.say(m.ReleaseSlots(stream=0, num_slots=12)), at=(3, 1)))
    full = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(2, 1)))
    bench.say(open_stream(0, 0), windows(0, 3), open_stream(1, 1), windows(3, 1, number=1, captured_s=9.0))
    said = bench.run(FakeModel(full, other))
    order = [(message.stream, message.window) for message in said if isinstance(message, m.FramesMade)]
    assert order == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 3), (1, 3), (0, 2), (0, 2)]
    assert frames_of(said, 1)[0].slots == (24, 25, 26, 27), "the second place has its own part of the ring"
    assert frames_of(said)[-1].slots == tuple(range(4, 12)), "the slots that came back are used again"


def test_of_several_streams_the_window_that_waited_longest_is_made_first(bench: Bench) -> None:
    second = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(0, 1)))
    first = FakeModelStream()
    bench.say(
        open_stream(0, 0), open_stream(1, 1), windows(0, 1, number=1, captured_s=2.0), windows(0, 1, captured_s=1.0)
    )
    said = bench.run(FakeModel(first, second))
    assert [message.stream for message in said if isinstance(message, m.FramesMade)] == [0, 0, 1, 1]


def test_a_worker_on_a_slow_device_beats_between_the_stages_of_a_window(bench: Bench) -> None:
    def spend(steps: int) -> None:
        bench.now_s += 1000

    stream = FakeModelStream(spend=spend, during=once(lambda: bench.say(m.Shutdown()), at=(0, 0)))
    bench.say(open_stream(), windows(0, 1))
    bench.run(FakeModel(stream))
    assert bench.num_heartbeats == 1


def test_the_ledger_has_the_worker_part_of_the_stages(bench: Bench) -> None:
    def spend(steps: int) -> None:
        bench.now_s += 0.1 * steps

    stream = FakeModelStream(spend=spend, during=once(lambda: bench.say(m.Shutdown()), at=(0, 1)))
    bench.now_s = 7.0
    bench.say(open_stream(), windows(0, 1, captured_s=6.5))
    made = frames_of(bench.run(FakeModel(stream)))
    assert made[-1].ledger == WindowLedger(
        window=0,
        epoch=0,
        captured_s=6.5,
        admitted_s=7.0,
        features_s=7.0,
        steps_s=(7.4, 7.4, 7.4, 7.4),
        decoded_s=7.4,
        copied_s=7.4,
    )


def test_an_interrupt_gives_up_the_window_under_way_and_those_that_wait(bench: Bench) -> None:
    def interrupt() -> None:
        bench.say(m.Interrupt(stream=0, epoch=1), windows(3, 1))

    def during(window: int, batch: int) -> None:
        once(interrupt, at=(0, 0))(window, batch)
        once(lambda: bench.say(m.Shutdown()), at=(3, 1))(window, batch)

    stream = FakeModelStream(during=during)
    bench.say(open_stream(), windows(0, 3))
    made = frames_of(bench.run(FakeModel(stream)))
    assert [(frames.window, frames.epoch) for frames in made] == [(0, 0), (3, 1), (3, 1)]
    steps = [("generate", 0, WINDOW_SAMPLES + CONTEXT_SAMPLES, 4), "interrupt"]
    assert stream.calls == [*steps, ("generate", 3, WINDOW_SAMPLES + CONTEXT_SAMPLES, 4), "close"]


def test_changes_wait_for_the_block_edge_and_only_the_last_one_counts(bench: Bench) -> None:
    def change() -> None:
        bench.say(
            m.UpdateParams(stream=0, params=StreamParams(liveliness=0.1)),
            m.UpdateParams(stream=0, params=StreamParams(liveliness=0.2)),
            m.SetPortrait(stream=0, payload=bytes([9]) * 24),
        )

    def during(window: int, batch: int) -> None:
        once(change, at=(0, 0))(window, batch)
        once(lambda: bench.say(m.Shutdown()), at=(1, 1))(window, batch)

    stream = FakeModelStream(during=during)
    bench.say(open_stream(), windows(0, 2))
    bench.run(FakeModel(stream))
    assert stream.calls[1:4] == [("done", 0), ("update", 0.2), ("set_portrait", 9, (HEIGHT_PX, WIDTH_PX, 3))]


def slow_stream(bench: Bench, *, step_s: float, last_window: int) -> FakeModelStream:
    """A stream whose steps take time, whose reader takes every window at once, and that ends with a window."""

    def spend(steps: int) -> None:
        bench.now_s += step_s * steps

    def during(window: int, batch: int) -> None:
        if window > 0 and batch == 0:
            bench.say(m.ReleaseSlots(stream=0, num_slots=12))
        once(lambda: bench.say(m.Shutdown()), at=(last_window, 1))(window, batch)

    return FakeModelStream(spend=spend, during=during)


def generated(stream: FakeModelStream) -> list[tuple[int, int]]:
    """Give window and steps of all windows that were begun."""
    return [(call[1], call[3]) for call in stream.calls if isinstance(call, tuple) and call[0] == "generate"]


def test_a_live_stream_that_is_late_loses_steps_and_then_windows(bench: Bench) -> None:
    stream = slow_stream(bench, step_s=0.15, last_window=4)
    bench.say(open_stream(live=True), *(windows(n, 1) for n in range(5)))
    said = bench.run(FakeModel(stream))
    assert generated(stream) == [(0, 4), (2, 3), (4, 2)]
    skipped = [message for message in said if isinstance(message, m.WindowsSkipped)]
    assert skipped == [
        m.WindowsSkipped(stream=0, first_window=1, num_windows=1),
        m.WindowsSkipped(stream=0, first_window=3, num_windows=1),
    ]
    assert [call for call in stream.calls if call[0] in ("generate", "skip")] == [  # type: ignore[index]
        ("generate", 0, WINDOW_SAMPLES + CONTEXT_SAMPLES, 4),
        ("skip", 1, WINDOW_SAMPLES + CONTEXT_SAMPLES),
        ("generate", 2, WINDOW_SAMPLES + CONTEXT_SAMPLES, 3),
        ("skip", 1, WINDOW_SAMPLES + CONTEXT_SAMPLES),
        ("generate", 4, WINDOW_SAMPLES + CONTEXT_SAMPLES, 2),
    ]


def test_a_stream_that_cannot_skip_a_window_fails_alone(bench: Bench) -> None:
    class Deaf(FakeModelStream):
        def skip(self, pcm: NDArray[np.int16]) -> None:
            raise LookupError("cannot hear")

    deaf = Deaf()
    other = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(0, 1)))
    bench.now_s = 0.6
    bench.say(
        open_stream(0, 0, live=True), open_stream(1, 1), windows(0, 2), m.EndAudio(stream=0), windows(0, 1, number=1)
    )
    said = bench.run(FakeModel(deaf, other))
    (failed,) = [message for message in said if isinstance(message, m.StreamFailed)]
    assert (failed.stream, failed.text) == (0, "cannot hear")
    assert deaf.calls == ["close"]
    assert [frames.window for frames in frames_of(said, 1)] == [0, 0]
    assert not [message for message in said if isinstance(message, m.WindowsSkipped | m.AudioDone)]


def test_a_file_that_is_late_loses_nothing(bench: Bench) -> None:
    stream = slow_stream(bench, step_s=0.15, last_window=4)
    bench.say(open_stream(live=False), *(windows(n, 1) for n in range(5)))
    said = bench.run(FakeModel(stream))
    assert generated(stream) == [(n, 4) for n in range(5)]
    assert not [message for message in said if isinstance(message, m.WindowsSkipped)]


@pytest.mark.parametrize(("batches", "num_frames"), [((4, 4), 8), ((6, 7), 13), ((), 0)])
def test_a_model_that_miscounts_its_frames_fails_its_stream(
    bench: Bench, batches: tuple[int, ...], num_frames: int
) -> None:
    broken = FakeModelStream(batches=batches)
    other = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(0, 1)))
    bench.say(open_stream(0, 0), open_stream(1, 1), windows(0, 1), windows(0, 1, number=1, captured_s=1.0))
    said = bench.run(FakeModel(broken, other))
    (failed,) = [message for message in said if isinstance(message, m.StreamFailed)]
    assert (failed.stream, failed.error) == (0, "RuntimeError")
    assert failed.text == f"the model made {num_frames} frames of window 0, but a window has 12"
    assert broken.calls[-1] == "close"
    assert [frames.window for frames in frames_of(said, 1)] == [0, 0], "the other stream goes on"


def test_a_stream_that_the_model_refuses_is_answered(bench: Bench) -> None:
    stream = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(0, 1)))
    bench.say(open_stream(0, 0), open_stream(1, 1), windows(0, 1, number=1), windows(0, 1))
    said = bench.run(FakeModel(stream))
    (failed,) = [message for message in said if isinstance(message, m.StreamFailed)]
    assert (failed.stream, failed.error, failed.text) == (1, "LookupError", "no more streams")
    assert "Traceback" in failed.traceback


def test_a_closed_stream_stops_at_once_and_messages_to_it_are_dropped(bench: Bench) -> None:
    def close() -> None:
        bench.say(m.CloseStream(stream=0), windows(2, 1), m.CloseStream(stream=0), m.Shutdown())

    stream = FakeModelStream(during=once(close, at=(0, 0)))
    bench.say(open_stream(), windows(0, 2))
    said = bench.run(FakeModel(stream))
    assert len(frames_of(said)) == 1
    assert stream.calls.count("close") == 1


def test_a_loop_whose_server_is_gone_closes_its_streams_and_says_so(bench: Bench) -> None:
    stream = FakeModelStream(during=once(lambda: bench.server.close(), at=(0, 0)))
    bench.say(open_stream(), windows(0, 1))
    with pytest.raises(ParentLost):
        bench.run(FakeModel(stream))
    assert stream.calls[-1] == "close"


class Listener(FakeModelStream):
    """Can hear a sound as a whole."""

    def hear_whole(self, sounds: np.ndarray, masks: np.ndarray | None) -> None:
        if sounds.shape[1] == 3:
            raise ValueError("too short")
        self.calls.append(("whole", sounds.tolist(), None if masks is None else masks.tolist()))


def test_a_whole_sound_is_heard_before_the_first_window(bench: Bench) -> None:
    stream = Listener()
    sound = np.arange(5, dtype=np.int16).tobytes()
    bench.say(
        open_stream(has_portrait=True, payload=bytes(range(24)) + sound, num_sound_bytes=len(sound)),
        windows(0, 1),
        m.Shutdown(),
    )
    model = FakeModel(stream)
    said = bench.run(model)
    assert isinstance(said[0], m.StreamOpened)
    assert stream.calls[0] == ("whole", [[0, 1, 2, 3, 4]], None)


def test_the_voices_of_a_whole_sound_come_with_their_masks(bench: Bench) -> None:
    stream = Listener()
    sounds, masks = np.arange(4, dtype=np.int16).tobytes(), bytes([1, 0, 1, 0, 1, 1])
    payload = bytes(range(24)) + sounds + masks
    changes = {"num_sound_bytes": len(sounds), "num_mask_bytes": len(masks), "num_voices": 2}
    bench.say(open_stream(has_portrait=True, payload=payload, **changes), windows(0, 1), m.Shutdown())
    bench.run(FakeModel(stream))
    assert stream.calls[0] == ("whole", [[0, 1], [2, 3]], [[True, False, True], [False, True, True]])


def test_a_whole_sound_that_fails_ends_its_stream_alone(bench: Bench) -> None:
    bench.say(open_stream(payload=bytes(6), num_sound_bytes=6), m.Shutdown())
    stream = Listener()
    said = bench.run(FakeModel(stream))
    assert [type(message) for message in said] == [m.StreamFailed]
    assert said[0].text == "too short"  # type: ignore[attr-defined]
    assert stream.calls[-1] == "close"


def test_a_stream_opens_when_its_prompt_is_read_and_the_others_go_on_meanwhile(bench: Bench) -> None:
    other = FakeModelStream()
    late = FakeModelStream(during=once(lambda: bench.say(m.Shutdown()), at=(0, 1)))

    class Model(FakeModel):
        def open_stream(self, **arguments: Any) -> FakeModelStream:
            bench.say(windows(0, 1, number=1))  # as its viewer does once it is open
            return super().open_stream(**arguments)

    model = Model(other, late)
    model.unread_prompts.add("sing")

    other.during = once(model.unread_prompts.clear, at=(1, 1))
    bench.say(open_stream(), open_stream(1, 1, prompt="sing"), windows(0, 2))
    said = bench.run(model)
    order = [
        type(message).__name__
        for message in said
        if isinstance(message, m.StreamOpened | m.StreamFailed | m.FramesMade)
    ]
    assert order == ["StreamOpened", *4 * ["FramesMade"], "StreamOpened", *2 * ["FramesMade"]]
    assert [prompt for _, prompt, _, _ in model.opened] == [None, "sing"]


def test_a_loop_whose_only_stream_waits_for_its_prompt_keeps_beating(bench: Bench) -> None:
    class Model(FakeModel):
        num_asked = 0

        def is_ready(self, **_: object) -> bool:
            self.num_asked += 1
            bench.now_s += 1.0
            bench.say(m.Shutdown() if self.num_asked == 3 else m.CloseStream(stream=7))  # either wakes the loop
            return False

    model = Model(FakeModelStream())
    bench.say(open_stream(prompt="sing"))
    assert bench.run(model) == []
    assert bench.num_heartbeats >= 2
    assert model.opened == []


def test_a_stream_that_is_closed_before_its_prompt_is_read_never_opens(bench: Bench) -> None:
    other = FakeModelStream()
    model = FakeModel(other, FakeModelStream())
    model.unread_prompts.add("sing")

    def during(window: int, batch: int) -> None:
        once(lambda: bench.say(m.CloseStream(stream=1)), at=(0, 0))(window, batch)
        once(model.unread_prompts.clear, at=(1, 0))(window, batch)
        once(lambda: bench.say(m.Shutdown()), at=(1, 1))(window, batch)

    other.during = during
    bench.say(open_stream(), open_stream(1, 1, prompt="sing"), windows(0, 2))
    said = bench.run(model)
    assert [message for message in said if isinstance(message, m.StreamOpened)] == [m.StreamOpened(stream=0)]
    assert len(model.opened) == 1
