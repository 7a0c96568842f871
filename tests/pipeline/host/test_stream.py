"""A stream of the server with a sink in the place of its worker; nothing waits for time."""

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.api import EngineInfo, Stream, StreamParams, WindowLedger
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, WorkerCrashed, WorkerError
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.host import messages as m
from pipeline.host.ring import FrameRing, make_ring_file
from pipeline.host.stream import HostStream, check_portrait, check_prompt

pytestmark = pytest.mark.unit

INFO = EngineInfo(
    name="fake",
    height_px=4,
    width_px=2,
    num_steps=4,
    right_context_s=0.08,
    warm_window_s=0.1,
    warm_start_s=0.1,
    max_streams=1,
    accepts_prompt=True,
    accepts_portrait=True,
)
AHEAD_SAMPLES = 32_000


class Sink:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[m.Message] = []

    def send(self, message: m.Message) -> None:
        self.sent.append(message)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def pushed(self) -> list[tuple[int, int]]:
        """Start and length of each piece of sound."""
        return [(message.pts, len(message.payload) // 2) for message in self.sent if isinstance(message, m.PushAudio)]


class Bench:
    """A stream, its sink, its ring, and how often it was closed."""

    def __init__(self, ring: FrameRing) -> None:
        self.sink = Sink()
        self.ring = ring
        self.num_closed = 0
        self.stream = HostStream(
            5,
            worker=self.sink,
            ring=ring,
            info=INFO,
            config=EngineConfig(max_ahead_s=AHEAD_SAMPLES / 16_000),
            on_close=self.count_close,
            now_s=lambda: 42.0,
        )

    def count_close(self) -> None:
        self.num_closed += 1

    def make(self, window: int, *, epoch: int = 0, slots: tuple[int, ...] = (0, 1), **ledger: Any) -> None:
        """Let the worker finish a window."""
        whole = WindowLedger(window=window, epoch=epoch, **{"steps_s": (1.0, 2.0, 3.0, 4.0), **ledger})
        self.stream.handle(
            m.FramesMade(stream=5, window=window, epoch=epoch, first_frame=12 * window, slots=slots, ledger=whole)
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    ring_fd = make_ring_file("visavis-test")
    ring = FrameRing(ring_fd, num_slots=24, frame_shape=(6, 2), is_owner=True)
    yield Bench(ring)
    ring.close()
    os.close(ring_fd)


def silence(num_samples: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.zeros(num_samples, np.int16)


async def test_a_stream_is_what_the_interface_says(bench: Bench) -> None:
    interface: Stream = bench.stream
    assert aiter(interface) is bench.stream


async def test_sound_goes_out_in_pieces_with_the_time_of_its_arrival(bench: Bench) -> None:
    await bench.stream.push_audio(silence(WINDOW_SAMPLES + 100), 0)
    assert bench.sink.pushed() == [(0, WINDOW_SAMPLES), (WINDOW_SAMPLES, 100)]
    assert {message.captured_s for message in bench.sink.sent if isinstance(message, m.PushAudio)} == {42.0}


async def test_overlap_is_dropped_and_gaps_are_kept_and_both_are_counted(bench: Bench) -> None:
    await bench.stream.push_audio(silence(1000), 0)
    await bench.stream.push_audio(silence(1000), 400)
    await bench.stream.push_audio(silence(100), 100)
    await bench.stream.push_audio(silence(10), 2000)
    assert bench.sink.pushed() == [(0, 1000), (1000, 400), (2000, 10)]
    assert bench.stream.counters.overlap_samples == 600 + 100
    assert bench.stream.counters.gap_samples == 600


async def test_pushing_waits_for_the_worker_when_too_much_is_ahead(bench: Bench) -> None:
    pushing = asyncio.create_task(bench.stream.push_audio(silence(6 * WINDOW_SAMPLES), 0))
    await settle()
    assert len(bench.sink.pushed()) == AHEAD_SAMPLES // WINDOW_SAMPLES == 4
    bench.make(0)
    await settle()
    assert len(bench.sink.pushed()) == 5
    bench.stream.handle(m.WindowsSkipped(stream=5, first_window=1, num_windows=1))
    await pushing
    assert len(bench.sink.pushed()) == 6
    assert bench.stream.counters.skipped_windows == 1


async def test_a_push_that_waits_goes_on_after_an_interrupt(bench: Bench) -> None:
    pushing = asyncio.create_task(bench.stream.push_audio(silence(6 * WINDOW_SAMPLES), 0))
    await settle()
    assert await bench.stream.interrupt() == 1
    await pushing
    assert bench.sink.pushed()[-1] == (5 * WINDOW_SAMPLES, WINDOW_SAMPLES)


async def test_a_push_that_waits_fails_with_the_worker(bench: Bench) -> None:
    pushing = asyncio.create_task(bench.stream.push_audio(silence(6 * WINDOW_SAMPLES), 0))
    await settle()
    bench.stream.fail(WorkerCrashed(0, -9))
    with pytest.raises(WorkerCrashed):
        await pushing


async def test_a_batch_owns_its_frames_and_gives_its_slots_back(bench: Bench) -> None:
    bench.ring.write(7, np.full((6, 2), 77, np.uint8))
    bench.make(3, slots=(7,))
    batch = await anext(bench.stream)
    assert (batch.window, batch.epoch, batch.first_frame) == (3, 0, 36)
    assert bench.sink.sent == [m.ReleaseSlots(stream=5, num_slots=1)]
    bench.ring.write(7, np.zeros((6, 2), np.uint8))
    assert batch.frames.shape == (1, 6, 2)
    assert batch.frames.min() == 77
    assert batch.ledger is not None
    assert batch.ledger.received_s == 42.0


async def test_windows_with_fewer_steps_are_counted(bench: Bench) -> None:
    bench.make(0)
    bench.make(1, steps_s=(1.0, 2.0))
    assert bench.stream.counters.reduced_windows == 1


async def test_an_interrupt_drops_what_was_made_and_what_is_still_on_its_way(bench: Bench) -> None:
    await bench.stream.push_audio(silence(2 * WINDOW_SAMPLES + 100), 0)
    bench.make(0)
    assert await bench.stream.interrupt() == 1
    bench.make(1, epoch=0, slots=(2, 3, 4))
    bench.make(2, epoch=1, slots=(5,))
    assert (await anext(bench.stream)).window == 2
    assert bench.stream.counters.interrupted_frames == 5
    released = [message.num_slots for message in bench.sink.sent if isinstance(message, m.ReleaseSlots)]
    assert released == [2, 3, 1]
    assert m.Interrupt(stream=5, epoch=1) in bench.sink.sent


async def test_sound_after_an_interrupt_may_begin_later_without_a_gap(bench: Bench) -> None:
    await bench.stream.push_audio(silence(100), 0)
    await bench.stream.interrupt()
    await bench.stream.push_audio(silence(100), 10**9)
    assert bench.sink.pushed()[-1] == (10**9, 100)
    assert bench.stream.counters.gap_samples == 0


async def test_the_end_of_the_sound_ends_the_iteration_after_the_last_batch(bench: Bench) -> None:
    await bench.stream.end_audio()
    await bench.stream.end_audio()
    assert bench.sink.sent == [m.EndAudio(stream=5)]
    bench.make(0)
    bench.stream.handle(m.AudioDone(stream=5))
    assert [batch.window async for batch in bench.stream] == [0]
    with pytest.raises(ConfigError, match="the audio of this stream has ended"):
        await bench.stream.push_audio(silence(1), 0)


async def test_changes_are_sent_as_they_are(bench: Bench) -> None:
    portrait = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    await bench.stream.update(StreamParams(liveliness=0.25))
    await bench.stream.set_portrait(portrait)
    assert bench.sink.sent == [
        m.UpdateParams(stream=5, params=StreamParams(liveliness=0.25)),
        m.SetPortrait(stream=5, payload=bytes(range(24))),
    ]


async def test_closing_ends_the_iteration_and_is_told_once(bench: Bench) -> None:
    waiting = asyncio.create_task(anext(bench.stream, None))
    await settle()
    bench.make(0)
    await bench.stream.aclose()
    await bench.stream.aclose()
    assert await waiting is None
    assert bench.sink.sent == [m.CloseStream(stream=5)]
    assert bench.num_closed == 1
    with pytest.raises(WorkerError, match="the stream is closed"):
        await bench.stream.update(StreamParams())


async def test_closing_reports_skipped_windows_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench.stream.handle(m.WindowsSkipped(stream=5, first_window=0, num_windows=3))
    await bench.stream.aclose()
    assert caplog.messages == ["stream 5 skipped 3 late windows"]


async def test_after_a_failure_every_call_raises_it_and_closing_still_frees_the_place(bench: Bench) -> None:
    bench.make(0)
    bench.stream.fail(WorkerCrashed(0, 1))
    for call in (bench.stream.end_audio, bench.stream.interrupt, bench.stream.__anext__):
        with pytest.raises(WorkerCrashed):
            await call()
    await bench.stream.aclose()
    assert bench.num_closed == 1


async def test_nonsense_from_the_worker_is_an_error(bench: Bench) -> None:
    with pytest.raises(WorkerError, match="worker said Heartbeat in the middle of a stream"):
        bench.stream.handle(m.Heartbeat())


@pytest.mark.parametrize(
    "portrait", [np.zeros((4, 2, 4), np.uint8), np.zeros((2, 4, 3), np.uint8), np.zeros((4, 2, 3), np.float32)]
)
def test_a_portrait_of_another_size_or_type_is_refused(portrait: Any) -> None:
    with pytest.raises(ConfigError, match=r"it has to be uint8 of shape \(4, 2, 3\)"):
        check_portrait(portrait, INFO)


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_prompt_is_for_engines_that_know_one() -> None:
    check_prompt("smile", INFO)
    check_prompt(None, dataclasses.replace(INFO, accepts_prompt=False))
    with pytest.raises(ConfigError, match="prompt is 'smile', but the engine fake knows no prompts"):
        check_prompt("smile", dataclasses.replace(INFO, accepts_prompt=False))


async def test_another_prompt_goes_to_the_worker_with_the_parameters(bench: Bench) -> None:
    await bench.stream.update(StreamParams(prompt="smile"))
    sent = bench.sink.sent[-1]
    assert isinstance(sent, m.UpdateParams)
    assert sent.params.prompt == "smile"
    assert m.MessageDecoder().feed(m.encode_message(sent)) == [sent]
