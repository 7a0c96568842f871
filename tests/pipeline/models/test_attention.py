"""Attention: norms over the full width, and plain softmax."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.attention import Attention, KeysValues, RMSNorm, attend
from pipeline.models.rope import make_rotation, rotate

pytestmark = pytest.mark.numerics

Draw = Callable[[str, tuple[int, ...]], Tensor]


def test_the_norm_divides_by_the_root_mean_square_and_scales(draw: Draw) -> None:
    norm = RMSNorm(8)
    weight = draw("weight", (8,))
    norm.weight.data = weight
    x = draw("x", (2, 3, 8))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_the_norm_is_rounded_to_the_dtype_of_its_input(draw: Draw) -> None:
    """Under autocast the input is bfloat16 while the weight is float32."""
    norm = RMSNorm(8)
    x = draw("x", (2, 8))
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(norm(x.bfloat16()).float(), norm(x), atol=0.03)


def test_queries_and_keys_are_normalised_before_the_heads_are_split(draw: Draw) -> None:
    attention = Attention(8, 2).requires_grad_(False)
    x = draw("x", (1, 3, 8))
    for split in (attention.queries(x), attention.keys_values(x).keys_BKHD):
        assert split.shape == (1, 3, 2, 4)
        assert torch.allclose(split.flatten(-2).square().mean(-1), torch.ones(1, 3), atol=1e-3)
    assert torch.equal(attention.keys_values(x).values_BKHD.flatten(-2), attention.v(x))


def test_attending_is_softmax_over_scaled_products(draw: Draw) -> None:
    queries, keys, values = draw("q", (2, 3, 2, 4)), draw("k", (2, 5, 2, 4)), draw("v", (2, 5, 2, 4))
    shares = torch.einsum("blhd,bkhd->bhlk", queries, keys).div(2).softmax(-1)
    expected = torch.einsum("bhlk,bkhd->blhd", shares, values)
    assert torch.allclose(attend(queries, KeysValues(keys, values)), expected, atol=1e-6)


def test_reading_joins_the_heads_and_projects(draw: Draw) -> None:
    attention = Attention(8, 2).requires_grad_(False)
    queries, source = draw("q", (1, 3, 2, 4)), KeysValues(draw("k", (1, 5, 2, 4)), draw("v", (1, 5, 2, 4)))
    expected = attention.o(attend(queries, source).reshape(1, 3, 8))
    assert torch.allclose(attention.read(queries, source), expected, atol=1e-6)


def test_a_projection_rotates_queries_and_keys_to_their_positions_where_these_are_given(draw: Draw) -> None:
    attention = Attention(24, 2).requires_grad_(False)
    x = draw("x", (1, 3, 24))
    rotation = make_rotation([5], [0], range(3), head_dim=12, device=x.device)
    queries, source = attention.project(x)
    turned_queries, turned = attention.project(x, rotation)
    assert torch.equal(queries, attention.queries(x))
    assert torch.equal(turned_queries, rotate(queries, rotation))
    assert torch.equal(turned.keys_BKHD, rotate(source.keys_BKHD, rotation))
    assert torch.equal(turned.values_BKHD, source.values_BKHD)
    assert not torch.allclose(turned_queries, queries, atol=0.1)
