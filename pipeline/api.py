"""The engine as the rest of visavis sees it: open a stream, push audio, receive frames.

Everything here is plain data and protocols, without torch. `pipeline.host` implements `Engine` by a worker process;
tests implement it in memory. Words and units are those of the glossary in the README: a window is 480 ms of audio
(7,680 samples at 16 kHz), and drives one block of 12 frames.

Media time: sample 0 of a stream is media time 0. Frame `i` shows media time `[i/25, (i+1)/25)`, so window `n` drives
frames `12n .. 12n+11`. The sound itself stays with whoever captured it and is paired with the frames by media time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Engine",
    "EngineInfo",
    "FrameBatch",
    "Stream",
    "StreamCounters",
    "StreamParams",
    "StreamRequest",
    "WindowLedger",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine can do, known once its worker is ready."""

    name: str
    """"embedded", "pattern" or "large"."""
    height_px: int
    """Height of every frame."""
    width_px: int
    """Width of every frame."""
    num_steps: int
    """Denoising steps per block."""
    right_context_s: float
    """How much audio after the end of a window the engine needs before it can start on it."""
    warm_window_s: float
    """Compute time of one window measured after warm-up (the 90th percentile), in seconds."""
    warm_start_s: float
    """From the start of a window's computation until its first frame may leave so that none of its later frames comes
    late (the 90th percentile), in seconds. Frames leave the engine before the last of the window is made, so this is
    less than `warm_window_s`."""
    max_streams: int
    """How many streams can be open at once."""
    accepts_prompt: bool
    """Whether a text prompt means anything to this engine."""
    accepts_portrait: bool
    """Whether the portrait is shown (the pattern engine draws its own picture)."""
    notes: tuple[str, ...] = ()
    """Sentences for people: precision chosen, picture made smaller, limits of the model."""
    longest_whole_s: float = 0.0
    """Longest sound that a stream can be given as a whole, in seconds; 0: the engine hears live only."""
    px_per_token: int = 0
    """Side of the squares of the picture that listen to one of several voices; 0: there is one voice only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamParams:
    """What may change while a stream runs; applied at the next block edge."""

    liveliness: float = 1.0
    """Size of head motion, brows and glances: 0 still, 1 natural, 2 lively."""
    look_at_camera: float = 0.8
    """How much of the time the eyes rest on the viewer, 0 to 1."""
    prompt: str | None = None
    """Another text prompt, for engines that know one; None: the one so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """What a stream is opened with."""

    portrait: NDArray[np.uint8] | None
    """The portrait, already cut to the engine's frame: uint8 RGB, (height_px, width_px, 3)."""
    prompt: str | None = None
    """Text prompt, for engines that know one."""
    seed: int = 0
    """Seed of the noise and of the motion planner: same seed and same audio, same frames."""
    params: StreamParams = field(default_factory=StreamParams)
    """Parameters at the start."""
    live: bool = True
    """Whether the sound arrives in real time. A live stream that falls behind loses steps, then windows, so that its
    delay never grows; a stream that is not live (a file) gets every window in full."""
    sound: NDArray[np.int16] | None = None
    """The whole sound, 16 kHz mono, for engines that can hear ahead: (num_samples,), or (num_voices, num_samples). It
    is pushed all the same, its voices mixed, from 0 on; after an interrupt the stream hears live."""
    masks: NDArray[np.bool_] | None = None
    """Which squares of the picture listen to which of several voices, (num_voices, rows, columns)."""


@dataclass(slots=True, kw_only=True)
class WindowLedger:
    """When each stage of one window happened: seconds on the machine-wide monotonic clock (`time.monotonic`).

    A stage that has not happened is None. The worker fills the first part, the server the second.
    """

    window: int
    """Index of the window in its stream."""
    epoch: int
    """Number of interrupts before this window."""
    captured_s: float | None = None
    """Its last audio sample reached the engine."""
    admitted_s: float | None = None
    """The worker began on it (its right context was complete and the worker was free)."""
    features_s: float | None = None
    """Audio features were ready."""
    steps_s: tuple[float, ...] = ()
    """End of each denoising step that ran; fewer than `num_steps` where the late policy cut them."""
    decoded_s: float | None = None
    """All 12 frames were decoded."""
    copied_s: float | None = None
    """All 12 frames were in the frame ring."""
    received_s: float | None = None
    """The server saw its last frame."""
    paced_s: float | None = None
    """Its last frame was handed to the track. `paced_s - captured_s` is the window latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Consecutive frames of one window, in order; a window arrives as one or more batches."""

    window: int
    """Index of the window in its stream."""
    epoch: int
    """Epoch the frames belong to; a receiver drops batches of an older epoch."""
    first_frame: int
    """Index of the first frame in the stream: `12 * window + offset`."""
    frames: NDArray[np.uint8]
    """I420 pictures (BT.601, limited range), (num_frames, height_px * 3 // 2, width_px). Owned by the receiver."""
    ledger: WindowLedger | None
    """Set on the last batch of a window, None on the others."""


@dataclass(slots=True, kw_only=True)
class StreamCounters:
    """What happened to a stream besides frames."""

    gap_samples: int = 0
    """Samples of silence put in where pushed sound had a gap."""
    overlap_samples: int = 0
    """Samples that were pushed a second time and dropped."""
    skipped_windows: int = 0
    """Windows that the late policy dropped."""
    reduced_windows: int = 0
    """Windows made with fewer steps than the engine has."""
    interrupted_frames: int = 0
    """Frames that were made and then dropped by an interrupt."""


class Stream(Protocol):
    """One avatar run. Iterating gives its frame batches in order; iteration ends when the stream is closed."""

    @property
    def counters(self) -> StreamCounters:
        """What happened so far; read it at any time, and after the end."""

    async def push_audio(self, pcm: NDArray[np.int16], pts: int) -> None:
        """Add sound.

        Args:
            pcm: 16 kHz mono samples, (num_samples,).
            pts: Index of the first sample in the stream. A gap is filled with silence; samples before what was
                already pushed are dropped and counted.

        Raises:
            WorkerError: The worker died; the stream is over.
        """

    async def end_audio(self) -> None:
        """Say that no more sound will come: the last window is filled up with silence.

        Iteration ends after the frames of that window. Pushing after this is an error of the caller (ValueError).

        Raises:
            WorkerError: The worker died; the stream is over.
        """

    async def interrupt(self) -> int:
        """Begin a new epoch: windows of the old one that were not yet handed out are dropped.

        Media time goes on; the first window of the new epoch is the one that holds the next pushed sample.

        Returns:
            The new epoch.
        """

    async def update(self, params: StreamParams) -> None:
        """Change the parameters at the next block edge."""

    async def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Change the portrait at the next block edge.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).
        """

    def __aiter__(self) -> AsyncIterator[FrameBatch]:
        """Iterate over the frame batches."""

    async def aclose(self) -> None:
        """End the stream and free its place; a second call does nothing."""


class Engine(Protocol):
    """Makes streams. One per server."""

    @property
    def info(self) -> EngineInfo | None:
        """What the engine can do; None while its worker is starting or restarting."""

    async def open(self, request: StreamRequest) -> Stream:
        """Open a stream.

        Args:
            request: Portrait, prompt, seed and parameters.

        Returns:
            The stream; its media time starts with the first pushed sample.

        Raises:
            StreamLimitReached: No free place.
            ConfigError: The portrait has the wrong size, or a prompt was given to an engine that knows none.
            WorkerError: The worker is not ready, died, or did not open the stream in the engine's time.
        """

    async def aclose(self) -> None:
        """Close all streams and stop the worker; a second call does nothing."""
