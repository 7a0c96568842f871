"""The sound of one viewer: received packets in, final sound out, by media time.

Sound for the engine leaves as soon as it is final (timeline.py); the original stays in a ring until it is played.
Used on the loop only. Decoding a packet of 20 ms takes about a tenth of a millisecond.
"""

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLES_PER_FRAME
from server.clock import Clock
from server.sound import RATIO, SOUND_RATE_HZ, Downsampler, SoundRing, level_dbfs
from server.timeline import Timeline

__all__ = ["PACKET_SAMPLES", "SOUND_SAMPLES_PER_FRAME", "Chunk", "Microphone"]

PACKET_SAMPLES = SOUND_RATE_HZ // 50
SOUND_SAMPLES_PER_FRAME = SAMPLES_PER_FRAME * RATIO
_PACKET_S = PACKET_SAMPLES / SOUND_RATE_HZ
_RESYNC_S = 0.5
_RING_S = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Sound that has become final."""

    position: int
    """Media position of its first sample, in samples at 16 kHz."""
    pcm: NDArray[np.int16]
    """16 kHz mono."""


class Microphone:
    """Puts received sound into media time. Media time starts with `start`.

    Args:
        clock: The clock that media time follows.
        jitter_s: How late a packet may be.
        tolerance_s: How far the sender may run ahead or behind before its sound is moved.
        quiet_dbfs: Level below which that is not heard.
    """

    def __init__(self, clock: Clock, *, jitter_s: float, tolerance_s: float, quiet_dbfs: float) -> None:
        self._clock = clock
        self._quiet_dbfs = quiet_dbfs
        self._timeline = Timeline(
            jitter_samples=int(jitter_s * SOUND_RATE_HZ),
            tolerance_samples=int(tolerance_s * SOUND_RATE_HZ),
            resync_samples=int(_RESYNC_S * SOUND_RATE_HZ),
        )
        self._ring = SoundRing(_RING_S * SOUND_RATE_HZ)
        self._downsampler = Downsampler()
        self._arrived = asyncio.Event()
        self._anchor_s: float | None = None
        self._taken = 0

    @property
    def taken(self) -> int:
        """Media position up to which sound was taken, in samples at 16 kHz."""
        return self._taken // RATIO

    @property
    def gap_ms(self) -> float:
        """Sound that was lost or late while it should have flowed."""
        return self._timeline.gap_samples * 1000.0 / SOUND_RATE_HZ

    @property
    def silence_ms(self) -> float:
        """Silence put in because the sender sent nothing."""
        return self._timeline.silence_samples * 1000.0 / SOUND_RATE_HZ

    def start(self, anchor_s: float) -> None:
        """Begin media time.

        Args:
            anchor_s: Clock time of media time 0.
        """
        self._anchor_s = anchor_s

    def position(self) -> int:
        """Media position of now, at 48 kHz; 0 before the start."""
        return 0 if self._anchor_s is None else round((self._clock.now_s() - self._anchor_s) * SOUND_RATE_HZ)

    def receive(self, timestamp: int, samples: NDArray[np.int16]) -> None:
        """Take one decoded packet; before the start it is forgotten.

        Args:
            timestamp: RTP timestamp of its first sample.
            samples: 48 kHz, (num_samples, 2).
        """
        if self._anchor_s is None:
            return
        placed = self._timeline.place(
            timestamp,
            len(samples),
            clock_position=self.position(),
            is_quiet=level_dbfs(samples) < self._quiet_dbfs,
        )
        if placed is not None:
            self._ring.write(placed.position, samples[placed.skip :])
            self._arrived.set()

    def take(self) -> Chunk | None:
        """Take the sound that became final since the last call, or None when there is none."""
        final = self._timeline.advance(self.position()) // RATIO * RATIO
        num_samples = final - self._taken
        if num_samples <= 0:
            return None
        oldest = max(self._taken, final - _RING_S * SOUND_RATE_HZ)
        skipped = np.zeros((oldest - self._taken) // RATIO, np.int16)
        pcm = self._downsampler.push(self._ring.read(oldest, final - oldest))
        chunk = Chunk(position=self._taken // RATIO, pcm=np.concatenate([skipped, pcm]))
        self._taken = final
        return chunk

    async def wait(self) -> None:
        """Return when a packet arrived, at the latest after 20 ms: silence becomes final by the clock."""
        await self._clock.wait_until_s(self._arrived, self._clock.now_s() + _PACKET_S)
        self._arrived.clear()

    def sound(self, position: int, num_samples: int) -> NDArray[np.int16]:
        """The original sound.

        Args:
            position: Media position of the first sample, at 48 kHz.
            num_samples: How much.

        Returns:
            48 kHz, (num_samples, 2).
        """
        return self._ring.read(position, num_samples)

    def window_level_dbfs(self, first_frame: int, num_frames: int = FRAMES_PER_BLOCK) -> float:
        """Level of the sound of some frames.

        Args:
            first_frame: Index of the first one in media time.
            num_frames: How many.

        Returns:
            Decibels relative to full scale, at least -100.
        """
        return level_dbfs(self.sound(first_frame * SOUND_SAMPLES_PER_FRAME, num_frames * SOUND_SAMPLES_PER_FRAME))

    def was_quiet(self, first_frame: int, num_frames: int) -> bool:
        """Whether the sound of some frames was silence; not when it is no longer known.

        Args:
            first_frame: Index of the first one in media time.
            num_frames: How many.

        Returns:
            True for silence that is still in the ring.
        """
        is_known = first_frame * SOUND_SAMPLES_PER_FRAME >= self.position() - _RING_S * SOUND_RATE_HZ
        return is_known and self.window_level_dbfs(first_frame, num_frames) < self._quiet_dbfs
