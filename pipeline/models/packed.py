"""Layers for inference on CPUs: weights laid out once as oneDNN wants them, and what follows a product done within it.

Plain layers lay out their weights anew in every call, and every function after them reads and writes the whole result
again; at the embedded model's sizes that takes longer than the products. A packed layer computes what its plain layer
does, to the rounding. Where oneDNN does not know the processor or the dtype, it runs the plain operations.

Packed layers hold no parameters: they are made from a loaded network, after its dtype is settled.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PackedConv", "PackedLinear", "can_pack"]

_onednn = torch.ops.mkldnn


def can_pack(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN's fused layers work here.

    Args:
        dtype: Compute dtype.

    Returns:
        Whether they do: on x86 processors, with bfloat16 where the processor computes in it.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(_onednn._is_mkldnn_bf16_supported()))


class PackedLinear(nn.Module):
    """One or several linear layers with the same input, as one product, with or without the GELU behind it.

    Args:
        *layers: The plain layers; their outputs are concatenated.
        gelu: Approximation of the GELU that follows; None: no GELU.
    """

    def __init__(self, *layers: nn.Linear, gelu: Literal["tanh", "none"] | None = None) -> None:
        super().__init__()
        self._gelu = gelu
        self._bias = torch.cat([layer.bias for layer in layers])
        weight = torch.cat([layer.weight for layer in layers])
        self._is_packed = can_pack(weight.dtype)
        self._weight = _onednn._reorder_linear_weight(weight) if self._is_packed else weight

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension.

        Args:
            x: Input, (..., in_features), in the dtype of the layers.

        Returns:
            Output, (..., out_features).
        """
        y: Tensor
        if self._is_packed:
            function = "none" if self._gelu is None else "gelu"
            y = _onednn._linear_pointwise.default(x, self._weight, self._bias, function, [], self._gelu)
            return y
        y = F.linear(x, self._weight, self._bias)
        return y if self._gelu is None else F.gelu(y, approximate=self._gelu)


class PackedConv(nn.Module):
    """A convolution of stride 1 over pictures (or over pictures and time) that keeps their size (but not their time).

    Args:
        weight: (C', C, kh, kw) or (C', C, kt, kh, kw).
        bias: (C',), or None.
        slope: Of the leaky ReLU that follows; None: no activation.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, slope: float | None = None) -> None:
        super().__init__()
        self._bias = bias
        self._slope = slope
        self._padding = [0] * (weight.ndim - 4) + [size // 2 for size in weight.shape[-2:]]
        self._ones = [1] * (weight.ndim - 2)
        self._is_packed = can_pack(weight.dtype)
        shape = (self._padding, self._ones, self._ones, 1)
        self._weight = _onednn._reorder_convolution_weight(weight, *shape) if self._is_packed else weight

    def forward(self, x: Tensor, onto: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (N, C, H, W) or (N, C, T, H, W), channels last in memory, in the dtype of the weights.
            onto: What the result is added to, in place; shaped and laid out as the result. Not with an activation.
            bias: Instead of the layer's own.

        Returns:
            (N, C', H, W) or (N, C', T', H, W), channels last.
        """
        assert onto is None or self._slope is None
        bias = self._bias if bias is None else bias
        y: Tensor
        if not self._is_packed:
            convolve = F.conv2d if x.ndim == 4 else F.conv3d
            y = convolve(x, self._weight, bias, padding=self._padding)
            if onto is not None:
                return onto.add_(y)
            return y if self._slope is None else F.leaky_relu_(y, self._slope)
        weights, shape = (self._weight, bias), (self._padding, self._ones, self._ones, 1)
        if onto is not None:
            y = _onednn._convolution_pointwise_.binary(onto, x, *weights, *shape, "add", None, None, [], None)
        else:
            function = ("none", []) if self._slope is None else ("leaky_relu", [self._slope])
            y = _onednn._convolution_pointwise.default(x, *weights, *shape, *function, None)
        return y
