"""The engine with a real worker process and the pattern model."""

import asyncio
import os
import signal

import numpy as np
import pytest

from pipeline.api import Engine, StreamParams, StreamRequest
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, StreamLimitReached, WorkerError
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.host.engine import WorkerEngine
from pipeline.host.ring import make_temporary_file
from pipeline.worker.pattern import frame_level, read_frame_index, read_level, read_liveliness
from tests.fakes.pattern_engine import (
    FILE,
    HEIGHT_PX,
    LIVE,
    WIDTH_PX,
    collect,
    push_and_collect,
    run_engine,
    speech,
    take_window,
)

pytestmark = pytest.mark.contract

CONTEXT = 1280


async def test_a_file_gives_every_frame_exactly_once_with_its_own_sound() -> None:
    pcm = speech(5 * WINDOW_SAMPLES + 3000)
    async with run_engine() as engine:
        interface: Engine = engine
        await engine.wait_ready()
        stream = await interface.open(FILE)

        async def push() -> None:
            for first in range(0, len(pcm), 5000):
                await stream.push_audio(pcm[first : first + 5000], first)
            await stream.end_audio()

        async with asyncio.TaskGroup() as group:
            group.create_task(push())
            batches = [batch async for batch in stream]
        await stream.aclose()
    frames = np.concatenate([batch.frames for batch in batches])
    assert [read_frame_index(frame, HEIGHT_PX) for frame in frames] == list(range(72))
    assert [batch.first_frame for batch in batches] == list(range(0, 72, 4))
    assert [batch.window for batch in batches if batch.ledger] == list(range(6))
    padded = np.concatenate([pcm, np.zeros(6 * WINDOW_SAMPLES - len(pcm), np.int16)]).reshape(72, 640)
    levels = [frame_level(sound) for sound in padded]
    assert [read_level(frame, HEIGHT_PX) for frame in frames] == pytest.approx(levels, abs=0.5 / 32 + 1e-6)


async def test_a_ring_in_a_temporary_file_carries_the_frames_where_there_are_no_files_in_memory() -> None:
    made: list[int] = []

    def make_ring(name: str) -> int:
        made.append(make_temporary_file(name))
        return made[-1]

    async with run_engine(make_ring=make_ring) as engine:
        await engine.wait_ready()
        stream = await engine.open(FILE)
        frames = np.concatenate([batch.frames for batch in await push_and_collect(stream, speech(9 * WINDOW_SAMPLES))])
        await stream.aclose()
    assert len(made) == 1
    assert [read_frame_index(frame, HEIGHT_PX) for frame in frames] == list(range(108)), "round the ring three times"


async def test_the_ledger_holds_every_stage_in_order_on_one_clock() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(LIVE)
        await stream.push_audio(speech(WINDOW_SAMPLES + CONTEXT), 0)
        ledger = (await take_window(stream))[-1].ledger
        await stream.aclose()
    assert ledger is not None
    stages = [ledger.captured_s, ledger.admitted_s, ledger.features_s, *ledger.steps_s]
    stages += [ledger.decoded_s, ledger.copied_s, ledger.received_s]
    assert None not in stages
    assert stages == sorted(stages)  # type: ignore[type-var]
    assert len(ledger.steps_s) == 4
    assert (ledger.window, ledger.epoch, ledger.paced_s) == (0, 0, None)


async def test_info_is_there_while_a_worker_is_ready_and_not_before_or_after() -> None:
    async with run_engine(max_streams=2) as engine:
        assert (engine.info, engine.state) == (None, "starting")
        with pytest.raises(WorkerError, match="the engine is starting"):
            await engine.open(LIVE)
        info = await engine.wait_ready()
        assert engine.info == info
        assert (info.name, info.height_px, info.width_px, info.max_streams) == ("pattern", HEIGHT_PX, WIDTH_PX, 2)
        assert (info.right_context_s, info.num_steps, engine.state) == (0.08, 4, "ready")
    assert (engine.info, engine.state) == (None, "failed")
    with pytest.raises(WorkerError, match="the engine is closed"):
        await engine.wait_ready()


async def test_an_interrupt_drops_the_old_epoch_everywhere_and_media_time_goes_on() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(FILE)
        await stream.push_audio(speech(10 * WINDOW_SAMPLES), 0)
        first = await take_window(stream)
        assert first[-1].window == 0
        assert await stream.interrupt() == 1
        await stream.push_audio(speech(2 * WINDOW_SAMPLES), 10 * WINDOW_SAMPLES)
        after = await take_window(stream)
        await stream.aclose()
    assert {(batch.window, batch.epoch) for batch in after} == {(10, 1)}
    assert read_frame_index(after[0].frames[0], HEIGHT_PX) == 120
    assert after[-1].ledger is not None
    assert after[-1].ledger.epoch == 1


async def test_an_interrupt_in_the_middle_of_a_window_ends_it_there() -> None:
    async with run_engine(pattern={"compute_ms": 300}) as engine:
        await engine.wait_ready()
        stream = await engine.open(FILE)
        await stream.push_audio(speech(WINDOW_SAMPLES + CONTEXT), 0)
        batch = await anext(aiter(stream))
        assert batch.first_frame == 0
        await stream.interrupt()
        await stream.push_audio(speech(2 * WINDOW_SAMPLES), WINDOW_SAMPLES + CONTEXT)
        batch = await anext(aiter(stream))
        await stream.aclose()
    assert (batch.window, batch.epoch) == (1, 1)


async def test_portrait_and_parameters_change_at_a_block_edge() -> None:
    white = np.full((HEIGHT_PX, WIDTH_PX, 3), 255, np.uint8)
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(StreamRequest(portrait=white // 5, params=StreamParams(liveliness=0.5)))
        await stream.push_audio(speech(WINDOW_SAMPLES + CONTEXT), 0)
        before = np.concatenate([batch.frames for batch in await take_window(stream)])
        await stream.set_portrait(white)
        await stream.update(StreamParams(liveliness=2.0))
        await stream.push_audio(speech(WINDOW_SAMPLES), WINDOW_SAMPLES + CONTEXT)
        after = np.concatenate([batch.frames for batch in await take_window(stream)])
        await stream.aclose()
    assert {int(frame[80, 10]) for frame in before} == {60}
    assert {int(frame[80, 10]) for frame in after} == {235}
    assert [read_liveliness(frame, HEIGHT_PX) for frame in before] == pytest.approx([0.5] * 12, abs=0.01)
    assert [read_liveliness(frame, HEIGHT_PX) for frame in after] == pytest.approx([2.0] * 12, abs=0.01)


async def test_a_slow_reader_fills_its_part_of_the_ring_and_no_other_stream_waits() -> None:
    async with run_engine(max_streams=2, frame_slots=24, max_ahead_s=2.0) as engine:
        await engine.wait_ready()
        slow, quick = await engine.open(FILE), await engine.open(FILE)
        pushing = asyncio.create_task(slow.push_audio(speech(40 * WINDOW_SAMPLES), 0))
        for window in range(20):
            await quick.push_audio(speech(WINDOW_SAMPLES), window * WINDOW_SAMPLES)
            if window:
                assert (await take_window(quick))[-1].window == window - 1
        assert not pushing.done(), "the pusher waits for the reader"
        taken = [(await take_window(slow))[-1].window for _ in range(39)]
        await pushing
        assert taken == list(range(39)), "nothing was lost"
        assert slow.counters.skipped_windows == 0
        await slow.aclose()
        await quick.aclose()


async def test_a_live_stream_that_nobody_reads_skips_windows_instead_of_growing() -> None:
    async with run_engine(frame_slots=24) as engine:
        await engine.wait_ready()
        stream = await engine.open(LIVE)
        for window in range(5):
            await stream.push_audio(speech(WINDOW_SAMPLES), window * WINDOW_SAMPLES)
        while not stream.counters.skipped_windows:  # noqa: ASYNC110 - the counters tell nobody of a change
            await asyncio.sleep(0.05)
        taken = [(await take_window(stream))[-1].window]
        while taken[-1] != 3:  # Windows 0, 1 and 3, or fewer where the worker was kept from its work.
            taken.append((await take_window(stream))[-1].window)
        assert taken == sorted(taken), "those that waited for too long gave way to the newest"
        assert len(taken) + stream.counters.skipped_windows == 4
        await stream.aclose()


async def test_a_live_stream_with_a_slow_worker_loses_steps_and_a_file_does_not() -> None:
    async with run_engine(max_streams=2, pattern={"compute_ms": 460}) as engine:
        await engine.wait_ready()
        live, file = await engine.open(LIVE), await engine.open(FILE)
        num_steps: dict[str, list[int]] = {"live": [], "file": []}
        for name, stream in (("live", live), ("file", file)):
            await stream.push_audio(speech(CONTEXT), 0)
            for window in range(2):  # One at a time: the newest is always made, however late.
                await stream.push_audio(speech(WINDOW_SAMPLES), window * WINDOW_SAMPLES + CONTEXT)
                ledger = (await take_window(stream))[-1].ledger
                assert ledger is not None
                num_steps[name].append(len(ledger.steps_s))
        assert num_steps == {"live": [4, 3], "file": [4, 4]}
        assert (live.counters.reduced_windows, file.counters.reduced_windows) == (1, 0)
        await live.aclose()
        await file.aclose()


async def test_gaps_and_overlaps_are_repaired_and_counted() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(LIVE)
        loud = np.full(WINDOW_SAMPLES, 20_000, np.int16)
        await stream.push_audio(loud[:640], 0)
        await stream.push_audio(loud[:640], 1280)
        await stream.push_audio(loud[:1280], 1280)
        await stream.push_audio(loud, 2560)
        frames = np.concatenate([batch.frames for batch in await take_window(stream)])
        await stream.aclose()
    assert [read_level(frame, HEIGHT_PX) > 0.5 for frame in frames[:5]] == [True, False, True, True, True]
    assert (stream.counters.gap_samples, stream.counters.overlap_samples) == (640, 640)


async def test_a_stream_may_begin_at_any_media_time() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(LIVE)
        await stream.push_audio(speech(2 * WINDOW_SAMPLES), 500 * WINDOW_SAMPLES + 100)
        batches = await take_window(stream)
        await stream.aclose()
    assert (batches[0].window, batches[0].first_frame) == (500, 6000)
    assert stream.counters.gap_samples == 0


async def test_places_are_limited_and_come_back() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(LIVE)
        with pytest.raises(StreamLimitReached):
            await engine.open(LIVE)
        await stream.aclose()
        await stream.aclose()
        again = await engine.open(LIVE)
        await again.push_audio(speech(2 * WINDOW_SAMPLES), 0)
        assert (await take_window(again))[-1].window == 0
        await again.aclose()


async def test_wrong_requests_are_refused_with_value_and_rule() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        wrong = np.zeros((10, 10, 3), np.uint8)
        with pytest.raises(ConfigError, match=r"portrait is 'uint8 \(10, 10, 3\)', but it has to be .*\(96, 64, 3\)"):
            await engine.open(StreamRequest(portrait=wrong))
        with pytest.raises(ConfigError, match="prompt is 'smile', but the engine pattern knows no prompts"):
            await engine.open(StreamRequest(portrait=None, prompt="smile"))
        with pytest.raises(ConfigError, match="sound is '2.0 s', but the engine pattern takes no sound as a whole"):
            await engine.open(StreamRequest(portrait=None, sound=np.zeros(32_000, np.int16)))
        with pytest.raises(ConfigError, match="number of voices is 2, but the engine pattern hears one"):
            await engine.open(StreamRequest(portrait=None, sound=np.zeros((2, 0), np.int16)))
        stream = await engine.open(LIVE)
        with pytest.raises(ConfigError, match="portrait is"):
            await stream.set_portrait(wrong)
        with pytest.raises(ConfigError, match=r"pcm is 'float64 \(3,\)', but it has to be int16"):
            await stream.push_audio(np.zeros(3), 0)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="pts is -1, but it has to be 0 or more"):
            await stream.push_audio(np.zeros(3, np.int16), -1)
        await stream.push_audio(np.zeros(3, np.int16), 0)
        with pytest.raises(ConfigError, match="pts is 16000000, but it has to be at most 136960 samples after"):
            await stream.push_audio(np.zeros(3, np.int16), 16_000_000)
        await stream.end_audio()
        with pytest.raises(ConfigError, match="the audio of this stream has ended"):
            await stream.push_audio(np.zeros(3, np.int16), 3)
        await stream.aclose()
        with pytest.raises(WorkerError, match="the stream is closed"):
            await stream.interrupt()


async def test_closing_a_stream_ends_the_iteration_of_whoever_waits() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(LIVE)
        waiting = asyncio.create_task(collect(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await waiting == []


async def test_closing_the_engine_ends_its_streams() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        stream = await engine.open(LIVE)
        waiting = asyncio.create_task(collect(stream))
        await asyncio.sleep(0)
    assert await waiting == []
    await engine.aclose()


async def test_an_engine_that_is_closing_opens_no_stream() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        closing = asyncio.create_task(engine.aclose())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        opening = engine.open(LIVE)
        with pytest.raises(WorkerError, match="the engine is closed"):
            opening.send(None)  # Refused before it waits for anything.
        await closing


@pytest.mark.parametrize("warm_up_ms", [0, 60_000])
async def test_an_engine_can_be_closed_at_any_moment_of_its_start(warm_up_ms: float) -> None:
    for num_turns in (0, 1, 2, 5):
        async with run_engine(pattern={"warm_up_ms": warm_up_ms}) as engine:
            for _ in range(num_turns):
                await asyncio.sleep(0.02)
        assert engine.info is None


async def test_an_engine_that_was_never_started_can_be_closed() -> None:
    engine = WorkerEngine(EngineConfig(name="pattern"))
    await engine.aclose()
    await engine.aclose()
    assert engine.state == "failed"


async def test_the_interrupt_key_and_sigterm_leave_the_worker_alone() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        pid = engine.worker_pid
        assert pid is not None
        assert os.getsid(pid) == pid, "a session of its own: the terminal's signals do not reach it"
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        stream = await engine.open(FILE)
        assert len(await push_and_collect(stream, speech(3 * WINDOW_SAMPLES))) == 9
        await stream.aclose()
