"""Networks with weights that have learnt nothing, made on their device without any file: for benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

__all__ = ["random_network"]

Network = TypeVar("Network", bound=nn.Module)


def random_network(build: Callable[[], Network], *, device: torch.device, dtype: torch.dtype, seed: int) -> Network:
    """Make a network of random weights that keep the size of what passes through them.

    Args:
        build: Makes the network; called where parameters take no memory.
        device: Where its weights are drawn; generators of different kinds of devices differ.
        dtype: Of the weights.
        seed: Same seed, same weights.

    Returns:
        The network, in evaluation mode and without gradients.
    """
    with torch.device("meta"):
        network = build().to(dtype)
    assert not list(network.buffers()), "buffers would be left without values"
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            _fill(name, parameter, generator)
    return network.eval().requires_grad_(False)


def _fill(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.numel() == max(parameter.shape):
        parameter.fill_(1)  # gains, and shares of layers
    else:
        parameter.normal_(std=(parameter.shape[0] / parameter.numel()) ** 0.5, generator=generator)
