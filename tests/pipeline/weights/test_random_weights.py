"""Random weights: reproducible, complete, and of a size that keeps what passes through them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.weights.random_weights import random_network

pytestmark = pytest.mark.numerics

CPU = torch.device("cpu")


def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300), nn.Conv1d(300, 8, 3))

    return random_network(build, device=CPU, dtype=dtype, seed=seed)


def test_every_weight_has_its_value() -> None:
    network = make()
    assert network[0].weight.std() == pytest.approx(400**-0.5, rel=0.02)
    assert network[2].weight.std() == pytest.approx(900**-0.5, rel=0.05)
    assert (network[1].weight == 1).all()
    assert all((layer.bias == 0).all() for layer in network)
    assert not any(part.requires_grad for part in network.parameters())
    assert not network.training


def test_the_same_seed_gives_the_same_weights() -> None:
    assert torch.equal(make(1)[0].weight, make(1)[0].weight)
    assert not torch.equal(make(1)[0].weight, make(2)[0].weight)


def test_the_dtype_is_the_one_asked_for() -> None:
    assert {part.dtype for part in make(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_network_with_buffers_is_refused() -> None:
    with pytest.raises(AssertionError, match="buffers would be left without values"):
        random_network(lambda: nn.BatchNorm1d(3), device=CPU, dtype=torch.float32, seed=0)
