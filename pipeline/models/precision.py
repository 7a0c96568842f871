"""Which arithmetic is done in float32 whatever the model runs in.

Bulk work (projections, feed-forward layers, attention, patch embeddings) runs in the compute dtype: that of the
weights, or that of an autocast region around the model. The rest is float32: norms, modulation, gates, the residual
stream from the first gate to the end of a block, the timestep's embedding, the audio encoder and the head. Their layers
are of the two classes here, which raise their weights to float32 when they are used; weights kept in float32 save the
conversion.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LAYER_NORM_EPS", "Float32Conv1d", "Float32Linear", "cast_bulk", "for_bulk", "layer_norm", "modulate"]

LAYER_NORM_EPS = 1e-6


class Float32Linear(nn.Linear):
    """A linear layer computed in float32, whatever the dtype of its weights and even under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension.

        Args:
            x: Input, (..., in_features).

        Returns:
            Output, float32, (..., out_features).
        """
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


class Float32Conv1d(nn.Conv1d):
    """A convolution over time computed in float32, whatever the dtype of its weights and even under autocast."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Convolve.

        Args:
            x_BCT: Input.

        Returns:
            Output, float32, (B, out_channels, T').
        """
        assert self.bias is not None
        with torch.autocast(x_BCT.device.type, enabled=False):
            y_BCT: Tensor = self._conv_forward(x_BCT.float(), self.weight.float(), self.bias.float())
        return y_BCT


def cast_bulk(network: nn.Module, dtype: torch.dtype) -> None:
    """Bring a network to a compute dtype, except for the layers that are computed in float32 anyway.

    Args:
        network: The network, changed in place.
        dtype: Compute dtype.
    """
    for module in network.modules():
        if not isinstance(module, Float32Linear | Float32Conv1d):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def for_bulk(x: Tensor, weight: Tensor) -> Tensor:
    """Bring a float32 result to the dtype in which the next bulk operation runs, once for all its users.

    Args:
        x: The result.
        weight: Weight of the operation.

    Returns:
        The result in the autocast region's dtype if there is one, else in that of the weight.
    """
    device_type = x.device.type
    is_autocast = torch.is_autocast_enabled(device_type)
    return x.to(torch.get_autocast_dtype(device_type) if is_autocast else weight.dtype)


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
