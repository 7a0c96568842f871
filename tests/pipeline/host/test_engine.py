"""The engine with a real worker process and the pattern model."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.api import Engine, FrameBatch, Stream, StreamParams, StreamRequest
from pipeline.config import EngineConfig, PatternConfig
from pipeline.errors import (
    ConfigError,
    StreamLimitReached,
    WorkerCrashed,
    WorkerError,
    WorkerStalled,
    WorkerStartTimeout,
)
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.host.engine import WorkerEngine
from pipeline.worker.pattern import frame_level, read_frame_index, read_level, read_liveliness

pytestmark = pytest.mark.contract

HEIGHT_PX, WIDTH_PX = 96, 64
FILE = StreamRequest(portrait=None, live=False)
LIVE = StreamRequest(portrait=None)
CONTEXT = 1280


@asynccontextmanager
async def run_engine(*, pattern: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[WorkerEngine]:
    """Run a small pattern engine with short restart pauses."""
    config = EngineConfig(
        name="pattern",
        pattern=PatternConfig(height_px=HEIGHT_PX, width_px=WIDTH_PX, **(pattern or {})),
        **{"restart_delay_s": 0.05, "heartbeat_s": 0.1, "stall_timeout_s": 5.0, **settings},
    )
    engine = WorkerEngine(config)
    engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def speech(num_samples: int, seed: int = 0) -> NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=num_samples) * np.linspace(10, 9000, num_samples)).astype(np.int16)


async def take_window(stream: Stream) -> list[FrameBatch]:
    """Take the batches of one window."""
    batches = [await anext(aiter(stream))]
    while batches[-1].ledger is None:
        batches.append(await anext(aiter(stream)))
    return batches


async def wait_until(engine: WorkerEngine, condition: Callable[[], bool]) -> None:
    """Wait for the engine to change until a condition holds."""
    changed = asyncio.Event()
    unwatch = engine.watch(changed.set)
    async with asyncio.timeout(20):
        while not condition():
            await changed.wait()
            changed.clear()
    unwatch()


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
        assert (await take_window(stream))[-1].window == 0
        assert (await take_window(stream))[-1].window == 1
        assert (await take_window(stream))[-1].window == 3, "window 2 waited for too long and gave way to the newest"
        await stream.aclose()


async def test_a_live_stream_with_a_slow_worker_loses_steps_and_a_file_does_not() -> None:
    async with run_engine(max_streams=2, pattern={"compute_ms": 460}) as engine:
        await engine.wait_ready()
        live, file = await engine.open(LIVE), await engine.open(FILE)
        num_steps: dict[str, list[int]] = {"live": [], "file": []}
        for name, stream in (("live", live), ("file", file)):
            await stream.push_audio(speech(3 * WINDOW_SAMPLES), 0)
            for _ in range(2):
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


async def test_a_crash_ends_the_streams_and_a_new_worker_takes_over() -> None:
    async with run_engine(pattern={"fault": "crash", "fault_window": 2}) as engine:
        await engine.wait_ready()
        first_pid = engine.worker_pid
        stream = await engine.open(FILE)
        with pytest.raises(WorkerCrashed) as caught:
            await push_and_collect(stream, speech(6 * WINDOW_SAMPLES))
        assert (caught.value.rank, caught.value.exit_code) == (0, 3)
        with pytest.raises(WorkerCrashed):
            await stream.push_audio(speech(100), 6 * WINDOW_SAMPLES)
        with pytest.raises(WorkerCrashed):
            await stream.update(StreamParams())
        await stream.aclose()
        assert engine.info is None
        await engine.wait_ready()
        assert engine.worker_pid != first_pid
        assert (engine.num_restarts, engine.state) == (1, "ready")
        again = await engine.open(FILE)
        await again.push_audio(speech(2 * WINDOW_SAMPLES), 0)
        assert (await take_window(again))[-1].window == 0
        await again.aclose()


async def test_a_stalled_worker_leaves_its_stacks_and_is_killed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with run_engine(pattern={"fault": "stall", "fault_window": 1}, stall_timeout_s=1.5) as engine:
        await engine.wait_ready()
        states: list[str] = []
        engine.watch(lambda: states.append(engine.state))
        stream = await engine.open(FILE)
        with pytest.raises(WorkerStalled) as caught:
            await push_and_collect(stream, speech(3 * WINDOW_SAMPLES))
        assert caught.value.silent_s >= 1.5
        await stream.aclose()
        await engine.wait_ready()
        assert states == ["restarting", "ready"]
    assert "pattern.py" in caplog.text, "the dump names the place"
    assert "stalling, as the configuration asks for" in caplog.text, "the worker's log arrives"
    assert {record.rank for record in caplog.records if record.name == "pipeline.worker.pattern"} == {0}  # type: ignore[attr-defined]


async def test_an_error_in_the_model_ends_its_stream_and_no_other() -> None:
    async with run_engine(max_streams=2, pattern={"fault": "raise", "fault_window": 3}) as engine:
        await engine.wait_ready()
        pid = engine.worker_pid
        broken, sound = await engine.open(FILE), await engine.open(FILE)
        with pytest.raises(WorkerError, match="RuntimeError: failing, as the configuration asks for"):
            await push_and_collect(broken, speech(6 * WINDOW_SAMPLES))
        await broken.aclose()
        assert len(await push_and_collect(sound, speech(2 * WINDOW_SAMPLES))) == 6
        await sound.aclose()
        assert engine.worker_pid == pid
        replacement = await engine.open(FILE)
        assert len(await push_and_collect(replacement, speech(2 * WINDOW_SAMPLES))) == 6
        await replacement.aclose()


async def test_an_engine_that_never_gets_ready_is_given_up() -> None:
    pattern = {"fault": "crash", "fault_at_warm_up": True}
    async with run_engine(pattern=pattern, max_restarts=1) as engine:
        with pytest.raises(WorkerCrashed):
            await engine.wait_ready()
        assert (engine.state, engine.num_restarts) == ("failed", 1)


async def test_a_warm_up_that_hangs_runs_into_its_deadline() -> None:
    pattern = {"fault": "stall", "fault_at_warm_up": True}
    async with run_engine(pattern=pattern, ready_timeout_s=1.0, max_restarts=0) as engine:
        with pytest.raises(WorkerStartTimeout):
            await engine.wait_ready()


async def test_an_error_at_warm_up_is_reported_in_the_workers_own_words() -> None:
    pattern = {"fault": "raise", "fault_at_warm_up": True}
    async with run_engine(pattern=pattern, max_restarts=0) as engine:
        with pytest.raises(WorkerError, match="^failing, as the configuration asks for$"):
            await engine.wait_ready()


async def test_missing_weights_are_not_tried_again(tmp_path: Path) -> None:
    engine = WorkerEngine(EngineConfig(name="embedded", weights_dir=tmp_path, restart_delay_s=0.05))
    engine.start()
    with pytest.raises(WorkerError, match=str(tmp_path)):
        await engine.wait_ready()
    assert (engine.state, engine.num_restarts) == ("failed", 0)
    await engine.aclose()


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


async def test_a_worker_killed_from_outside_is_replaced() -> None:
    async with run_engine() as engine:
        await engine.wait_ready()
        pid = engine.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_until(engine, lambda: engine.state == "ready" and engine.num_restarts == 1)
        assert isinstance(engine.failure, WorkerCrashed)
        assert engine.failure.exit_code == -signal.SIGKILL


async def test_a_worker_that_ignores_the_shutdown_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    pattern = {"fault": "stall", "fault_window": 0}
    async with run_engine(pattern=pattern, shutdown_timeout_s=0.2) as engine:
        await engine.wait_ready()
        stream = await engine.open(FILE)
        await stream.push_audio(speech(2 * WINDOW_SAMPLES), 0)
        while "stalling" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody of a change
            await asyncio.sleep(0.01)
    assert "does not end and is killed" in caplog.text


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_stream_that_a_busy_worker_does_not_open_is_given_up(
    is_killed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_engine(
        pattern={"fault": "stall"}, max_streams=2, open_timeout_s=30 if is_killed else 0.3, shutdown_timeout_s=0.2
    ) as engine:
        await engine.wait_ready()
        stream = await engine.open(FILE)
        await stream.push_audio(speech(2 * WINDOW_SAMPLES), 0)
        while "stalling" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody of a change
            await asyncio.sleep(0.01)
        opening = asyncio.create_task(engine.open(FILE))
        await asyncio.sleep(0)
        if is_killed:
            assert engine.worker_pid is not None
            os.kill(engine.worker_pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="exit code -9" if is_killed else "the stream was not open after 0.3 s"):
            await opening
        await stream.aclose()


@pytest.mark.parametrize("fault", ["none", "stall"])
async def test_a_worker_ends_when_its_server_dies(fault: str) -> None:
    """The server is a process of its own here and is killed; nothing of it may remain."""
    script = textwrap.dedent(f"""
        import asyncio, sys
        import numpy as np
        from pipeline.api import StreamRequest
        from pipeline.config import EngineConfig, PatternConfig
        from pipeline.host.engine import WorkerEngine

        async def main():
            engine = WorkerEngine(EngineConfig(name="pattern", pattern=PatternConfig(fault="{fault}")))
            engine.start()
            await engine.wait_ready()
            stream = await engine.open(StreamRequest(portrait=None))
            await stream.push_audio(np.zeros(16000, np.int16), 0)
            print(engine.worker_pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    worker_pid = int(await server.stdout.readline())
    pid_fd = os.pidfd_open(worker_pid)
    server.kill()
    await server.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pid_fd, ended.set)
    async with asyncio.timeout(10):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(pid_fd)
    os.close(pid_fd)


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


async def collect(stream: Stream) -> list[FrameBatch]:
    return [batch async for batch in stream]


async def push_and_collect(stream: Stream, pcm: NDArray[np.int16]) -> list[FrameBatch]:
    """Push everything and take all frames; the first error ends both."""

    async def push() -> None:
        await stream.push_audio(pcm, 0)
        await stream.end_audio()

    pushing: Awaitable[None] = asyncio.ensure_future(push())
    try:
        return await collect(stream)
    finally:
        await asyncio.gather(pushing, return_exceptions=True)
