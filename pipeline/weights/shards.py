"""Tensors from safetensors shards straight onto a device.

One shard is mapped into memory at a time, and a tensor is read when its turn comes. So the host never needs more than
the largest shard, and that only as pages that the system may drop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.errors import WeightsError

__all__ = ["assemble", "read_tensors"]

Network = TypeVar("Network", bound=nn.Module)


def read_tensors(shards: Iterable[Path], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Read all tensors of some files, one after the other.

    Args:
        shards: The files.
        device: Where the tensors are wanted.

    Yields:
        Name and tensor, which holds nothing of the file.

    Raises:
        WeightsError: A file is missing or incomplete.
    """
    for path in shards:
        try:
            with safe_open(path, "pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (no mapping)
                    yield name, shard.get_tensor(name).to(device, copy=True)
        except (OSError, SafetensorError) as exc:
            raise WeightsError(str(path), f"cannot be read ({exc})") from exc


def assemble(build: Callable[[], Network], tensors: Iterable[tuple[str, Tensor]], source: Path) -> Network:
    """Make a network of tensors that are where they belong already.

    Args:
        build: Makes the network; called where parameters take no memory.
        tensors: Every parameter by its name, once.
        source: Where they come from, for the error.

    Returns:
        The network, in evaluation mode and without gradients; its parameters are the tensors themselves.

    Raises:
        WeightsError: A tensor is missing, too many, or of another shape.
    """
    with init_empty_weights():
        network = build()
    state = dict(tensors)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        raise WeightsError(str(source), f"does not fit the network ({exc})") from exc
    return network.eval().requires_grad_(False)
