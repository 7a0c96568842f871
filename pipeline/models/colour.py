"""From the network's RGB to the pictures that encoders take: I420, BT.601, limited range."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["squares_to_i420", "to_i420"]

_FROM_RGB = (
    (65.481, 128.553, 24.966),
    (-37.797, -74.203, 112.0),
    (112.0, -93.786, -18.214),
)
"""Rows Y, U, V for RGB from 0 to 1 (ITU-R BT.601, section 2.5.3)."""
_OFFSET = (16.0, 128.0, 128.0)


def to_i420(frames_NCHW: Tensor) -> Tensor:
    """Convert pictures; chroma is the mean of each 2 x 2 pixels.

    Args:
        frames_NCHW: RGB, float, clamped here to [-1, 1]; H a multiple of 4, W a multiple of 2.

    Returns:
        uint8, (N, H * 3 / 2, W): the rows of Y, then U and V at half size, two of their rows side by side in one.
    """
    count, _, height, width = frames_NCHW.shape
    planes = torch.empty((count, height * 3 // 2, width), dtype=torch.uint8, device=frames_NCHW.device)
    rgb = frames_NCHW.float().clamp(-1, 1)
    planes[:, :height] = _mix(rgb, 0)
    small = F.avg_pool2d(rgb, 2)
    chroma = torch.stack([_mix(small, 1), _mix(small, 2)], 1)
    planes[:, height:] = chroma.reshape(count, height // 2, width)
    return planes


def squares_to_i420(frames_NCQHW: Tensor) -> Tensor:
    """Convert pictures whose squares of 2 x 2 pixels are taken apart: all first pixels, all second pixels, and so on.

    Args:
        frames_NCQHW: RGB, float, Q = 4 pixels of each square in reading order; clamped here, in place.

    Returns:
        As `to_i420`.
    """
    count, _, _, rows, columns = frames_NCQHW.shape
    planes = torch.empty((count, rows * 3, columns * 2), dtype=torch.uint8, device=frames_NCQHW.device)
    rgb = frames_NCQHW.clamp_(-1, 1)
    luma = planes[:, : 2 * rows].unflatten(2, (columns, 2)).unflatten(1, (rows, 2)).permute(0, 2, 4, 1, 3)
    luma.copy_(_mix(rgb, 0).unflatten(1, (2, 2)))
    small = rgb.mean(2)
    planes[:, 2 * rows :] = torch.stack([_mix(small, 1), _mix(small, 2)], 1).view(count, rows, 2 * columns)
    return planes


def _mix(rgb_NCHW: Tensor, row: int) -> Tensor:
    """One plane, rounded, float."""
    red, green, blue = (weight / 2 for weight in _FROM_RGB[row])
    plane = torch.mul(rgb_NCHW[:, 0], red).add_(rgb_NCHW[:, 1], alpha=green).add_(rgb_NCHW[:, 2], alpha=blue)
    return plane.add_(_OFFSET[row] + red + green + blue).round_()
