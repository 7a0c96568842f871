"""The engine when its worker crashes, stalls, fails or is killed: streams end, and a new worker takes over."""

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.api import StreamParams
from pipeline.config import EngineConfig
from pipeline.errors import WorkerCrashed, WorkerError, WorkerStalled, WorkerStartTimeout
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.host.engine import WorkerEngine
from tests.fakes.pattern_engine import FILE, push_and_collect, run_engine, speech, take_window, wait_until

pytestmark = pytest.mark.contract


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


async def test_an_engine_whose_supervisor_fails_says_so_and_leaves_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    moments = [0.0]  # A clock that fails when it is asked a second time: how long was the worker ready?
    engine = WorkerEngine(EngineConfig(name="pattern"), now_s=moments.pop)
    engine.start()
    await engine.wait_ready()
    assert engine.worker_pid is not None
    os.kill(engine.worker_pid, signal.SIGKILL)
    await wait_until(engine, lambda: engine.state == "failed")
    with pytest.raises(WorkerError, match="the engine failed: IndexError: pop from empty list"):
        await engine.wait_ready()
    assert "the supervisor of the engine failed" in caplog.text
    await engine.aclose()


async def test_a_listener_that_fails_fails_neither_the_engine_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise BrokenPipeError

    states: list[str] = []
    async with run_engine() as engine:
        engine.watch(broken)
        engine.watch(lambda: states.append(engine.state))
        await engine.wait_ready()
        stream = await engine.open(FILE)
        await stream.aclose()
        assert (engine.state, engine.num_restarts) == ("ready", 0)
    assert states == ["ready", "failed"]
    assert [message for message in caplog.messages if "listener" in message] == [
        f"a listener failed when the engine became {state}" for state in states
    ]


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


@pytest.mark.parametrize(("fault", "loop"), [("none", "asyncio"), ("stall", "asyncio"), ("stall", "uvloop")])
async def test_a_worker_ends_when_its_server_dies(fault: str, loop: str) -> None:
    """The server is a process of its own here and is killed; nothing of it may remain."""
    script = textwrap.dedent(f"""
        import asyncio, {loop}
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

        {loop}.run(main())
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
