"""Keep what a benchmark measures as movies, because figures do not replace looking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from pipeline.geometry import SAMPLE_RATE_HZ
from pipeline.media import MovieWriter

__all__ = ["recorded"]


def recorded(
    frames: Iterable[NDArray[np.uint8]], pcm: NDArray[np.int16], path: Path | None
) -> Iterator[NDArray[np.uint8]]:
    """Pass frames on and write them, with their sound, into a movie when the last has passed.

    Args:
        frames: RGB, (height_px, width_px, 3).
        pcm: 16 kHz mono.
        path: The .mp4; nothing is written if None.

    Yields:
        The frames.

    Raises:
        OSError: The movie cannot be written.
    """
    if path is None:
        yield from frames
        return
    iterator = iter(frames)
    first = next(iterator)
    height_px, width_px, _ = first.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with MovieWriter(path, height_px=height_px, width_px=width_px, rate_hz=SAMPLE_RATE_HZ, num_channels=1) as writer:
        sound = AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        sound.sample_rate = SAMPLE_RATE_HZ
        writer.add_sound(sound)
        writer.add_sound(None)
        writer.add_pictures(_i420(first)[None])
        yield first
        for frame in iterator:
            writer.add_pictures(_i420(frame)[None])
            yield frame
        writer.finish()


def _i420(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert RGB to I420 (BT.601, limited range)."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return np.asarray(frame.to_ndarray(format="yuv420p", src_colorspace="ITU601", dst_colorspace="ITU601"), np.uint8)
