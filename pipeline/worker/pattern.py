"""The pattern engine: frames that say which frame they are and how loud their 40 ms of sound were.

The picture has three bands, made of blocks big enough to survive a video codec at a low bit rate:

    top      a bar code of the frame index: 3 rows of 8 cells, white is 1. 20 bits of Gray code (so that neighbouring
             frames differ little), then 4 check bits.
    middle   left: a bar as high as the sound's level; right: the clap patch, white if the level is above a threshold.
    bottom   left: the portrait's mean colour; right: a grey as bright as the parameter liveliness.

`read_frame_index`, `read_level` and `read_clap` read a received picture back, from its luma alone and at any size.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.config import EngineConfig, PatternConfig
from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from pipeline.worker.model import StageMarks, WarmTimes

__all__ = [
    "NUM_FRAME_INDICES",
    "PatternModel",
    "PatternStream",
    "frame_level",
    "read_clap",
    "read_frame_index",
    "read_level",
    "read_liveliness",
]

NUM_FRAME_INDICES = 1 << 20
"""Frame indices are shown modulo this (11.6 hours)."""

_NUM_STEPS = 4
_FRAMES_PER_BATCH = 4
_STEPS_SHARE = 0.6

_CODE_ROWS, _CODE_COLUMNS = 3, 8
_NUM_INDEX_BITS = 20
_BLACK, _GREY, _WHITE = 16, 126, 235
_NEUTRAL_CHROMA = 128
_FLOOR_DBFS = -60.0

_logger = logging.getLogger(__name__)


class PatternModel:
    """The pattern engine as a model. Its faults are parameters, for tests.

    Args:
        config: The engine's configuration; `config.pattern` counts.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config.pattern
        self.name = "pattern"
        self.height_px = config.pattern.height_px
        self.width_px = config.pattern.width_px
        self.num_steps = config.num_steps or _NUM_STEPS
        self.right_context_samples = config.pattern.right_context_samples
        self.accepts_prompt = False
        self.accepts_portrait = False
        self.notes = ("draws the level of the sound and the number of each frame",)

    def warm_up(self) -> WarmTimes:
        """Wait as long as configured.

        Returns:
            The artificial times of a window.
        """
        time.sleep(self._config.warm_up_ms / 1000)
        if self._config.fault_at_warm_up:
            _commit_fault(self._config)
        compute_s = self._config.compute_ms / 1000
        steps_s = _STEPS_SHARE * compute_s
        num_batches = FRAMES_PER_BLOCK // _FRAMES_PER_BATCH
        batch_s = (compute_s - steps_s) / num_batches
        return WarmTimes.of_batches([(steps_s + (i + 1) * batch_s, _FRAMES_PER_BATCH) for i in range(num_batches)])

    def is_ready(self, *, prompt: str | None, params: StreamParams) -> bool:
        """Say that a stream can be opened: there is no prompt to read."""
        return True

    def open_stream(
        self, *, portrait: NDArray[np.uint8] | None, prompt: str | None, seed: int, params: StreamParams
    ) -> PatternStream:
        """Make a stream.

        Args:
            portrait: Picture whose mean colour is shown, uint8 RGB, (height_px, width_px, 3).
            prompt: Not used: the model accepts none.
            seed: Not used: nothing is random.
            params: Parameters; liveliness is shown.

        Returns:
            The stream.
        """
        del prompt, seed
        return PatternStream(self._config, num_steps=self.num_steps, portrait=portrait, params=params)


class PatternStream:
    """One stream of the pattern engine.

    Args:
        config: Picture, speed and faults.
        num_steps: Steps of a window that takes them all.
        portrait: Picture whose mean colour is shown.
        params: Parameters.
    """

    def __init__(
        self,
        config: PatternConfig,
        *,
        num_steps: int,
        portrait: NDArray[np.uint8] | None = None,
        params: StreamParams | None = None,
    ) -> None:
        self._config = config
        self._step_s = config.compute_ms / 1000 * _STEPS_SHARE / num_steps
        self._decode_s = config.compute_ms / 1000 * (1 - _STEPS_SHARE)
        self._colour_yuv = (_GREY, _NEUTRAL_CHROMA, _NEUTRAL_CHROMA)
        self._params = params or StreamParams()
        if portrait is not None:
            self.set_portrait(portrait)

    def generate(self, pcm: NDArray[np.int16], marks: StageMarks, max_steps: int) -> Iterator[NDArray[np.uint8]]:
        """Draw the frames of a window, in three batches.

        Args:
            pcm: The window and its right context.
            marks: Where the stages are noted.
            max_steps: Artificial steps that are waited for.

        Yields:
            I420 pictures, (4, height_px * 3 // 2, width_px).
        """
        if self._config.fault_window == marks.window and not self._config.fault_at_warm_up:
            _commit_fault(self._config)
        levels = [frame_level(sound) for sound in pcm[:WINDOW_SAMPLES].reshape(FRAMES_PER_BLOCK, SAMPLES_PER_FRAME)]
        marks.features_done()
        for _ in range(max_steps):
            time.sleep(self._step_s)
            marks.step_done()
        first_frame = marks.window * FRAMES_PER_BLOCK
        for first in range(0, FRAMES_PER_BLOCK, _FRAMES_PER_BATCH):
            time.sleep(self._decode_s * _FRAMES_PER_BATCH / FRAMES_PER_BLOCK)
            indices = range(first, first + _FRAMES_PER_BATCH)
            batch = np.stack([self._draw(first_frame + index, levels[index]) for index in indices])
            if indices.stop == FRAMES_PER_BLOCK:
                marks.decode_done()
            yield batch

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Nothing is carried from window to window, so nothing is to be done."""

    def interrupt(self) -> None:
        """Nothing is carried from window to window, so nothing is to be done."""

    def is_ready(self, params: StreamParams) -> bool:
        """Say that `update` takes no time."""
        return True

    def update(self, params: StreamParams) -> None:
        """Show these parameters from now on.

        Args:
            params: The parameters.
        """
        self._params = params

    def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Show the mean colour of this picture from now on.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).
        """
        red, green, blue = (float(channel) for channel in portrait.mean(axis=(0, 1)))
        # ITU-R BT.601, limited range.
        luma = 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255
        blue_difference = 128 + (-37.797 * red - 74.203 * green + 112.0 * blue) / 255
        red_difference = 128 + (112.0 * red - 93.786 * green - 18.214 * blue) / 255
        self._colour_yuv = (round(luma), round(blue_difference), round(red_difference))

    def close(self) -> None:
        """Nothing is held, so nothing is freed."""

    def _draw(self, frame_index: int, level: float) -> NDArray[np.uint8]:
        height_px, width_px = self._config.height_px, self._config.width_px
        picture = np.full((height_px * 3 // 2, width_px), _NEUTRAL_CHROMA, np.uint8)
        luma = picture[:height_px]
        luma[:] = _BLACK
        top, middle, half = height_px // 3, height_px * 2 // 3, width_px // 2
        luma[:top] = _cells_picture(_index_cells(frame_index), top, width_px)
        bar_top = middle - round(level * (middle - top))
        luma[bar_top:middle, :half] = _WHITE
        if level > _level_of_dbfs(self._config.clap_dbfs):
            luma[top:middle, half:] = _WHITE
        luma[middle:, :half] = self._colour_yuv[0]
        luma[middle:, half:] = _BLACK + round((_WHITE - _BLACK) * min(1.0, self._params.liveliness / 2))
        for plane, value in zip(
            picture[height_px:].reshape(2, height_px // 2, width_px // 2), self._colour_yuv[1:], strict=True
        ):
            plane[middle // 2 :, : half // 2] = value
        return picture


def frame_level(sound: NDArray[np.int16]) -> float:
    """Measure the level of a frame's sound.

    Args:
        sound: Samples, (num_samples,).

    Returns:
        RMS level: 0 for -60 dBFS and below, 1 for 0 dBFS.
    """
    rms = float(np.sqrt(np.mean(np.square(sound.astype(np.float64) / 32768))))
    return _level_of_dbfs(20 * np.log10(rms)) if rms > 0 else 0.0


def read_frame_index(picture: NDArray[np.uint8], height_px: int) -> int | None:
    """Read the frame index from a picture.

    Args:
        picture: I420 picture or luma plane, (height_px or more, width_px).
        height_px: Height of the picture.

    Returns:
        The index modulo `NUM_FRAME_INDICES`; None if the check bits do not fit.
    """
    top, width_px = height_px // 3, picture.shape[1]
    cells = []
    for row in range(_CODE_ROWS):
        for column in range(_CODE_COLUMNS):
            box = _inner_box(
                picture,
                rows=(top * row / _CODE_ROWS, top * (row + 1) / _CODE_ROWS),
                columns=(width_px * column / _CODE_COLUMNS, width_px * (column + 1) / _CODE_COLUMNS),
            )
            cells.append(bool(box.mean() > (_BLACK + _WHITE) / 2))
    gray_bits, check_bits = cells[:_NUM_INDEX_BITS], cells[_NUM_INDEX_BITS:]
    if _check_bits(gray_bits) != check_bits:
        return None
    index, bit = 0, False
    for gray_bit in gray_bits:
        bit ^= gray_bit
        index = 2 * index + bit
    return index


def read_level(picture: NDArray[np.uint8], height_px: int) -> float:
    """Read the level of the sound from a picture.

    Args:
        picture: I420 picture or luma plane.
        height_px: Height of the picture.

    Returns:
        The level that is shown, 0 to 1, to about one pixel of the bar.
    """
    bar = _inner_box(picture, rows=(height_px / 3, height_px * 2 / 3), columns=(0, picture.shape[1] / 2), margin_rows=0)
    return float(np.clip((bar.mean() - _BLACK) / (_WHITE - _BLACK), 0, 1))


def read_clap(picture: NDArray[np.uint8], height_px: int) -> bool:
    """Read whether the clap patch is white.

    Args:
        picture: I420 picture or luma plane.
        height_px: Height of the picture.

    Returns:
        Whether it is.
    """
    width_px = picture.shape[1]
    patch = _inner_box(picture, rows=(height_px / 3, height_px * 2 / 3), columns=(width_px / 2, width_px))
    return bool(patch.mean() > (_BLACK + _WHITE) / 2)


def read_liveliness(picture: NDArray[np.uint8], height_px: int) -> float:
    """Read the parameter liveliness from a picture.

    Args:
        picture: I420 picture or luma plane.
        height_px: Height of the picture.

    Returns:
        The value that is shown, 0 to 2.
    """
    width_px = picture.shape[1]
    patch = _inner_box(picture, rows=(height_px * 2 / 3, height_px), columns=(width_px / 2, width_px))
    return float(2 * np.clip((patch.mean() - _BLACK) / (_WHITE - _BLACK), 0, 1))


def _level_of_dbfs(level_dbfs: float) -> float:
    return float(np.clip(1 - level_dbfs / _FLOOR_DBFS, 0, 1))


def _index_cells(frame_index: int) -> list[bool]:
    index = frame_index % NUM_FRAME_INDICES
    gray = index ^ (index >> 1)
    gray_bits = [bool(gray >> shift & 1) for shift in reversed(range(_NUM_INDEX_BITS))]
    return gray_bits + _check_bits(gray_bits)


def _check_bits(gray_bits: list[bool]) -> list[bool]:
    """Parities of every fourth bit, the last one inverted so that an all-black picture is not frame 0."""
    num_check_bits = _CODE_ROWS * _CODE_COLUMNS - _NUM_INDEX_BITS
    parities = [sum(gray_bits[first::num_check_bits]) % 2 == 1 for first in range(num_check_bits)]
    return [*parities[:-1], not parities[-1]]


def _cells_picture(cells: list[bool], height_px: int, width_px: int) -> NDArray[np.uint8]:
    grid = np.where(np.array(cells).reshape(_CODE_ROWS, _CODE_COLUMNS), _WHITE, _BLACK).astype(np.uint8)
    rows = np.arange(height_px) * _CODE_ROWS // height_px
    columns = np.arange(width_px) * _CODE_COLUMNS // width_px
    return grid[rows][:, columns]


def _inner_box(
    picture: NDArray[np.uint8], *, rows: tuple[float, float], columns: tuple[float, float], margin_rows: float = 0.25
) -> NDArray[np.uint8]:
    """Cut out the inner part of a box: codecs and scaling blur the rim."""
    row_margin = (rows[1] - rows[0]) * margin_rows
    column_margin = (columns[1] - columns[0]) * 0.25
    return picture[
        round(rows[0] + row_margin) : round(rows[1] - row_margin),
        round(columns[0] + column_margin) : round(columns[1] - column_margin),
    ]


def _commit_fault(config: PatternConfig) -> None:
    match config.fault:
        case "crash":
            _logger.warning("crashing, as the configuration asks for")
            os._exit(3)
        case "stall":
            _logger.warning("stalling, as the configuration asks for")
            while True:
                time.sleep(1)
        case "raise":
            raise RuntimeError("failing, as the configuration asks for")
        case "none":
            pass
