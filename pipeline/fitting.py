"""Pictures into the frame: what a `Placement` says, done to pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.geometry import Placement

__all__ = ["fit"]


def fit(picture: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Resize a picture and cut the frame out of it, as the published model's code does.

    Args:
        picture: uint8 RGB, (any height, any width, 3).
        placement: Where the frame is; black where it reaches beyond the picture.

    Returns:
        uint8 RGB, (height_px, width_px, 3).
    """
    resized_px = (placement.resized_width_px, placement.resized_height_px)
    resized = Image.fromarray(picture).resize(resized_px, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop(placement.box), np.uint8)
