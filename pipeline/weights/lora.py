"""The adapter that makes four steps enough: found by any of its spellings, complete or refused, merged while loading.

A pair of thin matrices belongs to each of the transformer's attention and feed-forward layers (448 at the published
sizes): W becomes W + scale * B @ A. The sum is formed, with the precision of float32 at least, on the device on which
the layer ends up, one layer at a time, so that there never is a second copy of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B
from pipeline.weights.headers import TensorHeader, read_safetensors
from pipeline.weights.tables import adapter_targets, dit_shapes

__all__ = [
    "ADAPTER_SCALE",
    "Adapter",
    "FoundPairs",
    "Pair",
    "find_pairs",
    "merge_pair",
    "open_adapter",
    "published_rank",
]

_RANK, _ALPHA = 128, 64.0
ADAPTER_SCALE = _ALPHA / _RANK

_KEY = re.compile(
    r"(base_model\.model\.|diffusion_model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight", flags=re.ASCII
)
_TYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Pair:
    """What the adapter's file calls the two matrices of one layer."""

    down: str
    """A, (rank, in)."""
    up: str
    """B, (out, rank)."""


class FoundPairs(NamedTuple):
    """What an adapter's file holds."""

    pairs: dict[str, Pair]
    """The pairs by layer; of use only if nothing is wrong."""
    problems: list[str]
    """All that is wrong, in words."""
    unused: list[str]
    """Names of tensors that belong to no layer that the adapter changes; the published code passes over them, too."""


def published_rank(config: DiTConfig) -> int | None:
    """Say which rank the adapter of a transformer has to have.

    Args:
        config: Sizes of the transformer.

    Returns:
        128 for the published sizes; None, any one rank, for others.
    """
    return _RANK if config == PUBLISHED_14B else None


def find_pairs(
    headers: Mapping[str, TensorHeader], targets: Mapping[str, tuple[int, int]], rank: int | None
) -> FoundPairs:
    """Find the pair of every layer.

    Args:
        headers: Tensors of the adapter's file.
        targets: Shape (out, in) of the layers that have to have a pair.
        rank: Rank of the pairs; None: whatever they have in common.

    Returns:
        The pairs, what is wrong with them, and what else there is.
    """
    sides: dict[str, dict[str, list[str]]] = {layer: {"A": [], "B": []} for layer in targets}
    problems, unused = [], []
    for name in headers:
        match = _KEY.fullmatch(name)
        if match is None or match["layer"] not in sides:
            unused.append(name)
        else:
            sides[match["layer"]][match["side"]].append(name)
    num_whole = sum(all(found.values()) for found in sides.values())
    pairs = {}
    for layer, found in sides.items():
        twice = [names for names in found.values() if len(names) > 1]
        missing = [f"lora_{side}" for side, names in found.items() if not names]
        if missing:
            what = " and ".join(missing)
            problems.append(f"{what} of {layer} is missing; {num_whole} of {len(targets)} pairs are there")
        elif twice:
            problems.append(f"{layer} is there twice: {' and '.join(twice[0])}")
        else:
            pair = pairs[layer] = Pair(found["A"][0], found["B"][0])
            rank = rank or next(iter(headers[pair.down].shape), 0)
            problems += _misfits(headers, pair, targets[layer], rank)
    return FoundPairs(pairs, problems, unused)


def _misfits(headers: Mapping[str, TensorHeader], pair: Pair, layer_shape: tuple[int, int], rank: int) -> Iterator[str]:
    """Say in words what is wrong with the two matrices of a layer."""
    for name, shape in ((pair.down, (rank, layer_shape[1])), (pair.up, (layer_shape[0], rank))):
        if headers[name].shape != shape:
            yield f"tensor {name} is {list(headers[name].shape)}, but it has to be {list(shape)}"
        if headers[name].dtype not in _TYPES:
            yield f"tensor {name} is {headers[name].dtype}, but it has to be one of {', '.join(_TYPES)}"


def merge_pair(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> None:
    """Add the product of a pair to a weight, and round once.

    The published pipeline does this in float32. Here it is float64, because settings can turn float32 products on GPUs
    and CPUs into rougher ones; rounded, the two are the same.

    Args:
        weight: (out, in); the sum takes its place, rounded to its dtype.
        down: A, (rank, in), on the same device.
        up: B, (out, rank), on the same device.
        scale: Factor of the product.
    """
    weight.copy_((up.double() @ down.double()).mul_(scale).add_(weight))


class Adapter:
    """An open adapter. Its file is mapped, and a pair is read when its layer comes by.

    Args:
        file: The open safetensors file.
        pairs: Names of the matrices by layer.
        scale: Factor of the products.
    """

    def __init__(self, file: safe_open, pairs: Mapping[str, Pair], scale: float) -> None:
        self._file = file
        self._pairs = pairs
        self._scale = scale

    def merge(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Merge the adapter into the transformer's tensors as they pass.

        Args:
            tensors: Names and tensors, on the device on which to merge; weights of adapted layers are changed in place.

        Yields:
            The same.
        """
        for name, value in tensors:
            pair = self._pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            if pair is not None:
                merge_pair(value, self._read(pair.down, value), self._read(pair.up, value), self._scale)
            yield name, value

    def _read(self, key: str, weight: Tensor) -> Tensor:
        return self._file.get_tensor(key).to(weight.device)  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def open_adapter(path: Path, config: DiTConfig) -> Iterator[Adapter]:
    """Open an adapter for as long as the transformer is loaded.

    Args:
        path: Its file.
        config: Sizes of the transformer.

    Yields:
        The adapter; every layer has its pair.

    Raises:
        WeightsError: The file is unreadable, or a pair is missing or does not fit; the first one is named.
    """
    headers = read_safetensors(path)
    found = find_pairs(headers, adapter_targets(dit_shapes(config)), published_rank(config))
    if found.problems:
        raise WeightsError(str(path), found.problems[0])
    with safe_open(path, "pt") as file:
        yield Adapter(file, found.pairs, ADAPTER_SCALE)
