"""A worker process whose words are the test's: the process only sleeps, the other end of its socket is held here."""

import asyncio
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pipeline.config import EngineConfig
from pipeline.errors import WorkerCrashed, WorkerError, WorkerStalled
from pipeline.host import messages as m
from pipeline.host.process import WorkerProcess, check_system, spawn_worker
from pipeline.host.ring import make_ring_file

pytestmark = pytest.mark.contract

CONFIG = EngineConfig(name="pattern", heartbeat_s=0.05, stall_timeout_s=0.2, hello_timeout_s=20)
SLEEP = "import signal, time; signal.signal(signal.SIGUSR1, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@asynccontextmanager
async def puppet() -> AsyncIterator[tuple[WorkerProcess, socket.socket]]:
    """Start a process that ignores everything, and hold the socket that it should speak through."""
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SLEEP),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    control = await asyncio.open_unix_connection(sock=ours)
    worker = WorkerProcess(process, control=control, ring_fd=make_ring_file("visavis-test"), rank=3, config=CONFIG)
    try:
        yield worker, theirs
    finally:
        await worker.reap()
        theirs.close()


def say(speaker: socket.socket, *messages: m.Message) -> None:
    speaker.sendall(b"".join(m.encode_message(message) for message in messages))


async def test_another_protocol_version_is_refused_for_good() -> None:
    async with puppet() as (worker, speaker):
        say(speaker, m.Hello(pid=1, protocol_version=99))
        with pytest.raises(WorkerError, match="speaks protocol version 99, but the server speaks 1"):
            await worker.start()
        assert worker.is_failure_permanent


async def test_words_out_of_order_are_an_error() -> None:
    async with puppet() as (worker, speaker):
        say(speaker, m.StreamOpened(stream=0))
        with pytest.raises(WorkerError, match="worker said StreamOpened, but Hello was expected"):
            await worker.start()


async def test_nonsense_on_the_socket_is_an_error() -> None:
    async with puppet() as (worker, speaker):
        speaker.sendall(b"\xff" * 100)
        with pytest.raises(WorkerError, match="message header has"):
            await worker.receive()


async def test_a_silent_worker_is_stalled_and_heartbeats_are_no_silence() -> None:
    async with puppet() as (worker, speaker):
        receiving = asyncio.create_task(worker.receive())
        for _ in range(8):
            say(speaker, m.Heartbeat())
            await asyncio.sleep(0.05)
        assert not receiving.done()
        with pytest.raises(WorkerStalled) as caught:
            await receiving
        assert caught.value.rank == 3


async def test_a_worker_that_speaks_up_when_asked_is_not_stalled(caplog: pytest.LogCaptureFixture) -> None:
    async with puppet() as (worker, speaker):
        receiving = asyncio.create_task(worker.receive())
        while "asking for its stacks" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody of a change
            await asyncio.sleep(0.01)
        say(speaker, m.AudioDone(stream=4))
        assert await receiving == m.AudioDone(stream=4)


async def test_a_closed_socket_is_a_crash_even_if_the_process_lingers() -> None:
    async with puppet() as (worker, speaker):
        speaker.close()
        with pytest.raises(WorkerCrashed) as caught:
            await worker.receive()
        assert (caught.value.rank, caught.value.exit_code) == (3, None)


async def test_a_reported_failure_is_raised_in_the_workers_words() -> None:
    async with puppet() as (worker, speaker):
        say(speaker, m.Failed(error="WeightsError", text="weights x: damaged", traceback="", is_permanent=True))
        with pytest.raises(WorkerError, match="^weights x: damaged$"):
            await worker.receive()
        assert worker.is_failure_permanent


async def test_sending_to_a_worker_that_is_gone_does_nothing() -> None:
    async with puppet() as (worker, speaker):
        speaker.close()
        with pytest.raises(WorkerCrashed):
            await worker.receive()
        for _ in range(3):
            worker.send(m.Shutdown())
            await worker.drain()


async def test_reaping_leaves_neither_process_nor_ring() -> None:
    async with puppet() as (worker, _):
        pid, ring_fd = worker.pid, worker.ring_fd
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ring_fd)


async def test_a_server_that_is_out_of_files_cannot_start_a_worker_and_says_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(WorkerError, match="cannot be started: .*Too many open files"):
            await spawn_worker(CONFIG, rank=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_system_without_what_a_worker_needs_is_refused_in_one_line() -> None:
    check_system("posix")
    with pytest.raises(WorkerError, match=r"^Windows is not supported: visavis needs Linux or macOS [^\n]*$"):
        check_system("nt")
    with pytest.raises(WorkerError, match="^java is not supported"):
        check_system("java")
