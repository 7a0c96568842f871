"""The clips of a pool at one picture size: training sees full pictures, and now and then smaller ones, so that slow
machines can show smaller ones.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tools.train.farm import ClipPool

__all__ = ["SCALES", "ClipView"]

SCALES = (1.0, 0.75)
"""Of the pictures that training shows: 384x256 px and 288x192 px."""


class ClipView:
    """Looks up pictures and landmarks.

    Args:
        pool: Holds the clips.
        scale: Size of the pictures, relative to those of the pool.
    """

    def __init__(self, pool: ClipPool, scale: float = 1.0) -> None:
        self.pool = pool
        self.scale = scale
        self.height_px, self.width_px = (round(scale * size) for size in pool.frames.shape[2:4])

    def pictures(self, clip: Tensor, frame: Tensor) -> Tensor:
        """Look up frames as pictures in [-1, 1].

        Args:
            clip: Places in the pool, any shape.
            frame: Frame indices (0 is the reference), broadcast against `clip`.

        Returns:
            float32, (*shape, 3, height_px, width_px).
        """
        full = self.pool.pictures(clip, frame)
        if self.scale == 1.0:
            return full
        small = F.interpolate(
            full.flatten(0, -4), (self.height_px, self.width_px), mode="bilinear", antialias=True, align_corners=False
        )
        return small.reshape(*full.shape[:-2], self.height_px, self.width_px)

    def landmarks(self, clip: Tensor, frame: Tensor) -> Tensor:
        """Look up landmarks.

        Args:
            clip: Places in the pool, any shape.
            frame: Frame indices, broadcast against `clip`.

        Returns:
            In px of these pictures, (*shape, K, 2).
        """
        return self.pool.landmarks[clip, frame] * self.scale
