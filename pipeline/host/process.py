"""One worker process, from spawn to reaping, seen from the server.

Life of a worker: spawn -> hello (deadline) -> configuration -> ready after warm-up (deadline) -> messages, never
silent for longer than the stall timeout -> end. A worker that is silent for too long is asked for its stacks; if it
stays silent it is killed. What the process writes to stdout and stderr (stack dumps too) goes to the log. Its stdin is
its lifeline: nothing is ever said there, and it ends when the server does, however that may come.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pipeline
from pipeline.api import EngineInfo
from pipeline.config import EngineConfig
from pipeline.errors import WorkerCrashed, WorkerError, WorkerStalled, WorkerStartTimeout
from pipeline.host.messages import (
    PROTOCOL_VERSION,
    Configure,
    Failed,
    Heartbeat,
    Hello,
    LogRecord,
    Message,
    MessageDecoder,
    Ready,
    encode_message,
)
from pipeline.host.ring import make_ring_file

__all__ = ["WorkerProcess", "check_system", "spawn_worker"]

AnyMessage = TypeVar("AnyMessage", bound=Message)

_READ_BYTES = 1 << 16
_DUMP_S = 0.5
_OUTPUT_END_S = 1.0

_logger = logging.getLogger(__name__)
_output_logger = logging.getLogger("pipeline.worker.output")


class WorkerProcess:
    """A running worker. Made by `spawn_worker`; whoever made it calls `reap` in the end, whatever happened.

    Args:
        process: The process, its input and its output in pipes.
        control: Our end of the socket, as a stream pair.
        ring_fd: File of the frame ring; owned by this object.
        rank: Index of the worker.
        config: The engine's configuration.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        control: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        ring_fd: int,
        rank: int,
        config: EngineConfig,
    ) -> None:
        self._process = process
        self._reader, self._writer = control
        self._rank = rank
        self._config = config
        self._decoder = MessageDecoder()
        self._output_task = asyncio.create_task(self._log_output(), name=f"worker-{rank}-output")
        self._inbox: deque[Message] = deque()
        self.ring_fd = ring_fd
        self.is_failure_permanent = False
        """Whether the worker reported an error that a restart would repeat."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Put a message on its way without waiting; to a worker that is gone it does nothing.

        Args:
            message: The message.
        """
        if not self._writer.is_closing():
            self._writer.write(encode_message(message))

    async def drain(self) -> None:
        """Wait until the worker has taken most of what was sent; returns at once if it is gone."""
        with suppress(ConnectionError):
            await self._writer.drain()

    async def start(self) -> EngineInfo:
        """Bring the worker from hello to ready.

        Returns:
            What its engine can do.

        Raises:
            WorkerStartTimeout: A deadline passed.
            WorkerError: It ended or reported an error.
        """
        config = self._config
        hello = await self._wait_for(Hello, timeout_s=config.hello_timeout_s)
        if hello.protocol_version != PROTOCOL_VERSION:
            self.is_failure_permanent = True
            raise WorkerError(
                f"worker speaks protocol version {hello.protocol_version}, but the server speaks {PROTOCOL_VERSION}"
            )
        self.send(
            Configure(
                rank=self._rank,
                config_json=config.model_dump_json(),
                log_level=logging.getLogger("pipeline").getEffectiveLevel(),
            )
        )
        return (await self._wait_for(Ready, timeout_s=config.ready_timeout_s)).info

    async def receive(self) -> Message:
        """Receive the next message of the ready worker, log records and heartbeats aside. Cancelling loses nothing.

        Returns:
            The message.

        Raises:
            WorkerStalled: It was silent for too long; its stacks are in the log.
            WorkerCrashed: It ended without an error message.
            WorkerError: It reported an error, or spoke nonsense.
        """
        while not self._inbox:
            if not await self._read_within(self._config.stall_timeout_s):
                silent_s = self._config.stall_timeout_s
                _logger.error("worker %d is silent, asking for its stacks", self._rank, extra={"rank": self._rank})
                self._signal(signal.SIGUSR1)
                # The silence may have been our own: a loop that was blocked sees the deadline before the data.
                if not await self._read_within(_DUMP_S):
                    raise WorkerStalled(self._rank, silent_s + _DUMP_S)
        return self._inbox.popleft()

    async def wait_end(self, timeout_s: float) -> bool:
        """Wait for the process to end by itself; one that does not is asked for its stacks.

        Args:
            timeout_s: How long.

        Returns:
            Whether it has ended.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
                return True
        self._signal(signal.SIGUSR1)
        await asyncio.sleep(_DUMP_S)
        return False

    async def reap(self) -> None:
        """Make sure that the process and what it started are gone, and close what belongs to it."""
        if self._process.returncode is None:
            # macOS knows a group whose processes have all ended, and permits nothing to it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
        # The pipe ends with the process, unless a child that it left behind holds it.
        await asyncio.wait([self._output_task], timeout=_OUTPUT_END_S)
        self._output_task.cancel()
        os.close(self.ring_fd)

    async def _wait_for(self, message_class: type[AnyMessage], *, timeout_s: float) -> AnyMessage:
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while not self._inbox:
            if not await self._read_before(deadline_s):
                self._signal(signal.SIGUSR1)
                await asyncio.sleep(_DUMP_S)
                raise WorkerStartTimeout(timeout_s)
        message = self._inbox.popleft()
        if not isinstance(message, message_class):
            raise WorkerError(f"worker said {type(message).__name__}, but {message_class.__name__} was expected")
        return message

    async def _read_within(self, timeout_s: float) -> bool:
        return await self._read_before(asyncio.get_running_loop().time() + timeout_s)

    async def _read_before(self, deadline_s: float) -> bool:
        """Read once, or find the worker silent until a deadline (clock of the loop)."""
        try:
            async with asyncio.timeout_at(deadline_s):
                data = await self._reader.read(_READ_BYTES)
        except TimeoutError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            await self.wait_end(_DUMP_S)
            raise WorkerCrashed(self._rank, self._process.returncode)
        for message in self._decoder.feed(data):
            self._sort(message)
        return True

    def _sort(self, message: Message) -> None:
        match message:
            case Heartbeat():
                pass
            case LogRecord():
                logger = logging.getLogger(message.logger)
                logger.log(message.level, "%s", message.text, extra={"rank": self._rank})
            case Failed():
                self.is_failure_permanent = message.is_permanent
                _logger.error("worker %d failed\n%s", self._rank, message.traceback, extra={"rank": self._rank})
                raise WorkerError(message.text or message.error)
            case _:
                self._inbox.append(message)

    async def _log_output(self) -> None:
        output = self._process.stdout
        assert output is not None, "the process was made with a pipe"
        while chunk := await output.read(_READ_BYTES):
            text = chunk.decode(errors="replace").rstrip()
            _output_logger.warning("worker %d: %s", self._rank, text, extra={"rank": self._rank})

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


def check_system(name: str) -> None:
    """Check that this is a system on which workers run.

    Args:
        name: What `os.name` says.

    Raises:
        WorkerError: It is none; says what is needed.
    """
    if name != "posix":
        system = {"nt": "Windows"}.get(name, name)
        raise WorkerError(f"{system} is not supported: visavis needs Linux or macOS (or Linux within Windows, WSL 2)")


async def spawn_worker(
    config: EngineConfig, *, rank: int, make_ring: Callable[[str], int] = make_ring_file
) -> WorkerProcess:
    """Start a worker process.

    Args:
        config: The engine's configuration.
        rank: Index of the worker.
        make_ring: Makes the file of the frame ring.

    Returns:
        The process; it has not said anything yet.

    Raises:
        WorkerError: The system refused.
    """
    name = f"visavis-w{rank}"
    try:
        ring_fd = make_ring(f"{name}-frames")
    except OSError as exc:
        raise WorkerError(f"worker {rank} cannot be started: {exc}") from exc
    try:
        ours, theirs = socket.socketpair()
    except OSError as exc:
        os.close(ring_fd)
        raise WorkerError(f"worker {rank} cannot be started: {exc}") from exc
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pipeline.worker", "--name", name),
            *("--control-fd", str(theirs.fileno()), "--ring-fd", str(ring_fd)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(theirs.fileno(), ring_fd),
            start_new_session=True,
            cwd=Path(pipeline.__path__[0]).parent,
        )
    except BaseException as exc:
        ours.close()
        os.close(ring_fd)
        if isinstance(exc, OSError):
            raise WorkerError(f"worker {rank} cannot be started: {exc}") from exc
        raise
    finally:
        theirs.close()
    control = await asyncio.open_unix_connection(sock=ours)
    return WorkerProcess(process, control=control, ring_fd=ring_fd, rank=rank, config=config)
