"""Which tensors the files of the large model hold: every name with its shape, computed from the networks' sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from pipeline.models.dit import DiT
from pipeline.models.dit_config import DiTConfig

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
    vocabulary: int = 256_384,
    dim: int = 4096,
    ffn_dim: int = 10_240,
    num_heads: int = 64,
    num_layers: int = 24,
    num_buckets: int = 32,
) -> Shapes:
    """List the tensors of the text encoder.

    Args:
        vocabulary: Rows of the embedding.
        dim: Width of the residual stream, and of the attention.
        ffn_dim: Width of the feed-forward layers.
        num_heads: Attention heads.
        num_layers: Blocks.
        num_buckets: Rows of the relative position tables.

    Returns:
        242 tensors at the published sizes, which are the defaults.
    """
    shapes: Shapes = {"token_embedding.weight": (vocabulary, dim), "norm.weight": (dim,)}
    for layer in range(num_layers):
        name = f"blocks.{layer}"
        shapes |= {f"{name}.norm{number}.weight": (dim,) for number in (1, 2)}
        shapes |= {f"{name}.attn.{part}.weight": (dim, dim) for part in "qkvo"}
        shapes |= {f"{name}.ffn.{part}.weight": (ffn_dim, dim) for part in ("gate.0", "fc1")}
        shapes[f"{name}.ffn.fc2.weight"] = (dim, ffn_dim)
        shapes[f"{name}.pos_embedding.embedding.weight"] = (num_buckets, num_heads)
    return shapes


def vae_shapes(*, dim: int = 96, latent_channels: int = 16) -> Shapes:
    """List the tensors of the video autoencoder.

    Args:
        dim: Width at full resolution; it doubles, doubles again and then stays.
        latent_channels: Channels of the latents.

    Returns:
        194 tensors at the published sizes, which are the defaults.
    """
    widths = (dim, 2 * dim, 4 * dim, 4 * dim)
    top = widths[-1]
    shapes = {
        **_convolution("conv1", 2 * latent_channels, 2 * latent_channels, 1, 1, 1),
        **_convolution("conv2", latent_channels, latent_channels, 1, 1, 1),
        **_convolution("encoder.conv1", dim, 3, 3, 3, 3),
        **_convolution("decoder.conv1", top, latent_channels, 3, 3, 3),
        **_middle_and_head("encoder", top, top, 2 * latent_channels),
        **_middle_and_head("decoder", top, dim, 3),
    }
    return shapes | _downsamples(widths) | _upsamples(widths)


def _downsamples(widths: tuple[int, ...]) -> Shapes:
    """Four stages of two residual blocks; a halving of the sides after each but the last, of time after two of them."""
    shapes: Shapes = {}
    place, width_in = 0, widths[0]
    for stage, width in enumerate(widths):
        for _ in range(2):
            shapes |= _residual(f"encoder.downsamples.{place}", width_in, width)
            place, width_in = place + 1, width
        if stage < len(widths) - 1:
            shapes |= _convolution(f"encoder.downsamples.{place}.resample.1", width, width, 3, 3)
            if stage > 0:
                shapes |= _convolution(f"encoder.downsamples.{place}.time_conv", width, width, 3, 1, 1)
            place += 1
    return shapes


def _upsamples(widths: tuple[int, ...]) -> Shapes:
    """Four stages of three residual blocks; each but the last doubles the sides and halves the width."""
    shapes: Shapes = {}
    place, width_in = 0, widths[-1]
    for stage, width in enumerate(reversed(widths)):
        for _ in range(3):
            shapes |= _residual(f"decoder.upsamples.{place}", width_in, width)
            place, width_in = place + 1, width
        if stage < len(widths) - 1:
            shapes |= _convolution(f"decoder.upsamples.{place}.resample.1", width // 2, width, 3, 3)
            if stage < 2:
                shapes |= _convolution(f"decoder.upsamples.{place}.time_conv", 2 * width, width, 3, 1, 1)
            place, width_in = place + 1, width // 2
    return shapes


def _middle_and_head(name: str, middle: int, width: int, channels_out: int) -> Shapes:
    return {
        **_residual(f"{name}.middle.0", middle, middle),
        f"{name}.middle.1.norm.gamma": (middle, 1, 1),
        **_convolution(f"{name}.middle.1.to_qkv", 3 * middle, middle, 1, 1),
        **_convolution(f"{name}.middle.1.proj", middle, middle, 1, 1),
        **_residual(f"{name}.middle.2", middle, middle),
        f"{name}.head.0.gamma": (width, 1, 1, 1),
        **_convolution(f"{name}.head.2", channels_out, width, 3, 3, 3),
    }


def _residual(name: str, width_in: int, width: int) -> Shapes:
    shapes = {
        f"{name}.residual.0.gamma": (width_in, 1, 1, 1),
        **_convolution(f"{name}.residual.2", width, width_in, 3, 3, 3),
        f"{name}.residual.3.gamma": (width, 1, 1, 1),
        **_convolution(f"{name}.residual.6", width, width, 3, 3, 3),
    }
    if width != width_in:
        shapes |= _convolution(f"{name}.shortcut", width, width_in, 1, 1, 1)
    return shapes


def _convolution(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
