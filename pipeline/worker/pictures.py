"""Portraits as the networks take them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError

__all__ = ["portrait_tensor"]


def portrait_tensor(portrait: NDArray[np.uint8] | None, *, height_px: int, width_px: int) -> Tensor:
    """Check a portrait and bring it into the networks' range.

    Args:
        portrait: uint8 RGB, (height_px, width_px, 3).
        height_px: What the engine makes.
        width_px: What the engine makes.

    Returns:
        float32 in [-1, 1], (1, 3, height_px, width_px).

    Raises:
        ConfigError: It is missing or has another size.
    """
    shape = (height_px, width_px, 3)
    if portrait is None or portrait.shape != shape:
        given = None if portrait is None else portrait.shape
        raise ConfigError("portrait", given, f"it has to be an RGB picture of shape {shape}")
    return torch.from_numpy(portrait.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
