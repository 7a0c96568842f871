"""An engine in memory: makes a window as soon as its sound is complete, and fails when it is told to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.api import EngineInfo, FrameBatch, StreamCounters, StreamParams, StreamRequest, WindowLedger
from pipeline.errors import StreamLimitReached, WorkerCrashed, WorkerError
from pipeline.geometry import FRAMES_PER_BLOCK, WINDOW_SAMPLES
from server.clock import Clock
from server.engine import EngineState

INFO = EngineInfo(
    name="fake",
    height_px=16,
    width_px=16,
    num_steps=4,
    right_context_s=0.08,
    warm_window_s=0.1,
    warm_start_s=0.1,
    max_streams=2,
    accepts_prompt=False,
    accepts_portrait=True,
    notes=("is not real",),
)
RIGHT_CONTEXT_SAMPLES = 1280


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass
class FakeStream:
    """Every pixel of frame `i` is `i % 200`, so that a test can tell frames apart."""

    request: StreamRequest
    clock: Clock
    skipped_windows: frozenset[int] = frozenset()
    pushed: list[tuple[int, NDArray[np.int16]]] = field(default_factory=list)
    params: list[StreamParams] = field(default_factory=list)
    portraits: list[NDArray[np.uint8]] = field(default_factory=list)
    epoch: int = 0
    is_closed: bool = False
    failure: WorkerError | None = None
    windows_made: int = 0
    counters: StreamCounters = field(default_factory=StreamCounters)
    interrupt_gate: asyncio.Event = field(default_factory=_open_gate)

    def __post_init__(self) -> None:
        self._batches: asyncio.Queue[FrameBatch | None] = asyncio.Queue()

    async def push_audio(self, pcm: NDArray[np.int16], pts: int) -> None:
        self._check()
        assert pts == (self.pushed[-1][0] + len(self.pushed[-1][1]) if self.pushed else pts)
        self.pushed.append((pts, pcm.copy()))
        while pts + len(pcm) >= (self.windows_made + 1) * WINDOW_SAMPLES + RIGHT_CONTEXT_SAMPLES:
            self._make(self.windows_made)
            self.windows_made += 1

    async def interrupt(self) -> int:
        self._check()
        self.epoch += 1
        await self.interrupt_gate.wait()
        return self.epoch

    async def update(self, params: StreamParams) -> None:
        self._check()
        self.params.append(params)

    async def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        self._check()
        self.portraits.append(portrait)

    async def __aiter__(self) -> AsyncIterator[FrameBatch]:
        while True:
            batch = await self._batches.get()
            if self.failure is not None:
                raise self.failure
            if batch is None:
                return
            yield batch

    async def aclose(self) -> None:
        self.is_closed = True
        self._batches.put_nowait(None)

    def crash(self) -> None:
        self.failure = WorkerCrashed(0, -9)
        self._batches.put_nowait(None)

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _make(self, window: int) -> None:
        if window in self.skipped_windows:
            self.counters.skipped_windows += 1
            return
        first = window * FRAMES_PER_BLOCK
        frames = np.stack([np.full((24, 16), (first + i) % 200, np.uint8) for i in range(FRAMES_PER_BLOCK)])
        now_s = self.clock.now_s()
        ledger = WindowLedger(
            window=window,
            epoch=self.epoch,
            captured_s=now_s - 0.08,
            admitted_s=now_s,
            features_s=now_s,
            steps_s=(now_s,) * 4,
            decoded_s=now_s,
            copied_s=now_s,
        )
        half = FRAMES_PER_BLOCK // 2
        for offset, part in ((0, frames[:half]), (half, frames[half:])):
            self._batches.put_nowait(
                FrameBatch(
                    window=window,
                    epoch=self.epoch,
                    first_frame=first + offset,
                    frames=part,
                    ledger=ledger if offset else None,
                )
            )


class FakeEngine:
    """Implements `server.engine.WatchedEngine`."""

    def __init__(self, clock: Clock, info: EngineInfo = INFO, *, skipped_windows: frozenset[int] = frozenset()) -> None:
        self._clock = clock
        self._info = info
        self._skipped_windows = skipped_windows
        self._listeners: list[Callable[[], None]] = []
        self.state: EngineState = "ready"
        self.num_restarts = 0
        self.streams: list[FakeStream] = []
        self.refusals: list[WorkerError] = []
        self.open_gate = _open_gate()

    @property
    def info(self) -> EngineInfo | None:
        return self._info if self.state == "ready" else None

    @property
    def num_open(self) -> int:
        return sum(not stream.is_closed for stream in self.streams)

    def watch(self, listener: Callable[[], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def become(self, state: EngineState) -> None:
        """Change the state; a worker that goes away takes its streams with it."""
        self.state = state
        if state == "restarting":
            self.num_restarts += 1
            for stream in self.streams:
                stream.crash()
        for listener in list(self._listeners):
            listener()

    def resize(self, *, height_px: int, width_px: int) -> None:
        """Come back with another frame; streams still make the old one."""
        self._info = replace(self._info, height_px=height_px, width_px=width_px)

    async def open(self, request: StreamRequest) -> FakeStream:
        if self.refusals:
            raise self.refusals.pop(0)
        if self.state != "ready":
            raise WorkerError(f"the engine is {self.state}")
        if self.num_open >= self._info.max_streams:
            raise StreamLimitReached(self._info.max_streams)
        await self.open_gate.wait()
        stream = FakeStream(request, self._clock, skipped_windows=self._skipped_windows)
        self.streams.append(stream)
        return stream

    async def aclose(self) -> None:
        for stream in self.streams:
            await stream.aclose()
