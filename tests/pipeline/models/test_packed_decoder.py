"""The packed decoder: the pictures of the plain one, whatever is decoded at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pipeline.models.colour import to_i420
from pipeline.models.embedded_vae import EmbeddedVAE, EmbeddedVAEConfig
from pipeline.models.packed_decoder import PackedDecoder

pytestmark = pytest.mark.numerics

HEIGHT, WIDTH = 64, 48
TINY = EmbeddedVAEConfig(
    latent_channels=8,
    motion_signal_dim=5,
    encoder_widths=(8, 12, 16),
    decoder_widths=(24, 16, 12, 8),
    portrait_widths=(6, 8, 10),
)


@pytest.fixture(scope="module")
def vae() -> EmbeddedVAE:
    """A tiny network with random weights in every layer, biases and gains included."""
    generator = torch.Generator().manual_seed(0)
    network = EmbeddedVAE(TINY).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 10
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.4 / fan_in) ** 0.5)
        if name.endswith("gain"):
            parameter.add_(1)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGE = noise(1, 3, HEIGHT, WIDTH, seed=1).clamp(-1, 1)
LATENTS, PLAN = noise(1, 8, 6, HEIGHT // 16, WIDTH // 16, seed=2), noise(1, 6, 5, seed=3)


def plain_pictures(vae: EmbeddedVAE) -> Tensor:
    return to_i420(vae.decode(LATENTS, PLAN, vae.portrait_features(IMAGE), vae.new_state())[0])


def packed_pictures(vae: EmbeddedVAE, *, at_a_time: int) -> Tensor:
    decoder, state = PackedDecoder(vae.decoder), vae.new_state()
    portrait = decoder.prepare(vae.portrait_features(IMAGE))
    cuts = [slice(first, first + at_a_time) for first in range(0, 6, at_a_time)]
    return torch.cat([decoder.decode(LATENTS[:, :, cut], PLAN[:, cut], portrait, state) for cut in cuts])


@pytest.mark.parametrize("at_a_time", [1, 2, 6])
@pytest.mark.parametrize("has_onednn", [True, False])
def test_the_pictures_are_those_of_the_plain_decoder(
    vae: EmbeddedVAE, monkeypatch: pytest.MonkeyPatch, at_a_time: int, has_onednn: bool
) -> None:
    expected = plain_pictures(vae)
    assert expected.float().std() > 10
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", has_onednn)
    difference = packed_pictures(vae, at_a_time=at_a_time).int() - expected.int()
    assert difference.shape == (24, HEIGHT * 3 // 2, WIDTH)
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-3


def test_in_bfloat16_packing_loses_nothing(vae: EmbeddedVAE) -> None:
    """Squared, 0.93 to 0.98 of the plain error is seen, by instruction set; a bit less would quadruple it."""
    exact = plain_pictures(vae).float()
    rounded = copy.deepcopy(vae)
    rounded.decoder.to(torch.bfloat16)
    plain_error = (plain_pictures(rounded) - exact).square().mean()
    packed_error = (packed_pictures(rounded, at_a_time=1) - exact).square().mean()
    assert 0 < packed_error < 1.2 * plain_error


def test_a_portrait_serves_any_number_of_frames(vae: EmbeddedVAE) -> None:
    """Much is done in place; what was prepared of the portrait must stay as it was."""
    decoder = PackedDecoder(vae.decoder)
    portrait = decoder.prepare(vae.portrait_features(IMAGE))
    first, again = (decoder.decode(LATENTS, PLAN, portrait, vae.new_state()) for _ in range(2))
    assert torch.equal(first, again)
