"""Audio features: one column of numbers per video frame, from live sound or from a file, the same either way.

`AudioFeatures` is what an engine needs of them; `EmbeddedFeatures` is the embedded model's: log-mel spectra, levelled
causally, through a small network. A column depends on about 1.2 s of sound before its frame and on
`right_context_samples` after the end of its window, and on nothing later.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio.level import LevelTracker
from pipeline.audio.mel import (
    ANALYSIS_LEAD_SAMPLES,
    HOP_SAMPLES,
    NUM_MELS,
    frame_power,
    log_mel,
    mel_power,
    samples_to_float,
)
from pipeline.errors import ConfigError
from pipeline.geometry import SAMPLES_PER_FRAME, WINDOW_SAMPLES
from pipeline.models.audio_frontend import AudioFrontend

__all__ = ["AudioFeatures", "EmbeddedFeatures", "EmbeddedFeatureStream", "FeatureStream"]

FloatArray = NDArray[np.float32]

_COLUMNS_PER_WINDOW = WINDOW_SAMPLES // HOP_SAMPLES
_COLUMNS_PER_FRAME = SAMPLES_PER_FRAME // HOP_SAMPLES
# A file is taken in pieces of this many frames, so that memory stays flat.
_FRAMES_PER_PIECE = 1500


class FeatureStream(Protocol):
    """The features of one live stream; owns its left context."""

    def push(self, pcm: NDArray[np.int16]) -> Tensor:
        """Take the next window.

        Args:
            pcm: The window and its right context, 16 kHz mono, (7680 + right_context_samples,). The right context comes
                again at the beginning of the next call.

        Returns:
            (num_layers, dim, 12), in the dtype of what makes them: one column per video frame of the window.

        Raises:
            ConfigError: The number of samples is wrong.
        """

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Take the next window without making its columns.

        Args:
            pcm: As for `push`.

        Raises:
            ConfigError: The number of samples is wrong.
        """


class AudioFeatures(Protocol):
    """A way to make features, shared by all streams."""

    @property
    def right_context_samples(self) -> int:
        """Sound needed after the end of a window: it counts as delay."""

    @property
    def dim(self) -> int:
        """Numbers per column and layer."""

    @property
    def num_layers(self) -> int:
        """Layers per column."""

    def stream(self) -> FeatureStream:
        """Begin a live stream."""

    def from_file(self, pcm: NDArray[np.int16]) -> Tensor:
        """Compute the columns of a whole recording.

        Args:
            pcm: 16 kHz mono samples, (num_samples,).

        Returns:
            (num_layers, dim, num_frames), in the dtype of what makes them, with a frame for every 640 samples begun;
            after the end is silence.
        """


class EmbeddedFeatures:
    """The embedded model's features.

    Args:
        frontend: The trained network, on the CPU.
    """

    num_layers = 1

    def __init__(self, frontend: AudioFrontend) -> None:
        if frontend.config.num_mels != NUM_MELS:
            raise ConfigError("num_mels", frontend.config.num_mels, f"the spectra have {NUM_MELS} bands")
        self._frontend = frontend

    @property
    def right_context_samples(self) -> int:
        """Sound needed after the end of a window."""
        return self._frontend.config.future_columns * HOP_SAMPLES + ANALYSIS_LEAD_SAMPLES

    @property
    def dim(self) -> int:
        """Numbers per column."""
        return self._frontend.config.dim

    def stream(self) -> EmbeddedFeatureStream:
        """Begin a live stream, as if there had been silence before."""
        return EmbeddedFeatureStream(self._frontend)

    def from_file(self, pcm: NDArray[np.int16]) -> Tensor:
        """Compute the columns of a whole recording.

        Args:
            pcm: 16 kHz mono samples, (num_samples,).

        Returns:
            float32, (1, dim, num_frames) with a frame for every 640 samples begun; after the end is silence.
        """
        config = self._frontend.config
        num_frames = -(-len(pcm) // SAMPLES_PER_FRAME)
        padded_samples = num_frames * SAMPLES_PER_FRAME + self.right_context_samples
        sound = np.pad(samples_to_float(pcm), (ANALYSIS_LEAD_SAMPLES, padded_samples - len(pcm)))
        tracker = LevelTracker()
        pieces = []
        context = _silence(config.past_columns)
        for first in range(0, num_frames, _FRAMES_PER_PIECE):
            frames = min(_FRAMES_PER_PIECE, num_frames - first)
            begin = first * SAMPLES_PER_FRAME
            own_samples = frames * SAMPLES_PER_FRAME
            piece = sound[begin : begin + ANALYSIS_LEAD_SAMPLES + own_samples + self.right_context_samples]
            mel = np.concatenate([context, _levelled_mel(piece, tracker, frames * _COLUMNS_PER_FRAME)])
            pieces.append(_columns(self._frontend, mel))
            num_kept = config.past_columns + frames * _COLUMNS_PER_FRAME
            context = mel[num_kept - config.past_columns : num_kept]
        return torch.cat(pieces, dim=2) if pieces else torch.zeros(1, config.dim, 0)


class EmbeddedFeatureStream:
    """One live stream of `EmbeddedFeatures`: one object per stream, used from one thread.

    Args:
        frontend: The trained network.
    """

    def __init__(self, frontend: AudioFrontend) -> None:
        self._frontend = frontend
        self._tracker = LevelTracker()
        self._past_sound = np.zeros(ANALYSIS_LEAD_SAMPLES, np.float32)
        self._past_mel = _silence(frontend.config.past_columns)
        future_samples = frontend.config.future_columns * HOP_SAMPLES + ANALYSIS_LEAD_SAMPLES
        self._num_samples = WINDOW_SAMPLES + future_samples

    def push(self, pcm: NDArray[np.int16]) -> Tensor:
        """Take the next window; see `FeatureStream.push`."""
        return _columns(self._frontend, self._take(pcm))

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Take the next window without making its columns; see `FeatureStream.skip`."""
        self._take(pcm)

    def _take(self, pcm: NDArray[np.int16]) -> FloatArray:
        """Go on by one window; the result is the spectra of that window with their context on both sides."""
        if pcm.shape != (self._num_samples,):
            raise ConfigError("pcm.shape", pcm.shape, f"it has to be ({self._num_samples},)")
        sound = np.concatenate([self._past_sound, samples_to_float(pcm)])
        mel = np.concatenate([self._past_mel, _levelled_mel(sound, self._tracker, _COLUMNS_PER_WINDOW)])
        self._past_sound = sound[WINDOW_SAMPLES : WINDOW_SAMPLES + ANALYSIS_LEAD_SAMPLES]
        self._past_mel = mel[_COLUMNS_PER_WINDOW : _COLUMNS_PER_WINDOW + len(self._past_mel)]
        return mel


def _silence(num_columns: int) -> FloatArray:
    return log_mel(np.zeros((num_columns, NUM_MELS), np.float32))


def _levelled_mel(sound: FloatArray, tracker: LevelTracker, num_own_columns: int) -> FloatArray:
    """Compute levelled log-mel; the tracker is left after the first num_own_columns, the rest is only looked at."""
    power, columns = mel_power(sound), frame_power(sound)
    gains = tracker.gains(columns[:num_own_columns])
    ahead = tracker.copy().gains(columns[num_own_columns:])
    return log_mel(power * np.concatenate([gains, ahead])[:, None])


def _columns(frontend: AudioFrontend, mel: FloatArray) -> Tensor:
    with torch.inference_mode():
        features_BFD: Tensor = frontend(torch.from_numpy(mel)[None])
    # A clone made outside inference mode may take part in anything later.
    return features_BFD.clone().transpose(1, 2).float().contiguous()
