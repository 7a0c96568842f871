"""Brings live speech to a usual level, causally: quiet and loud speakers look alike to what comes after.

Every 10 ms column of the spectrum gets a gain from what was heard up to it and never from later. The level of the
speaker is the running mean, in dB, of the columns in which somebody seems to speak: those well above the noise floor
and not far below the recent peak. Through silence the gain is held, so that a pause neither raises the noise nor makes
the next word start wrong. The gain is bounded, changes slowly, and never lifts the noise floor near the level of
speech. `LevelTracker` finds the gains; `LoudnessMeter` gives the loudness that is left, for what follows a voice and
not a microphone.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.mel import HOP_SAMPLES, samples_to_float
from pipeline.geometry import SAMPLES_PER_FRAME

__all__ = ["SPEECH_LEVEL_DB", "LevelTracker", "LoudnessMeter"]

FloatArray = NDArray[np.float32]

SPEECH_LEVEL_DB = -24.0
"""Mean level of the columns with speech that the gain aims for, in dB of full scale."""
_LARGEST_GAIN_DB = 24.0
_SMALLEST_GAIN_DB = -20.0
_LOUDEST_FLOOR_DB = -48.0
_QUIETEST_COLUMN_DB = -90.0
_QUIETEST_SPEECH_DB = -62.0
_SPEECH_ABOVE_FLOOR_DB = 10.0
_SPEECH_BELOW_PEAK_DB = 20.0
_FLOOR_MEMORY_COLUMNS = 150
_PEAK_MEMORY_COLUMNS = 300
# The start counts as this many columns of speech at the usual level; later the mean is over the last seconds of speech.
_PRIOR_COLUMNS = 25
_MEAN_COLUMNS = 400
_LARGEST_STEP_DB = 0.5
# Root mean square of speech at the usual level: loud columns count for more than in the mean of decibels.
_SPEECH_RMS = 0.067
_LARGEST_LOUDNESS = 3.0


class _Extreme:
    """The least of the last `memory` numbers, in constant time on average."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._kept: deque[tuple[int, float]] = deque()
        self._count = 0

    def push(self, value: float) -> float:
        while self._kept and self._kept[-1][1] >= value:
            self._kept.pop()
        self._kept.append((self._count, value))
        self._count += 1
        if self._kept[0][0] <= self._count - 1 - self._memory:
            self._kept.popleft()
        return self._kept[0][1]

    def copy(self) -> _Extreme:
        twin = _Extreme(self._memory)
        twin._kept = self._kept.copy()
        twin._count = self._count
        return twin


class LevelTracker:
    """The state of one stream: one object per stream, used from one thread."""

    def __init__(self) -> None:
        self._floor = _Extreme(_FLOOR_MEMORY_COLUMNS)
        self._peak = _Extreme(_PEAK_MEMORY_COLUMNS)
        self._level_db = SPEECH_LEVEL_DB
        self._num_speech_columns = _PRIOR_COLUMNS
        self._gain_db = 0.0

    def copy(self) -> LevelTracker:
        """Make an independent tracker in the same state, to look ahead with."""
        twin = LevelTracker()
        twin._floor = self._floor.copy()
        twin._peak = self._peak.copy()
        twin._level_db = self._level_db
        twin._num_speech_columns = self._num_speech_columns
        twin._gain_db = self._gain_db
        return twin

    def gains(self, power: FloatArray) -> FloatArray:
        """Take in consecutive columns and find the gain of each.

        Args:
            power: Mean square of each column, (num_columns,).

        Returns:
            Factors to multiply power with, (num_columns,).
        """
        levels_db = np.maximum(_QUIETEST_COLUMN_DB, 10.0 * np.log10(power.astype(np.float64) + 1e-12))
        gains_db = [self._step(level_db) for level_db in levels_db.tolist()]
        return np.asarray(10.0 ** (np.array(gains_db) / 10.0), np.float32)

    def _step(self, column_db: float) -> float:
        floor_db = self._floor.push(column_db)
        peak_db = -self._peak.push(-column_db)
        gate_db = max(_QUIETEST_SPEECH_DB, floor_db + _SPEECH_ABOVE_FLOOR_DB, peak_db - _SPEECH_BELOW_PEAK_DB)
        if column_db > gate_db:
            self._num_speech_columns = min(self._num_speech_columns + 1, _MEAN_COLUMNS)
            self._level_db += (column_db - self._level_db) / self._num_speech_columns
        wanted_db = min(max(SPEECH_LEVEL_DB - self._level_db, _SMALLEST_GAIN_DB), _LARGEST_GAIN_DB)
        wanted_db = min(wanted_db, max(0.0, _LOUDEST_FLOOR_DB - floor_db))
        step_db = min(max(wanted_db - self._gain_db, -_LARGEST_STEP_DB), _LARGEST_STEP_DB)
        self._gain_db = self._gain_db + step_db if math.isfinite(step_db) else 0.0
        return self._gain_db


class LoudnessMeter:
    """Measures loudness relative to the speaker's own level: one object per stream, used from one thread."""

    def __init__(self) -> None:
        self._tracker = LevelTracker()

    def push(self, pcm: NDArray[np.int16]) -> FloatArray:
        """Take in the sound of the next frames.

        Args:
            pcm: 16 kHz mono, (640 * num_frames,).

        Returns:
            Loudness of each frame, (num_frames,): 0 in silence, about 1 when this speaker speaks normally, at most 3.
        """
        power = np.square(samples_to_float(pcm)).reshape(-1, HOP_SAMPLES).mean(axis=1)
        levelled = (power * self._tracker.gains(power)).reshape(-1, SAMPLES_PER_FRAME // HOP_SAMPLES).mean(axis=1)
        loudness: FloatArray = np.sqrt(levelled) / np.float32(_SPEECH_RMS)
        return np.minimum(loudness, np.float32(_LARGEST_LOUDNESS))
