"""Films for tests: pictures of one grey each, at any times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

__all__ = ["damage_film", "write_film"]


def write_film(
    path: Path, greys: Sequence[int], *, rate: Fraction = Fraction(25), ticks: Sequence[int] | None = None
) -> Path:
    """Write a film of 48x64 px.

    Args:
        path: The file.
        greys: Brightness of every picture, 0 to 255.
        rate: Pictures per second.
        ticks: When each picture is shown, in units of 1 / rate; None: one after the other.

    Returns:
        The path.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for grey, tick in zip(greys, ticks or range(len(greys)), strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damage_film(path: Path) -> None:
    """Overwrite the second half of an MP4's pictures.

    Args:
        path: The file.
    """
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    size = int.from_bytes(data[start - 4 : start], "big")
    half = size // 2
    data[start + half : start + size - 4] = b"\xff" * (size - 4 - half)
    path.write_bytes(bytes(data))
