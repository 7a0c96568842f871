"""From the network's RGB to the pictures that encoders take: I420, BT.601, limited range."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["to_i420"]

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
    matrix = torch.tensor(_FROM_RGB, device=frames_NCHW.device) / 2
    offset = torch.tensor(_OFFSET, device=frames_NCHW.device) + matrix.sum(1)
    rgb = frames_NCHW.float().clamp(-1, 1)
    luma = torch.einsum("nchw,c->nhw", rgb, matrix[0]) + offset[0]
    chroma = torch.einsum("nchw,dc->ndhw", F.avg_pool2d(rgb, 2), matrix[1:]) + offset[1:, None, None]
    planes = torch.cat([luma, chroma.reshape(count, height // 2, width)], 1)
    return planes.round_().to(torch.uint8)
