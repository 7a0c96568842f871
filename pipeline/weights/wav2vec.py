"""The folder of the large engine's speech network: its sizes, and which tensors its file has to hold.

The file is one of a network for recognition, in any of the spellings that the transformers library has had. Nothing
here needs that library.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.audio.context import STATE_FIELD_SAMPLES, STATE_HOP_SAMPLES
from pipeline.errors import WeightsError
from pipeline.weights.headers import read_json

__all__ = ["POSITIONS", "POSITION_PARTS", "Wav2VecSizes", "is_needed", "read_wav2vec_sizes", "wav2vec_shapes"]

_PREFIX = "wav2vec2."
_MASK = f"{_PREFIX}masked_spec_embed"
"""Stands for masked sound in training."""
POSITIONS = f"{_PREFIX}encoder.pos_conv_embed.conv"
"""The convolution that tells the layers where they are."""
POSITION_PARTS = (
    (f"{POSITIONS}.weight_g", f"{POSITIONS}.weight_v"),
    (f"{POSITIONS}.parametrizations.weight.original0", f"{POSITIONS}.parametrizations.weight.original1"),
)
"""Two spellings of the norm and the direction of its weight, where that is stored in two parts."""

_KIND: dict[str, tuple[Any, Any]] = {
    "feat_extract_norm": ("layer", "group"),
    "do_stable_layer_norm": (True, False),
    "add_adapter": (False, False),
}
"""What config.json has to say, and what it says by saying nothing."""
_LEFT_OUT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "conv_bias": False,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}
"""Sizes that config.json says by saying nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wav2VecSizes:
    """Sizes that show in the shapes of the network's tensors."""

    dim: int
    """Width of a hidden state."""
    ffn_dim: int
    """Width of the feed-forward layers."""
    num_layers: int
    """Number of layers above the convolutions."""
    num_position_taps: int
    """States that the convolution over positions sees."""
    num_position_groups: int
    """Groups of channels that it keeps apart."""
    conv_dims: tuple[int, ...]
    """Channels of the convolutions over sound."""
    conv_kernels: tuple[int, ...]
    """Their kernels."""
    has_conv_bias: bool
    """Whether they have biases."""


def read_wav2vec_sizes(path: Path) -> Wav2VecSizes:
    """Read the sizes of the network, and whether it is of the published kind.

    Args:
        path: Its config.json.

    Returns:
        The sizes.

    Raises:
        WeightsError: The file is unreadable, or describes a network of another kind.
    """
    given = read_json(path)
    for key, (fixed, otherwise) in _KIND.items():
        if given.get(key, otherwise) != fixed:
            raise WeightsError(str(path), f"{key} is {given.get(key, otherwise)!r}, but only {fixed!r} is known here")
    size = {key: _checked(path, key, given.get(key, otherwise)) for key, otherwise in _LEFT_OUT.items()}
    _check_field(path, size["conv_kernel"], size["conv_stride"])
    if len(size["conv_dim"]) != len(size["conv_kernel"]):
        raise WeightsError(
            str(path), f"conv_dim is {size['conv_dim']!r}, but there are {len(size['conv_kernel'])} kernels"
        )
    for key in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if size["hidden_size"] % size[key]:
            rule = f"but it has to divide hidden_size, {size['hidden_size']}"
            raise WeightsError(str(path), f"{key} is {size[key]!r}, {rule}")
    return Wav2VecSizes(
        dim=size["hidden_size"],
        ffn_dim=size["intermediate_size"],
        num_layers=size["num_hidden_layers"],
        num_position_taps=size["num_conv_pos_embeddings"],
        num_position_groups=size["num_conv_pos_embedding_groups"],
        conv_dims=tuple(size["conv_dim"]),
        conv_kernels=tuple(size["conv_kernel"]),
        has_conv_bias=size["conv_bias"],
    )


def _checked(path: Path, key: str, value: Any) -> Any:
    """Insist on the type that is the published one's."""
    published = _LEFT_OUT[key]
    if isinstance(published, bool):
        if not isinstance(value, bool):
            raise WeightsError(str(path), f"{key} is {value!r}, but it has to be true or false")
    elif isinstance(published, int):
        if not _is_size(value):
            raise WeightsError(str(path), f"{key} is {value!r}, but it has to be a positive whole number")
    elif not isinstance(value, list) or not value or not all(map(_is_size, value)):
        raise WeightsError(str(path), f"{key} is {value!r}, but it has to be a list of positive whole numbers")
    return value


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_field(path: Path, kernels: Sequence[int], strides: Sequence[int]) -> None:
    """Insist on the published number of samples that make a state, and on those from one state to the next."""
    if len(kernels) != len(strides):
        raise WeightsError(str(path), f"conv_stride is {strides!r}, but there are {len(kernels)} kernels")
    field_samples, hop_samples = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field_samples += (kernel - 1) * hop_samples
        hop_samples *= stride
    if (field_samples, hop_samples) != (STATE_FIELD_SAMPLES, STATE_HOP_SAMPLES):
        reason = f"a state is made of {field_samples} samples every {hop_samples}"
        raise WeightsError(str(path), f"{reason}, but it has to be {STATE_FIELD_SAMPLES} every {STATE_HOP_SAMPLES}")


def is_needed(name: str) -> bool:
    """Tell the network's tensors from the letters above it and from what is for training.

    Args:
        name: Of a tensor in the file.

    Returns:
        Whether it is needed.
    """
    return name.startswith(_PREFIX) and name != _MASK


def wav2vec_shapes(sizes: Wav2VecSizes, names: Container[str]) -> dict[str, tuple[int, ...]]:
    """List the tensors that are needed of the network's file.

    Args:
        sizes: Of the network.
        names: Of the tensors in the file, which tell the spelling.

    Returns:
        Shapes by name.
    """
    dim, hidden = sizes.dim, f"{_PREFIX}encoder"
    shapes: dict[str, tuple[int, ...]] = {}
    before = 1
    for number, (width, kernel) in enumerate(zip(sizes.conv_dims, sizes.conv_kernels, strict=True)):
        layer = f"{_PREFIX}feature_extractor.conv_layers.{number}"
        shapes[f"{layer}.conv.weight"] = (width, before, kernel)
        if sizes.has_conv_bias:
            shapes[f"{layer}.conv.bias"] = (width,)
        shapes |= _pair(f"{layer}.layer_norm", (width,))
        before = width
    shapes |= _pair(f"{_PREFIX}feature_projection.layer_norm", (before,))
    shapes |= _pair(f"{_PREFIX}feature_projection.projection", (dim, before))
    shapes |= _position_shapes(sizes, names)
    shapes |= _pair(f"{hidden}.layer_norm", (dim,))
    for number in range(sizes.num_layers):
        layer = f"{hidden}.layers.{number}"
        for part in ("q", "k", "v", "out"):
            shapes |= _pair(f"{layer}.attention.{part}_proj", (dim, dim))
        shapes |= _pair(f"{layer}.layer_norm", (dim,))
        shapes |= _pair(f"{layer}.feed_forward.intermediate_dense", (sizes.ffn_dim, dim))
        shapes |= _pair(f"{layer}.feed_forward.output_dense", (dim, sizes.ffn_dim))
        shapes |= _pair(f"{layer}.final_layer_norm", (dim,))
    return shapes


def _position_shapes(sizes: Wav2VecSizes, names: Container[str]) -> Mapping[str, tuple[int, ...]]:
    whole = (sizes.dim, sizes.dim // sizes.num_position_groups, sizes.num_position_taps)
    norm, direction = next((parts for parts in POSITION_PARTS if _any_in(parts, names)), POSITION_PARTS[-1])
    is_whole = f"{POSITIONS}.weight" in names
    weight = {f"{POSITIONS}.weight": whole} if is_whole else {norm: (1, 1, whole[2]), direction: whole}
    return {f"{POSITIONS}.bias": whole[:1], **weight}


def _any_in(parts: Iterable[str], names: Container[str]) -> bool:
    return any(part in names for part in parts)


def _pair(layer: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a layer."""
    return {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
