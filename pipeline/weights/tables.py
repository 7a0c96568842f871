"""Which tensors the files of the large model hold: every name with its shape, computed from the networks' sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from pipeline.models.dit import DiT
from pipeline.models.dit_config import DiTConfig
from pipeline.models.wan_vae import WanVAE, WanVAEConfig

__all__ = ["Shapes", "adapter_targets", "dit_shapes", "text_encoder_shapes", "vae_shapes"]

Shapes = dict[str, tuple[int, ...]]
"""Tensors by name."""

_ADAPTED = re.compile(
    r"(blocks\.\d+\.(self_attn|cross_attn)\.[qkvo]|blocks\.\d+\.ffn\.[02]|audio_injector\.injector\.\d+\.[qkvo])\.weight"
)


def dit_shapes(config: DiTConfig) -> Shapes:
    """List the tensors of the transformer.

    Args:
        config: Its sizes.

    Returns:
        1,260 tensors at the published sizes.
    """
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in DiT(config).state_dict().items()}


def adapter_targets(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """List the linear layers that the four-step adapter changes.

    Args:
        shapes: Tensors of the transformer.

    Returns:
        Shape (out, in) of the weight, by name of the layer: 448 at the published sizes.
    """
    adapted = {name: shape for name, shape in shapes.items() if _ADAPTED.fullmatch(name)}
    return {name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in adapted.items()}


def text_encoder_shapes(
    *,
    vocabulary_tokens: int,
    dim: int,
    attention_dim: int,
    ffn_dim: int,
    num_heads: int,
    num_layers: int,
    num_buckets: int,
) -> Shapes:
    """List the tensors of the text encoder.

    Args:
        vocabulary_tokens: Rows of the embedding.
        dim: Width of the residual stream.
        attention_dim: Width of queries, keys and values.
        ffn_dim: Width of the feed-forward layers.
        num_heads: Attention heads.
        num_layers: Blocks.
        num_buckets: Rows of the relative position tables.

    Returns:
        242 tensors at the published sizes.
    """
    shapes: Shapes = {"token_embedding.weight": (vocabulary_tokens, dim), "norm.weight": (dim,)}
    for layer in range(num_layers):
        name = f"blocks.{layer}"
        shapes |= {f"{name}.norm{number}.weight": (dim,) for number in (1, 2)}
        shapes |= {f"{name}.attn.{part}.weight": (attention_dim, dim) for part in "qkv"}
        shapes[f"{name}.attn.o.weight"] = (dim, attention_dim)
        shapes |= {f"{name}.ffn.{part}.weight": (ffn_dim, dim) for part in ("gate.0", "fc1")}
        shapes[f"{name}.ffn.fc2.weight"] = (dim, ffn_dim)
        shapes[f"{name}.pos_embedding.embedding.weight"] = (num_buckets, num_heads)
    return shapes


def vae_shapes(config: WanVAEConfig) -> Shapes:
    """List the tensors of the video autoencoder.

    Args:
        config: Its sizes.

    Returns:
        194 tensors at the published sizes.
    """
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in WanVAE(config).state_dict().items()}
