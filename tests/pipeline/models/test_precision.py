"""Precision: what stays in float32 whatever surrounds it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.precision import Float32Conv1d, Float32Linear, cast_bulk, for_bulk, layer_norm, modulate

pytestmark = pytest.mark.numerics

Draw = Callable[[str, tuple[int, ...]], Tensor]


def test_a_float32_layer_is_exact_under_autocast_and_takes_any_dtype(draw: Draw) -> None:
    for layer, x in [(Float32Linear(4, 3), draw("x", (2, 4))), (Float32Conv1d(4, 3, 3), draw("x", (2, 4, 5)))]:
        layer.requires_grad_(False)
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(x), expected)
        layer.to(torch.bfloat16)
        raised = layer(x.bfloat16())
        assert raised.dtype == torch.float32
        assert torch.allclose(raised, expected, atol=0.05)


def test_a_layer_norm_has_mean_zero_variance_one_and_the_dtype_of_its_input(draw: Draw) -> None:
    x = 3 + 2 * draw("x", (4, 64))
    normed = layer_norm(x)
    assert torch.allclose(normed.mean(-1), torch.zeros(4), atol=1e-5)
    assert torch.allclose(normed.var(-1, correction=0), torch.ones(4), atol=1e-4)
    assert layer_norm(x.bfloat16()).dtype == torch.bfloat16


def test_every_latent_frame_is_modulated_by_its_own_row(draw: Draw) -> None:
    x, shift, scale = draw("x", (2, 6, 4)), draw("shift", (2, 3, 1, 4)), draw("scale", (2, 3, 1, 4))
    modulated = modulate(x, shift, scale)
    for token in range(6):
        expected = x[:, token] * scale[:, token // 2, 0] + shift[:, token // 2, 0]
        assert torch.allclose(modulated[:, token], expected, atol=1e-6)


def test_one_row_modulates_all_tokens_and_the_result_is_float32(draw: Draw) -> None:
    x, shift, scale = draw("x", (1, 6, 4)).bfloat16(), draw("shift", (1, 1, 1, 4)), draw("scale", (1, 1, 1, 4))
    modulated = modulate(x, shift, scale)
    assert modulated.dtype == torch.float32
    assert torch.allclose(modulated, x.float() * scale[0] + shift[0], atol=1e-6)


def test_bulk_work_runs_in_the_dtype_of_the_weights_or_of_autocast() -> None:
    x = torch.zeros(2)
    assert for_bulk(x, x.bfloat16()).dtype == torch.bfloat16
    assert for_bulk(x, x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert for_bulk(x, x).dtype == torch.bfloat16


def test_casting_the_bulk_leaves_the_float32_layers_as_exact_as_they_were(draw: Draw) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), Float32Linear(4, 4)).requires_grad_(False)
    x, expected = draw("x", (2, 4)), network[1](draw("x", (2, 4)))
    cast_bulk(network, torch.bfloat16)
    assert network[0].weight.dtype == network[0].bias.dtype == torch.bfloat16
    assert torch.equal(network[1](x), expected)
