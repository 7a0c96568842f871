"""Which arithmetic is done in float32 whatever the model runs in.

Bulk work (projections, feed-forward layers, attention, patch embeddings) runs in the compute dtype: that of the
weights, or that of an autocast region around the model. The rest is float32: norms, modulation, gates, the residual
stream from the first gate to the end of a block, and the modules named in `FLOAT32_MODULES`, whose weights are float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FLOAT32_MODULES", "cast_weights", "full_precision", "layer_norm", "modulate"]

FLOAT32_MODULES = (
    "time_embedding",
    "time_projection",
    "motion_embedding",
    "casual_audio_encoder",
    "head",
    "modulation",
)
"""Names of modules and parameters that stay in float32, wherever they stand in a parameter's full name."""

LAYER_NORM_EPS = 1e-6


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model's weights to a compute dtype, in place, except those that stay in float32.

    Args:
        model: The model.
        dtype: Compute dtype: float32 or bfloat16.
    """
    for name, parameter in model.named_parameters():
        is_float32 = not set(FLOAT32_MODULES).isdisjoint(name.split("."))
        parameter.data = parameter.data.to(torch.float32 if is_float32 else dtype)


def full_precision(device: torch.device) -> torch.autocast:
    """Open a region in which autocast is off.

    Args:
        device: Device of the tensors in it.

    Returns:
        The context manager.
    """
    return torch.autocast(device.type, enabled=False)


def layer_norm(x: Tensor, eps: float = LAYER_NORM_EPS) -> Tensor:
    """Normalise the last dimension without weights, in float32, rounded to the dtype of the input.

    Args:
        x: Input, (..., C).
        eps: Added to the variance.

    Returns:
        The normalised input.
    """
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def modulate(x_BLC: Tensor, shift_BF1C: Tensor, scale_BF1C: Tensor) -> Tensor:
    """Scale and shift tokens, each latent frame (or, with F = 1, all of them) by its own row.

    Args:
        x_BLC: Tokens, F latent frames one after the other.
        shift_BF1C: What is added.
        scale_BF1C: Factor; the customary 1 is already in it.

    Returns:
        The tokens, (B, L, C), float32 if the rows are.
    """
    return torch.addcmul(shift_BF1C, x_BLC.unflatten(1, (shift_BF1C.shape[1], -1)), scale_BF1C).flatten(1, 2)
