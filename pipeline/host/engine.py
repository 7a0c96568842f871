"""The engine in a worker process: implements `pipeline.api.Engine`, and keeps the worker alive.

States: `starting` until the first worker is ready, `ready`, `restarting` from a failure until the next worker is ready,
`failed` when there is no worker and there will be none: restarting was given up, or the engine was closed. Streams of a
worker that dies end with its error.

Order of `aclose`, which is the order of a shutdown:

1. the state becomes `failed`: `open` refuses, and no worker is started any more;
2. open streams end as if closed by their users, who may be waiting in them;
3. a ready worker is told to shut down and may finish the batch it is making; one that is not ready is killed;
4. one that has not ended within `shutdown_timeout_s` leaves its stacks in the log and is killed;
5. the process is reaped, its output read to the end, its socket closed, the frame ring unmapped and given back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.api import EngineInfo, StreamRequest
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, StreamLimitReached, WorkerError
from pipeline.geometry import SAMPLE_RATE_HZ
from pipeline.host import messages as m
from pipeline.host.process import WorkerProcess, check_system, spawn_worker
from pipeline.host.restart import after_failure
from pipeline.host.ring import FrameRing, make_ring_file
from pipeline.host.stream import HostStream, check_portrait, check_prompt

__all__ = ["EngineState", "WorkerEngine"]

_logger = logging.getLogger(__name__)


EngineState = Literal["starting", "ready", "restarting", "failed"]
"""What an engine is doing; the module's text says what each means."""


@dataclass(slots=True, kw_only=True)
class _Live:
    """What exists while a worker is ready."""

    worker: WorkerProcess
    ring: FrameRing
    info: EngineInfo
    ready_s: float
    free_places: set[int]
    streams: dict[int, HostStream] = field(default_factory=dict)
    opening: dict[int, asyncio.Future[None]] = field(default_factory=dict)


class WorkerEngine:
    """An engine whose model runs in a worker process. `start` begins, `aclose` ends it.

    Args:
        config: What to run.
        rank: Index of the worker.
        now_s: Monotonic clock.
        make_ring: Makes the file of the frame ring.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        rank: int = 0,
        now_s: Callable[[], float] = time.monotonic,
        make_ring: Callable[[str], int] = make_ring_file,
    ) -> None:
        self._config = config
        self._make_ring = make_ring
        self._rank = rank
        self._now_s = now_s
        self._state: EngineState = "starting"
        self._is_closed = False
        self._listeners: list[Callable[[], None]] = []
        self._settled = asyncio.Event()
        self._live: _Live | None = None
        self._supervisor_task: asyncio.Task[None] | None = None
        self._clean_up_task: asyncio.Task[None] | None = None
        self._closing_task: asyncio.Task[None] | None = None
        self._stream_numbers = itertools.count()
        self.failure: WorkerError | None = None
        """Why the last worker failed; None if none has."""
        self.num_restarts = 0
        """How often a worker was started again."""

    @property
    def info(self) -> EngineInfo | None:
        """What the engine can do; None while no worker is ready."""
        return None if self._live is None else self._live.info

    @property
    def state(self) -> EngineState:
        """What the engine is doing."""
        return self._state

    @property
    def worker_pid(self) -> int | None:
        """Process id of the ready worker."""
        return None if self._live is None else self._live.worker.pid

    def watch(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Be told of every change of state, on the loop.

        Args:
            listener: Called after the change; it must not block. What it raises is logged, and the others are told.

        Returns:
            A function that ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def start(self) -> None:
        """Start the worker and keep it alive; returns at once. To be called once, with a running loop.

        Raises:
            WorkerError: This system has no workers.
        """
        check_system(os.name)
        assert self._supervisor_task is None, "an engine is started once"
        self._supervisor_task = asyncio.create_task(self._supervise(), name=f"engine-supervisor-{self._rank}")

    async def wait_ready(self) -> EngineInfo:
        """Wait until a worker is ready; the deadlines of the configuration bound the wait.

        Returns:
            What the engine can do.

        Raises:
            WorkerError: The engine was given up or stopped.
        """
        while self._live is None:
            if self._state == "failed":
                raise self.failure or WorkerError("the engine is closed")
            await self._settled.wait()
        return self._live.info

    async def open(self, request: StreamRequest) -> HostStream:
        """Open a stream. Cancelling frees its place.

        Args:
            request: Portrait, prompt, seed and parameters.

        Returns:
            The stream.

        Raises:
            StreamLimitReached: No free place.
            ConfigError: The portrait is missing or has the wrong size, or a prompt or a whole sound was given to an
                engine that knows none.
            WorkerError: The worker is not ready or died, or the model refused.
        """
        live = self._live
        if live is None or self._is_closed:
            raise WorkerError(f"the engine is {'closed' if self._is_closed else self._state}")
        _check_request(request, live.info)
        if not live.free_places:
            raise StreamLimitReached(self._config.max_streams)
        number, place = next(self._stream_numbers), live.free_places.pop()
        stream = self._add_stream(live, number, place)
        opened = live.opening[number] = asyncio.get_running_loop().create_future()
        portrait = b"" if request.portrait is None else request.portrait.tobytes()
        sound = b"" if request.sound is None else request.sound.astype(np.int16, copy=False).tobytes()
        masks = b"" if request.masks is None else request.masks.astype(np.bool_, copy=False).tobytes()
        live.worker.send(
            m.OpenStream(
                stream=number,
                place=place,
                has_portrait=request.portrait is not None,
                prompt=request.prompt,
                seed=request.seed,
                params=request.params,
                live=request.live,
                num_sound_bytes=len(sound),
                num_voices=1 if request.masks is None else len(request.masks),
                num_mask_bytes=len(masks),
                payload=portrait + sound + masks,
            )
        )
        try:
            async with asyncio.timeout(self._config.open_timeout_s):
                await opened
        except TimeoutError as exc:
            await stream.aclose()
            raise WorkerError(f"the stream was not open after {self._config.open_timeout_s:g} s") from exc
        except BaseException:
            await stream.aclose()
            raise
        finally:
            live.opening.pop(number, None)
        return stream

    async def aclose(self) -> None:
        """Close all streams and stop the worker, in the order that the module describes; a second call does nothing.

        Cancelling stops the waiting, not the closing.
        """
        if self._closing_task is None:
            self._closing_task = asyncio.create_task(self._close(), name=f"engine-close-{self._rank}")
        await asyncio.shield(self._closing_task)

    async def _close(self) -> None:
        self._is_closed = True
        self._become("failed")
        live, supervisor_task = self._live, self._supervisor_task
        if supervisor_task is None:
            return
        has_ended = False
        if live is not None:
            for stream in list(live.streams.values()):
                await stream.aclose()
            live.worker.send(m.Shutdown())
            has_ended = await live.worker.wait_end(self._config.shutdown_timeout_s)
            if not has_ended:
                _logger.error("worker %d does not end and is killed", self._rank, extra={"rank": self._rank})
        if not has_ended:
            supervisor_task.cancel()
        await asyncio.wait([supervisor_task])
        if self._clean_up_task is not None:
            await self._clean_up_task

    async def _supervise(self) -> None:
        try:
            await self._keep_worker()
        except Exception as exc:
            # The root of the task: an engine that nobody supervises would be starting for ever.
            _logger.exception("the supervisor of the engine failed")
            self.failure = WorkerError(f"the engine failed: {type(exc).__name__}: {exc}")
            self._become("failed")

    async def _keep_worker(self) -> None:
        num_failures = 0
        while True:
            ready_for_s, is_permanent = await self._run_worker()
            if self._is_closed:
                return
            decision = after_failure(num_failures, ready_for_s=ready_for_s, config=self._config)
            num_failures = decision.num_failures
            if is_permanent or decision.delay_s is None:
                _logger.error("engine gives up at failure %d in a row: %s", num_failures, self.failure)
                self._become("failed")
                return
            _logger.warning("worker %d failed: %s; restart in %.1f s", self._rank, self.failure, decision.delay_s)
            self._become("restarting")
            await asyncio.sleep(decision.delay_s)
            self.num_restarts += 1

    async def _run_worker(self) -> tuple[float, bool]:
        """Run one worker from spawn to reaping.

        Returns:
            How long it was ready, and whether a restart would fail in the same way.
        """
        worker: WorkerProcess | None = None
        try:
            worker = await spawn_worker(self._config, rank=self._rank, make_ring=self._make_ring)
            self._live = await self._make_live(worker)
            self._become("ready")
            while True:
                self._dispatch(self._live, await worker.receive())
        except WorkerError as exc:
            if not self._is_closed:
                self.failure = exc
            ready_for_s = 0.0 if self._live is None else self._now_s() - self._live.ready_s
            return ready_for_s, worker is not None and worker.is_failure_permanent
        finally:
            # A task of its own, because closing the engine may cancel this one in the middle of it.
            self._clean_up_task = asyncio.create_task(self._clean_up(worker), name=f"worker-clean-up-{self._rank}")
            await asyncio.shield(self._clean_up_task)

    async def _make_live(self, worker: WorkerProcess) -> _Live:
        info = await worker.start()
        frame_shape = (info.height_px * 3 // 2, info.width_px)
        num_slots = self._config.frame_slots * info.max_streams
        ring = FrameRing(worker.ring_fd, num_slots=num_slots, frame_shape=frame_shape, is_owner=True)
        worker.send(m.AttachRing(num_slots=num_slots, slot_bytes=frame_shape[0] * frame_shape[1]))
        return _Live(
            worker=worker, ring=ring, info=info, ready_s=self._now_s(), free_places=set(range(info.max_streams))
        )

    async def _clean_up(self, worker: WorkerProcess | None) -> None:
        live, self._live = self._live, None
        if live is not None:
            if self._state == "ready":
                self._become("restarting")
            failure = self.failure or WorkerError("the engine is closed")
            for opened in live.opening.values():
                if not opened.done():
                    opened.set_exception(failure)
            for stream in live.streams.values():
                stream.fail(failure)
            live.ring.close()
        if worker is not None:
            await worker.reap()

    def _add_stream(self, live: _Live, number: int, place: int) -> HostStream:
        def free() -> None:
            del live.streams[number]
            live.free_places.add(place)

        live.streams[number] = HostStream(
            number,
            worker=live.worker,
            ring=live.ring,
            info=live.info,
            config=self._config,
            on_close=free,
            now_s=self._now_s,
        )
        return live.streams[number]

    def _dispatch(self, live: _Live, message: m.Message) -> None:
        number = getattr(message, "stream", None)
        if number is None:
            raise WorkerError(f"worker said {type(message).__name__} out of turn")
        opened = live.opening.get(number)
        match message:
            case m.StreamOpened():
                if opened is not None and not opened.done():
                    opened.set_result(None)
            case m.StreamFailed():
                self._fail_stream(live, message)
            case _:
                # A closed stream's last messages are still on their way; its place was freed, its slots are free too.
                if (stream := live.streams.get(number)) is not None:
                    stream.handle(message)

    def _fail_stream(self, live: _Live, message: m.StreamFailed) -> None:
        _logger.error("stream %d failed\n%s", message.stream, message.traceback, extra={"rank": self._rank})
        failure = WorkerError(f"the stream failed in the worker: {message.error}: {message.text}")
        opened = live.opening.get(message.stream)
        if opened is not None and not opened.done():
            opened.set_exception(failure)
        elif (stream := live.streams.get(message.stream)) is not None:
            stream.fail(failure)

    def _become(self, state: EngineState) -> None:
        if state == self._state:
            return
        self._state = state
        if state in ("ready", "failed"):
            self._settled.set()
        else:
            self._settled.clear()
        _logger.info("engine is %s", "closed" if self._is_closed else state)
        for listener in list(self._listeners):
            try:
                listener()
            except Exception:
                # What watches the engine may fail; the engine and the others that watch it go on.
                _logger.exception("a listener failed when the engine became %s", state)


def _check_request(request: StreamRequest, info: EngineInfo) -> None:
    check_prompt(request.prompt, info)
    check_prompt(request.params.prompt, info)
    if request.sound is not None:
        _check_sound(request.sound, request.masks, info)
    if request.portrait is not None:
        check_portrait(request.portrait, info)
    elif info.accepts_portrait:
        raise ConfigError("portrait", None, f"the engine {info.name} needs one")


def _check_sound(sound: NDArray[np.int16], masks: NDArray[np.bool_] | None, info: EngineInfo) -> None:
    duration_s = sound.shape[-1] / SAMPLE_RATE_HZ
    if duration_s > info.longest_whole_s:
        limit = f"at most {info.longest_whole_s:g} s" if info.longest_whole_s else "no sound"
        raise ConfigError("sound", f"{duration_s:.1f} s", f"the engine {info.name} takes {limit} as a whole")
    if sound.ndim == 1 and masks is None:
        return
    if not info.px_per_token:
        raise ConfigError("number of voices", len(sound), f"the engine {info.name} hears one")
    tokens = (info.height_px // info.px_per_token, info.width_px // info.px_per_token)
    given = None if masks is None else masks.shape
    if given != (len(sound), *tokens) or sound.ndim != 2:
        raise ConfigError(
            "shape of masks", given, f"for sounds of shape {sound.shape} it has to be (voices, *{tokens})"
        )
