"""A small pattern engine with a real worker process, and what tests do with its streams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.api import FrameBatch, Stream, StreamRequest
from pipeline.config import EngineConfig, PatternConfig
from pipeline.host.engine import WorkerEngine
from pipeline.host.ring import make_ring_file

HEIGHT_PX, WIDTH_PX = 96, 64
FILE = StreamRequest(portrait=None, live=False)
LIVE = StreamRequest(portrait=None)


@asynccontextmanager
async def run_engine(
    *, pattern: dict[str, Any] | None = None, make_ring: Callable[[str], int] = make_ring_file, **settings: Any
) -> AsyncIterator[WorkerEngine]:
    """Run a small pattern engine with short restart pauses."""
    config = EngineConfig(
        name="pattern",
        pattern=PatternConfig(height_px=HEIGHT_PX, width_px=WIDTH_PX, **(pattern or {})),
        **{"restart_delay_s": 0.05, "heartbeat_s": 0.1, "stall_timeout_s": 5.0, **settings},
    )
    engine = WorkerEngine(config, make_ring=make_ring)
    engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def speech(num_samples: int, seed: int = 0) -> NDArray[np.int16]:
    """Noise that gets louder and louder."""
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


async def collect(stream: Stream) -> list[FrameBatch]:
    """Take all frames until the stream ends."""
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
