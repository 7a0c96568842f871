"""Packed layers: what the plain layers compute, in one product, with and without oneDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.packed import PackedConv, PackedLinear, can_pack

pytestmark = pytest.mark.numerics

Draw = Callable[[str, tuple[int, ...]], Tensor]
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}
"""Compute dtypes and how exact they are; oneDNN does not know float64, so there the plain operations run."""


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype in turn."""
    return request.param  # type: ignore[no-any-return]


def close(actual: Tensor, expected: Tensor) -> bool:
    """Equal to the rounding of the dtype."""
    return actual.shape == expected.shape and bool(
        (actual.double() - expected.double()).norm() < DTYPES[actual.dtype] * expected.double().norm()
    )


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def test_what_onednn_does_not_know_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(torch.float64)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not can_pack(torch.float32)


@pytest.mark.parametrize("gelu", ["none", "tanh", None])
def test_layers_with_one_input_are_one_product(
    draw: Draw, dtype: torch.dtype, gelu: Literal["tanh", "none"] | None
) -> None:
    layers = [nn.Linear(16, width).to(dtype).requires_grad_(False) for width in (8, 24)]
    x = draw("x", (2, 5, 16)).to(dtype)
    expected = torch.cat([layer(x) for layer in layers], -1)
    if gelu is not None:
        expected = F.gelu(expected, approximate=gelu)
    assert close(PackedLinear(*layers, gelu=gelu)(x), expected)


@pytest.mark.parametrize("with_time", [False, True])
def test_a_convolution_keeps_the_size_and_activates(draw: Draw, dtype: torch.dtype, with_time: bool) -> None:
    time = (2,) if with_time else ()
    weight, bias = draw("weight", (6, 4, *time, 3, 3)).to(dtype), draw("bias", (6,)).to(dtype)
    x = channels_last(draw("x", (1, 4, *(3 for _ in time), 8, 10)).to(dtype))
    convolve, padding = (F.conv3d, (0, 1, 1)) if with_time else (F.conv2d, (1, 1))
    expected = convolve(x, weight, bias, padding=padding)  # type: ignore[arg-type]
    assert close(PackedConv(weight, bias)(x), expected)
    assert close(PackedConv(weight, bias, slope=0.1)(x), F.leaky_relu(expected, 0.1))


def test_a_convolution_is_added_in_place(draw: Draw, dtype: torch.dtype) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1).to(dtype).requires_grad_(False)
    x, onto = (channels_last(draw(name, (2, width, 8, 10)).to(dtype)) for name, width in (("x", 4), ("onto", 6)))
    assert conv.bias is not None
    expected = onto + conv(x)
    result = PackedConv(conv.weight, conv.bias)(x, onto=onto)
    assert close(result, expected)
    assert result.data_ptr() == onto.data_ptr()


def test_another_bias_can_be_given(draw: Draw, dtype: torch.dtype) -> None:
    weight, bias = draw("weight", (6, 4, 1, 1)).to(dtype), draw("bias", (6,)).to(dtype)
    x = channels_last(draw("x", (2, 4, 8, 10)).to(dtype))
    assert close(PackedConv(weight, None)(x, bias=bias), F.conv2d(x, weight, bias))
    assert close(PackedConv(weight, None)(x), F.conv2d(x, weight))
