"""Audio features of the large engine: all hidden states of wav2vec2, one column per video frame.

A file is encoded as a whole, exactly as the published model's code does it. A live sound is encoded window by window:
each time the window, several seconds before it and a bounded right context after it, normalised by what has been heard
so far. Both read the same places of the hidden states; only, a file's are stretched by up to two states (40 ms) from
its beginning to its end, since the published code makes the last state fall on the last column of a 30 Hz grid; a live
sound has no end, and its places are those of an endless file.

Shape letters: S layers, T states, D width, F columns, N samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio.context import STATE_FIELD_SAMPLES, STATE_HOP_SAMPLES, LiveContext
from pipeline.audio.mel import samples_to_float
from pipeline.audio.normaliser import RunningNormaliser, normalise
from pipeline.errors import ConfigError
from pipeline.geometry import BLOCKS_PER_CLIP, FPS, FRAMES_PER_BLOCK, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from pipeline.models.wav2vec import Wav2Vec

__all__ = ["Places", "Wav2VecFeatures", "Wav2VecStream", "encode", "file_places", "live_places"]

FloatArray = NDArray[np.float32]

_STATES_HZ = SAMPLE_RATE_HZ // STATE_HOP_SAMPLES
# Rate of the grid that the published code puts between states and columns.
_GRID_HZ = 30
_COLUMNS_PER_CLIP = BLOCKS_PER_CLIP * FRAMES_PER_BLOCK
_STATES_PER_WINDOW = WINDOW_SAMPLES // STATE_HOP_SAMPLES


class Places(NamedTuple):
    """Where columns are read: between two neighbouring states."""

    low_F: Tensor
    """Index of the earlier state."""
    high_F: Tensor
    """Index of the later state; the same where a column lies on a state."""
    share_F1: Tensor
    """Share of the later state, float32."""

    def to(self, device: torch.device) -> Places:
        """Move to a device."""
        return Places(*(part.to(device) for part in self))


def file_places(num_states: int) -> Places:
    """Find where the columns of a whole file are read.

    Args:
        num_states: States of the file.

    Returns:
        Places of the columns before the end of the file: the last state falls on the last point of the grid.
    """
    num_grid = _grid_points(num_states)
    grid = [point for point in map(_grid_point, range(num_grid)) if point < num_grid]
    return _places([point * (num_states - 1) for point in grid], max(1, num_grid - 1))


def live_places(first_column: int, num_columns: int, *, first_state: int = 0) -> Places:
    """Find where columns of a live sound are read.

    Args:
        first_column: Index of the first column in the stream.
        num_columns: How many.
        first_state: Index in the stream of the state that counts as 0.

    Returns:
        The places, from the state before the first column's to the last that begins before the last column's end.
    """
    grid = [_grid_point(column) for column in range(first_column, first_column + num_columns)]
    return _places([point * _STATES_HZ - first_state * _GRID_HZ for point in grid], _GRID_HZ)


def _grid_points(num_states: int) -> int:
    return int(num_states / _STATES_HZ * _GRID_HZ)


def _grid_point(column: int) -> int:
    return round(column * _GRID_HZ / FPS)


def _places(numerators: list[int], denominator: int) -> Places:
    """Split fractions into whole states and the rest."""
    numerators_F = np.array(numerators, np.int64)
    low_F, rest_F = np.divmod(numerators_F, denominator)
    share_F = (rest_F / denominator).astype(np.float32)
    return Places(torch.from_numpy(low_F), torch.from_numpy(low_F + (rest_F > 0)), torch.from_numpy(share_F)[:, None])


class Wav2VecFeatures:
    """The large engine's features.

    Args:
        network: On any device, float32 or bfloat16.
        context: Of live streams.
    """

    def __init__(self, network: Wav2Vec, context: LiveContext | None = None) -> None:
        self._network = network
        self._context = context or LiveContext()

    @property
    def right_context_samples(self) -> int:
        """Sound needed after the end of a window."""
        return self._context.right_samples

    @property
    def dim(self) -> int:
        """Numbers per column and layer."""
        return self._network.dim

    @property
    def num_layers(self) -> int:
        """Layers per column."""
        return self._network.num_layers

    def stream(self) -> Wav2VecStream:
        """Begin a live stream."""
        return Wav2VecStream(self._network, self._context)

    def from_file(self, pcm: NDArray[np.int16]) -> Tensor:
        """Compute the columns of a whole recording at once: its time grows with the square of its length.

        Args:
            pcm: 16 kHz mono samples, (num_samples,).

        Returns:
            In the network's dtype, on its device, (num_layers, dim, num_columns): whole clips of 48 columns, at least
            one. Columns after the end of the sound are 0.
        """
        num_states = max(0, (len(pcm) - STATE_FIELD_SAMPLES) // STATE_HOP_SAMPLES + 1)
        num_grid = _grid_points(num_states)
        num_clips = int(num_grid / (_COLUMNS_PER_CLIP * (_GRID_HZ / FPS))) + 1
        num_columns = num_clips * _COLUMNS_PER_CLIP
        sound = normalise(samples_to_float(pcm)) if num_grid else np.zeros(0, np.float32)
        return encode(self._network, sound, file_places(num_states), num_columns=num_columns)


class Wav2VecStream:
    """One live stream of `Wav2VecFeatures`: one object per stream, used from one thread.

    Args:
        network: Shared by all streams.
        context: Sound around a window.
    """

    def __init__(self, network: Wav2Vec, context: LiveContext) -> None:
        self._network = network
        self._context = context
        self._normaliser = RunningNormaliser()
        self._past = np.zeros(0, np.float32)
        self._window = 0

    def push(self, pcm: NDArray[np.int16]) -> Tensor:
        """Take the next window; see `FeatureStream.push`. The columns are in the network's dtype, on its device."""
        first_state = self._window * _STATES_PER_WINDOW - len(self._past) // STATE_HOP_SAMPLES
        places = live_places(self._window * FRAMES_PER_BLOCK, FRAMES_PER_BLOCK, first_state=first_state)
        return encode(self._network, self._normaliser.apply(self._take(pcm)), places)

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Take the next window without making its columns; see `FeatureStream.skip`."""
        self._take(pcm)

    def _take(self, pcm: NDArray[np.int16]) -> FloatArray:
        """Go on by one window; the result is that window with its context on both sides."""
        num_samples = WINDOW_SAMPLES + self._context.right_samples
        if pcm.shape != (num_samples,):
            raise ConfigError("pcm.shape", pcm.shape, f"it has to be ({num_samples},)")
        sound = samples_to_float(pcm)
        # The right context of the window before has been heard already.
        self._normaliser.hear(sound if self._window == 0 else sound[self._context.right_samples :])
        heard = np.concatenate([self._past, sound])
        past = heard[: len(self._past) + WINDOW_SAMPLES]
        self._past = past[max(0, len(past) - self._context.left_samples) :]
        self._window += 1
        return heard


def encode(network: Wav2Vec, sound: FloatArray, places: Places, *, num_columns: int | None = None) -> Tensor:
    """Encode a stretch of sound.

    Args:
        network: Made of the published weights.
        sound: Normalised, (num_samples,).
        places: Among the states of this stretch.
        num_columns: Columns of the result, 0 behind those that have a place; None: just those.

    Returns:
        In the network's dtype, on its device, (S, D, F). Of a long sound this is the largest of all tensors: columns
        are read while their layer passes, and go to their place at once.
    """
    num_places = len(places.low_F)
    shape = network.num_layers, network.dim, num_places if num_columns is None else num_columns
    # A tensor made outside inference mode may take part in anything later.
    columns_SDF = torch.zeros(shape, dtype=network.dtype, device=network.device)
    if not num_places:
        return columns_SDF
    places = places.to(network.device)
    both = torch.cat([places.low_F, places.high_F])
    with torch.inference_mode():
        sound_N = torch.from_numpy(sound).to(network.device, network.dtype)
        for layer, states_TD in enumerate(network.hidden_states(sound_N)):
            low_FD, high_FD = states_TD.index_select(0, both).float().chunk(2)
            columns_SDF[layer, :, :num_places] = torch.lerp(low_FD, high_FD, places.share_F1).T
    return columns_SDF
