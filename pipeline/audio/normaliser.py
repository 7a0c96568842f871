"""Zero mean and unit variance: of a whole recording, or of a live sound as far as it has been heard. Pure.

The speech network of the large engine was trained on recordings normalised as a whole. Live sound is normalised by
what has been heard up to now, speech and the short pauses in it. Of two stretches 20 dB apart the quieter hardly
counts: minutes of listening do not turn up the noise of the room, and what was heard before the first word does not
make the first word too loud. Yet a quieter speaker is followed after some minutes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import SAMPLE_RATE_HZ

__all__ = ["RunningNormaliser", "normalise"]

FloatArray = NDArray[np.float32]

_EPS = 1e-7
_MEMORY_SAMPLES = 30 * SAMPLE_RATE_HZ
# Sound below -50 dB of full scale is not brought to unit variance.
_SMALLEST_VARIANCE = 1e-5
_QUIET_VARIANCE_RATIO = 0.01
_QUIET_WEIGHT = 0.05


def normalise(sound: FloatArray) -> FloatArray:
    """Normalise a whole recording.

    Args:
        sound: Samples, (num_samples,), not empty.

    Returns:
        The samples with mean 0 and variance 1; silence stays silence.
    """
    return _scaled(sound, float(sound.mean(dtype=np.float64)), float(sound.var(dtype=np.float64)))


class RunningNormaliser:
    """Mean and variance of one live sound: one object per stream, used from one thread."""

    def __init__(self) -> None:
        self._weight_samples = 0.0
        self._mean = 0.0
        self._variance = 0.0

    def hear(self, sound: FloatArray) -> None:
        """Take in the next stretch.

        Args:
            sound: About half a second of new samples, (num_samples,), not empty.
        """
        mean, variance = float(sound.mean(dtype=np.float64)), float(sound.var(dtype=np.float64))
        weight_samples = float(len(sound))
        if variance < _QUIET_VARIANCE_RATIO * self._variance:
            weight_samples *= _QUIET_WEIGHT
        elif self._variance < _QUIET_VARIANCE_RATIO * variance:
            self._weight_samples *= _QUIET_WEIGHT
        share = weight_samples / (self._weight_samples + weight_samples)
        step = mean - self._mean
        self._variance += share * (variance - self._variance + (1 - share) * step**2)
        self._mean += share * step
        self._weight_samples = min(self._weight_samples + weight_samples, _MEMORY_SAMPLES)

    def apply(self, sound: FloatArray) -> FloatArray:
        """Normalise by what has been heard; (num_samples,) in and out."""
        return _scaled(sound, self._mean, max(self._variance, _SMALLEST_VARIANCE))


def _scaled(sound: FloatArray, mean: float, variance: float) -> FloatArray:
    result: FloatArray = ((sound - np.float32(mean)) / np.float32(np.sqrt(variance + _EPS))).astype(np.float32)
    return result
