"""The published model: its parameters have the published names and shapes."""

import pytest
import torch

from pipeline.models.dit import DiT
from pipeline.models.published import PUBLISHED_14B

pytestmark = pytest.mark.numerics

DIM, FFN, LAYERS, INJECTIONS = 5120, 13824, 40, 12


def linear(name: str, out_dim: int, in_dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def convolution(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def attention(name: str) -> dict[str, tuple[int, ...]]:
    keys = {f"{name}.norm_q.weight": (DIM,), f"{name}.norm_k.weight": (DIM,)}
    for part in "qkvo":
        keys |= linear(f"{name}.{part}", DIM, DIM)
    return keys


def block(name: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.modulation": (1, 6, DIM),
        f"{name}.norm3.weight": (DIM,),
        f"{name}.norm3.bias": (DIM,),
        **attention(f"{name}.self_attn"),
        **attention(f"{name}.cross_attn"),
        **linear(f"{name}.ffn.0", FFN, DIM),
        **linear(f"{name}.ffn.2", DIM, FFN),
    }


def audio_encoder(name: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.weights": (1, 25, 1, 1),
        f"{name}.encoder.padding_tokens": (1, 1, 1, DIM),
        **convolution(f"{name}.encoder.conv1_local.conv", 5120, 1024, 3),
        **convolution(f"{name}.encoder.conv1_global.conv", 1280, 1024, 3),
        **convolution(f"{name}.encoder.conv2.conv", 2560, 1280, 3),
        **convolution(f"{name}.encoder.conv3.conv", 5120, 2560, 3),
        **linear(f"{name}.encoder.final_linear", DIM, DIM),
    }


def published_keys() -> dict[str, tuple[int, ...]]:
    keys: dict[str, tuple[int, ...]] = {
        **convolution("patch_embedding", DIM, 16, 1, 2, 2),
        **convolution("cond_encoder", DIM, 16, 1, 2, 2),
        "trainable_cond_mask.weight": (3, DIM),
        **linear("text_embedding.0", DIM, 4096),
        **linear("text_embedding.2", DIM, DIM),
        **linear("time_embedding.0", DIM, 256),
        **linear("time_embedding.2", DIM, DIM),
        **linear("time_projection.1", 6 * DIM, DIM),
        "head.modulation": (1, 2, DIM),
        **linear("head.head", 64, DIM),
        **audio_encoder("casual_audio_encoder"),
        **convolution("frame_packer.proj", DIM, 16, 1, 2, 2),
        **convolution("frame_packer.proj_2x", DIM, 16, 2, 4, 4),
        **convolution("frame_packer.proj_4x", DIM, 16, 4, 8, 8),
    }
    for layer in range(LAYERS):
        keys |= block(f"blocks.{layer}")
    for ordinal in range(INJECTIONS):
        keys |= attention(f"audio_injector.injector.{ordinal}")
        keys |= linear(f"audio_injector.injector_adain_layers.{ordinal}.linear", 2 * DIM, DIM)
    return keys


@pytest.fixture(scope="module")
def published() -> DiT:
    """The whole model without storage."""
    with torch.device("meta"):
        return DiT(PUBLISHED_14B)


def test_names_and_shapes_are_the_published_ones(published: DiT) -> None:
    actual = {name: tuple(parameter.shape) for name, parameter in published.state_dict().items()}
    assert actual == published_keys()


def test_the_model_has_the_published_number_of_parameters(published: DiT) -> None:
    assert len(published.state_dict()) == 1260
    assert sum(parameter.numel() for parameter in published.parameters()) == 16_295_755_609


def test_the_published_sink_has_two_and_a_half_latent_frames_of_tokens() -> None:
    assert PUBLISHED_14B.sink_tokens(44, 24) == 2640
