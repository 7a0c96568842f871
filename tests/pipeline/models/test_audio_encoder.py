"""The audio encoder: blocks in isolation, no look-ahead, float32."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.audio_encoder import AudioEncoder
from pipeline.models.dit import DiT
from pipeline.models.dit_config import DiTConfig

pytestmark = pytest.mark.numerics

Draw = Callable[[str, tuple[int, ...]], Tensor]


@pytest.fixture
def encoder(tiny_published: DiT) -> AudioEncoder:
    """The encoder with 25 feature layers."""
    return tiny_published.casual_audio_encoder


def test_one_repeated_column_does_what_seventy_three_do(encoder: AudioEncoder, draw: Draw) -> None:
    """The published code repeats the first column 73 times and drops 19 latent frames of 22."""
    columns = draw("columns", (1, 25, 16, 12))
    shares = torch.nn.functional.silu(encoder.weights)
    mixed = (columns * shares).sum(1) / shares.sum()
    padded = torch.cat([mixed[..., :1].expand(-1, -1, 73), mixed], dim=-1)
    long = encoder.encoder(padded)
    tokens = encoder(columns)
    assert torch.allclose(tokens.local_BTKC, long.local_BTKC[:, 19:], atol=1e-5)
    assert torch.allclose(tokens.global_BT1C, long.global_BT1C[:, 19:], atol=1e-5)


def test_blocks_are_encoded_in_isolation(encoder: AudioEncoder, draw: Draw) -> None:
    columns = draw("columns", (2, 25, 16, 36))
    together = encoder(columns)
    assert together.local_BTKC.shape == (2, 9, 5, 128)
    assert together.global_BT1C.shape == (2, 9, 1, 128)
    for block in range(3):
        alone = encoder(columns[..., 12 * block : 12 * block + 12])
        for whole, part in zip(together, alone, strict=True):
            assert torch.allclose(whole[:, 3 * block : 3 * block + 3], part, atol=1e-5)


def test_a_latent_frame_hears_its_own_columns_and_none_after(encoder: AudioEncoder, draw: Draw) -> None:
    columns, others = draw("columns", (1, 25, 16, 12)), draw("others", (1, 25, 16, 12))
    before = encoder(columns).global_BT1C
    for latent_frame, end in enumerate((4, 8, 12)):
        later = torch.cat([columns[..., :end], others[..., end:]], dim=-1)
        after = encoder(later).global_BT1C
        assert torch.equal(before[:, : latent_frame + 1], after[:, : latent_frame + 1])
        own = columns.clone()
        own[..., end - 1] = others[..., end - 1]
        after = encoder(own).global_BT1C
        assert not torch.allclose(before[:, latent_frame], after[:, latent_frame], atol=1e-3)


def test_the_last_token_is_the_learned_padding(encoder: AudioEncoder, draw: Draw) -> None:
    tokens = encoder(draw("columns", (1, 25, 16, 12)))
    assert torch.equal(tokens.local_BTKC[0, :, -1], encoder.encoder.padding_tokens[0, 0].expand(3, -1))


def test_it_stays_in_float32_under_autocast_and_with_bfloat16_weights(
    encoder: AudioEncoder, build: Callable[[DiTConfig], DiT], tiny_published: DiT, draw: Draw
) -> None:
    columns = draw("columns", (1, 25, 16, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_autocast = encoder(columns)
    expected = encoder(columns)
    assert torch.equal(in_autocast.local_BTKC, expected.local_BTKC)
    assert torch.equal(in_autocast.global_BT1C, expected.global_BT1C)
    rounded = build(tiny_published.config).casual_audio_encoder.to(torch.bfloat16)(columns)
    for actual, wanted in zip(rounded, expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.allclose(actual, wanted, atol=0.05)


def test_a_single_feature_layer_has_no_mixing_weights(tiny_embedded: DiT) -> None:
    names = {name for name, _ in tiny_embedded.casual_audio_encoder.named_parameters()}
    assert "weights" not in names


@pytest.mark.parametrize("shape", [(1, 24, 16, 12), (1, 25, 16, 13), (1, 25, 16, 0)])
def test_columns_that_make_no_whole_blocks_are_refused(encoder: AudioEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{shape[1]} layers x {shape[3]} audio columns"):
        encoder(torch.zeros(shape))


def test_the_number_of_audio_tokens_is_free(build: Callable[[DiTConfig], DiT], tiny_embedded: DiT, draw: Draw) -> None:
    encoder = build(dataclasses.replace(tiny_embedded.config, num_audio_tokens=2)).casual_audio_encoder
    assert encoder(draw("columns", (1, 1, 16, 12))).local_BTKC.shape == (1, 3, 3, 128)
