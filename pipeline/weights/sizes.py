"""Sizes of the large model's other networks, which no file of theirs writes down.

At the published sizes of the transformer everything has its published size. A folder of another size (a toy, for tests)
tells them by the shapes of a few tensors; the check compares all others with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B
from pipeline.models.wan_vae import PUBLISHED_WAN_VAE, WanVAEConfig
from pipeline.weights.headers import TensorHeader

__all__ = ["PUBLISHED_TEXT_ENCODER_SIZES", "Sizes", "text_encoder_sizes", "vae_config"]

PUBLISHED_TEXT_ENCODER_SIZES = {
    "vocabulary_tokens": 256_384,
    "dim": 4096,
    "attention_dim": 4096,
    "ffn_dim": 10_240,
    "num_heads": 64,
    "num_layers": 24,
    "num_buckets": 32,
}
"""Fields of the text encoder's configuration that show in shapes. They are here as well as beside that network because
it needs libraries that the check does without.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the networks that need to be told."""

    dit: DiTConfig
    """Of the transformer."""
    vae: WanVAEConfig
    """Of the video autoencoder."""
    text_encoder: Mapping[str, int]
    """Of the text encoder: the fields of its configuration that are in `PUBLISHED_TEXT_ENCODER_SIZES`."""


def vae_config(headers: Mapping[str, TensorHeader], dit: DiTConfig) -> WanVAEConfig:
    """Find the sizes of the video autoencoder.

    Args:
        headers: Its tensors.
        dit: Sizes of the transformer.

    Returns:
        Its sizes.
    """
    if dit == PUBLISHED_14B:
        return PUBLISHED_WAN_VAE
    width = _size(headers, "encoder.conv1.weight", 0, PUBLISHED_WAN_VAE.width)
    return dataclasses.replace(PUBLISHED_WAN_VAE, width=width)


def text_encoder_sizes(headers: Mapping[str, TensorHeader], dit: DiTConfig) -> dict[str, int]:
    """Find the sizes of the text encoder.

    Args:
        headers: Its tensors.
        dit: Sizes of the transformer.

    Returns:
        The fields of its configuration that are in `PUBLISHED_TEXT_ENCODER_SIZES`.
    """
    published = PUBLISHED_TEXT_ENCODER_SIZES
    if dit == PUBLISHED_14B:
        return dict(published)
    places = {
        "vocabulary_tokens": ("token_embedding.weight", 0),
        "attention_dim": ("blocks.0.attn.q.weight", 0),
        "ffn_dim": ("blocks.0.ffn.gate.0.weight", 0),
        "num_buckets": ("blocks.0.pos_embedding.embedding.weight", 0),
        "num_heads": ("blocks.0.pos_embedding.embedding.weight", 1),
    }
    sizes = {size: _size(headers, name, axis, published[size]) for size, (name, axis) in places.items()}
    num_layers = sum(name.endswith(".norm1.weight") for name in headers)
    return {**sizes, "dim": dit.text_dim or published["dim"], "num_layers": num_layers}


def _size(headers: Mapping[str, TensorHeader], name: str, axis: int, otherwise: int) -> int:
    shape = headers[name].shape if name in headers else ()
    return shape[axis] if axis < len(shape) else otherwise
