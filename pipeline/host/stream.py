"""One stream, seen from the server: implements `pipeline.api.Stream` on top of messages and the frame ring."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.api import EngineInfo, FrameBatch, StreamCounters, StreamParams
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, WorkerError
from pipeline.geometry import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from pipeline.host import messages as m
from pipeline.host.ring import FrameRing

__all__ = ["HostStream", "MessageSink", "check_portrait", "check_prompt"]

_logger = logging.getLogger(__name__)


class MessageSink(Protocol):
    """Where a stream's messages go."""

    def send(self, message: m.Message) -> None:
        """Put a message on its way."""

    async def drain(self) -> None:
        """Wait until most of what was sent is taken."""


class HostStream:
    """A stream of a worker. Made by the engine.

    Pushing and iterating are for one task each; they may be different ones.

    Args:
        number: Number of the stream.
        worker: Where its messages go.
        ring: Where its frames lie.
        info: What the engine can do.
        config: The engine's configuration.
        on_close: Called once when the stream is closed by its user.
        now_s: Monotonic clock.
    """

    def __init__(
        self,
        number: int,
        *,
        worker: MessageSink,
        ring: FrameRing,
        info: EngineInfo,
        config: EngineConfig,
        on_close: Callable[[], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._number = number
        self._worker = worker
        self._ring = ring
        self._info = info
        self._max_ahead_samples = int(config.max_ahead_s * SAMPLE_RATE_HZ)
        self._on_close = on_close
        self._now_s = now_s
        self._failure: WorkerError | None = None
        self._is_closed = False
        self._epoch = 0
        self._made: deque[tuple[m.FramesMade, float]] = deque()
        self._end = 0
        self._done = 0
        self._is_fresh = True
        self._is_ended = False
        self._is_audio_done = False
        self._frames_changed = asyncio.Event()
        self._credit_changed = asyncio.Event()
        self.counters = StreamCounters()
        """What happened so far; read it at any time."""

    async def push_audio(self, pcm: NDArray[np.int16], pts: int) -> None:
        """Add sound; waits while `max_ahead_s` of it is unprocessed. Cancelling leaves a part of the sound pushed.

        Args:
            pcm: 16 kHz mono, (num_samples,).
            pts: Index of the first sample; `Stream.push_audio` has the rules.

        Raises:
            WorkerError: The worker died; the stream is over.
            ConfigError: Not int16 or not mono, after `end_audio`, or a gap that is too long.
        """
        self._check_open()
        if self._is_ended:
            raise ConfigError("pcm", f"{len(pcm)} samples", "the audio of this stream has ended")
        self._check_sound(pcm, pts)
        overlap = min(max(0, self._end - pts), len(pcm))
        self.counters.overlap_samples += overlap
        for first in range(overlap, len(pcm), WINDOW_SAMPLES):
            piece = pcm[first : first + WINDOW_SAMPLES]
            await self._push_piece(piece, pts + first)
        await self._worker.drain()

    async def end_audio(self) -> None:
        """Say that no more sound will come; iteration ends after the last frames. A second call does nothing.

        Raises:
            WorkerError: The worker died; the stream is over.
        """
        self._check_open()
        if not self._is_ended:
            self._is_ended = True
            await self._send(m.EndAudio(stream=self._number))

    async def interrupt(self) -> int:
        """Begin a new epoch and drop what is under way.

        Returns:
            The new epoch.

        Raises:
            WorkerError: The worker died; the stream is over.
        """
        self._check_open()
        self._epoch += 1
        self._is_fresh = True
        self._advance(self._end // WINDOW_SAMPLES * WINDOW_SAMPLES)
        while self._made:
            self._drop(self._made.popleft()[0])
        await self._send(m.Interrupt(stream=self._number, epoch=self._epoch))
        return self._epoch

    async def update(self, params: StreamParams) -> None:
        """Change the parameters at the next block edge.

        Args:
            params: The parameters.

        Raises:
            ConfigError: A prompt was given to an engine that knows none.
            WorkerError: The worker died; the stream is over.
        """
        self._check_open()
        check_prompt(params.prompt, self._info)
        await self._send(m.UpdateParams(stream=self._number, params=params))

    async def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Change the portrait at the next block edge.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).

        Raises:
            WorkerError: The worker died; the stream is over.
            ConfigError: The portrait has the wrong size or type.
        """
        self._check_open()
        check_portrait(portrait, self._info)
        await self._send(m.SetPortrait(stream=self._number, payload=portrait.tobytes()))

    def __aiter__(self) -> HostStream:
        """Iterate over the frame batches."""
        return self

    async def __anext__(self) -> FrameBatch:
        """Wait for the next batch. Cancelling loses nothing.

        Returns:
            The batch.

        Raises:
            StopAsyncIteration: The stream was closed, or its audio ended and this was all.
            WorkerError: The worker died; the stream is over.
        """
        while not self._made:
            if self._failure is not None:
                raise self._failure
            if self._is_closed or self._is_audio_done:
                raise StopAsyncIteration
            self._frames_changed.clear()
            await self._frames_changed.wait()
        made, received_s = self._made.popleft()
        frames = self._ring.read(made.slots)
        self._release(made)
        return FrameBatch(
            window=made.window,
            epoch=made.epoch,
            first_frame=made.first_frame,
            frames=frames,
            ledger=None if made.ledger is None else dataclasses.replace(made.ledger, received_s=received_s),
        )

    async def aclose(self) -> None:
        """End the stream and free its place; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._made.clear()
        self._wake()
        self._worker.send(m.CloseStream(stream=self._number))
        self._on_close()
        self._log_skipped()

    def handle(self, message: m.Message) -> None:
        """Take a message of the worker for this stream (engine).

        Args:
            message: The message.
        """
        match message:
            case m.FramesMade():
                self._take_frames(message)
            case m.WindowsSkipped():
                self.counters.skipped_windows += message.num_windows
                self._advance((message.first_window + message.num_windows) * WINDOW_SAMPLES)
            case m.AudioDone():
                self._is_audio_done = True
                self._wake()
            case _:
                raise WorkerError(f"worker said {type(message).__name__} in the middle of a stream")

    def fail(self, failure: WorkerError) -> None:
        """End the stream because its worker failed (engine). Frames that were not taken are lost.

        Args:
            failure: What every later call raises.
        """
        self._failure = failure
        self._made.clear()
        self._wake()

    async def _push_piece(self, pcm: NDArray[np.int16], pts: int) -> None:
        while pts + len(pcm) - self._done_before(pts) > self._max_ahead_samples:
            self._credit_changed.clear()
            await self._credit_changed.wait()
            self._check_open()
        self._advance(self._done_before(pts))
        self._is_fresh = False
        if self._done <= self._end:
            self.counters.gap_samples += pts - self._end
        self._end = pts + len(pcm)
        self._worker.send(m.PushAudio(stream=self._number, pts=pts, captured_s=self._now_s(), payload=pcm.tobytes()))

    def _done_before(self, pts: int) -> int:
        """Up to which sample nothing is left to do if the next sound begins at `pts`."""
        return max(self._done, pts // WINDOW_SAMPLES * WINDOW_SAMPLES) if self._is_fresh else self._done

    def _check_sound(self, pcm: NDArray[np.int16], pts: int) -> None:
        if pcm.dtype != np.int16 or pcm.ndim != 1:
            raise ConfigError("pcm", f"{pcm.dtype} {pcm.shape}", "it has to be int16 of shape (num_samples,)")
        if pts < 0:
            raise ConfigError("pts", pts, "it has to be 0 or more")
        # A longer gap would never get credit: the window before it has to be made first, and that takes its context.
        max_gap_samples = self._max_ahead_samples - 3 * WINDOW_SAMPLES
        if not self._is_fresh and pts - self._end > max_gap_samples:
            rule = f"it has to be at most {max_gap_samples} samples after the end of the sound so far ({self._end})"
            raise ConfigError("pts", pts, rule)

    def _take_frames(self, message: m.FramesMade) -> None:
        if message.ledger is not None:
            self._advance((message.window + 1) * WINDOW_SAMPLES)
        if message.epoch != self._epoch:
            self._drop(message)
            return
        if message.ledger is not None and len(message.ledger.steps_s) < self._info.num_steps:
            self.counters.reduced_windows += 1
        self._made.append((message, self._now_s()))
        self._wake()

    def _drop(self, made: m.FramesMade) -> None:
        self.counters.interrupted_frames += len(made.slots)
        self._release(made)

    def _release(self, made: m.FramesMade) -> None:
        self._worker.send(m.ReleaseSlots(stream=self._number, num_slots=len(made.slots)))

    def _advance(self, done: int) -> None:
        """Note up to which sample the sound has been worked on."""
        if done > self._done:
            self._done = done
            self._credit_changed.set()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            raise WorkerError("the stream is closed")

    async def _send(self, message: m.Message) -> None:
        self._worker.send(message)
        await self._worker.drain()

    def _wake(self) -> None:
        self._frames_changed.set()
        self._credit_changed.set()

    def _log_skipped(self) -> None:
        if self.counters.skipped_windows:
            _logger.info("stream %d skipped %d late windows", self._number, self.counters.skipped_windows)


def check_prompt(prompt: str | None, info: EngineInfo) -> None:
    """Check that an engine knows prompts where one is given.

    Args:
        prompt: The prompt, if any.
        info: What the engine can do.

    Raises:
        ConfigError: It knows none.
    """
    if prompt is not None and not info.accepts_prompt:
        raise ConfigError("prompt", prompt, f"the engine {info.name} knows no prompts")


def check_portrait(portrait: NDArray[np.uint8], info: EngineInfo) -> None:
    """Check that a portrait fits the engine's frame.

    Args:
        portrait: The portrait.
        info: What the engine can do.

    Raises:
        ConfigError: It does not.
    """
    expected = (info.height_px, info.width_px, 3)
    if portrait.dtype != np.uint8 or portrait.shape != expected:
        raise ConfigError("portrait", f"{portrait.dtype} {portrait.shape}", f"it has to be uint8 of shape {expected}")
