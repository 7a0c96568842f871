"""The original sound of a session, addressed by media time, and its 16 kHz shadow for the engine.

Both are synchronous and used on the loop only; nothing here knows the clock.
"""

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import SAMPLE_RATE_HZ

__all__ = ["NUM_CHANNELS", "SOUND_RATE_HZ", "Downsampler", "SoundRing", "level_dbfs"]

SOUND_RATE_HZ = 48_000
"""Rate of Opus, and so of everything that is played."""
NUM_CHANNELS = 2
RATIO = SOUND_RATE_HZ // SAMPLE_RATE_HZ
_FLOOR_DBFS = -100.0


class SoundRing:
    """The most recent sound by media position; what was never written is silence.

    Args:
        capacity_samples: How far back it reaches, in samples per channel.
    """

    def __init__(self, capacity_samples: int) -> None:
        self._samples = np.zeros((capacity_samples, NUM_CHANNELS), np.int16)
        self._capacity = capacity_samples
        self._end = 0

    def write(self, position: int, samples: NDArray[np.int16]) -> None:
        """Put sound at its place; a gap before it becomes silence.

        Args:
            position: Media position of the first sample.
            samples: 48 kHz, (num_samples, 2); at most the capacity of the ring.
        """
        end = position + len(samples)
        if end > self._end:
            first_new = max(self._end, end - self._capacity)
            self._samples[self._indices(first_new, end - first_new)] = 0
            self._end = end
        oldest = self._end - self._capacity
        samples = samples[max(0, oldest - position) :]
        self._samples[self._indices(end - len(samples), len(samples))] = samples

    def read(self, position: int, num_samples: int) -> NDArray[np.int16]:
        """Copy sound out.

        Args:
            position: Media position of the first sample, may be negative.
            num_samples: How much; at most the capacity of the ring.

        Returns:
            48 kHz, (num_samples, 2); silence where nothing was written or where it was overwritten.
        """
        out = np.zeros((num_samples, NUM_CHANNELS), np.int16)
        start = max(position, self._end - self._capacity, 0)
        end = min(position + num_samples, self._end)
        if start < end:
            out[start - position : end - position] = self._samples[self._indices(start, end - start)]
        return out

    def _indices(self, position: int, num_samples: int) -> NDArray[np.intp]:
        return np.arange(position, position + num_samples) % self._capacity


class Downsampler:
    """48 kHz stereo to 16 kHz mono, a stream: one sample out for three in, always.

    The filter holds a few samples back; as many zeros stand before the first output, so that a window is complete with
    its own last packet and not one packet later. The shift is about a millisecond.
    """

    def __init__(self) -> None:
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        self._surplus = np.zeros(0, np.int16)
        self._has_started = False

    def push(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """Convert the next samples of the stream.

        Args:
            samples: 48 kHz, (3 * n, 2).

        Returns:
            16 kHz, (n,).
        """
        wanted = len(samples) // RATIO
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = SOUND_RATE_HZ
        parts = [self._surplus, *(out.to_ndarray().reshape(-1) for out in self._resampler.resample(frame))]
        pcm = np.concatenate(parts).astype(np.int16, copy=False)
        if len(pcm) < wanted:
            pcm = np.concatenate([np.zeros(wanted - len(pcm), np.int16), pcm])
        self._surplus = pcm[wanted:]
        return pcm[:wanted]


def level_dbfs(samples: NDArray[np.int16]) -> float:
    """Level of some sound: root mean square relative to full scale, in dB, at least -100.

    Args:
        samples: Samples in any shape.

    Returns:
        0 for a full-scale square wave; -100 for silence and for no samples at all.
    """
    if samples.size == 0:
        return _FLOOR_DBFS
    power = float(np.mean(np.square(samples.astype(np.float64) / 32768.0)))
    return max(_FLOOR_DBFS, 10.0 * float(np.log10(power))) if power > 0.0 else _FLOOR_DBFS
