"""The embedded VAE with made-up weights: shapes, streaming, and the bounds of its warps."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.models.embedded_vae import (
    MAX_COARSE_SHIFT,
    MAX_FINE_SHIFT,
    EmbeddedVAE,
    EmbeddedVAEConfig,
    PortraitFeatures,
)

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
    """A tiny network with random weights in every layer, those that start at zero included."""
    generator = torch.Generator().manual_seed(0)
    network = EmbeddedVAE(TINY).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim in (2, 4):
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 / fan_in) ** 0.5)
    return network


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plan(num_latent_frames: int, batch: int = 1) -> torch.Tensor:
    return noise(batch, num_latent_frames, 5, seed=2)


def picture(batch: int = 1, seed: int = 1) -> torch.Tensor:
    return noise(batch, 3, HEIGHT, WIDTH, seed=seed).clamp(-1, 1)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_stream_gives_what_the_whole_gives(vae: EmbeddedVAE, cut: int) -> None:
    latents = noise(1, 8, 6, HEIGHT // 16, WIDTH // 16)
    portrait = vae.portrait_features(picture())
    whole = vae.decode(latents, plan(6), portrait, vae.new_state())
    state = vae.new_state()
    cuts = [slice(t, t + cut) for t in range(0, 6, cut)]
    parts = [vae.decode(latents[:, :, here], plan(6)[:, here], portrait, state) for here in cuts]
    assert whole.shape == (1, 24, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=0)


def test_what_came_before_counts_and_what_comes_after_does_not(vae: EmbeddedVAE) -> None:
    latents = noise(1, 8, 3, HEIGHT // 16, WIDTH // 16)
    changed = latents.clone()
    changed[:, :, 1] += 1
    portrait = vae.portrait_features(picture())
    moved = plan(3)
    moved[:, 1] += 1
    one = vae.decode(latents, plan(3), portrait, vae.new_state())
    for other in (
        vae.decode(changed, plan(3), portrait, vae.new_state()),
        vae.decode(latents, moved, portrait, vae.new_state()),
    ):
        difference = (one - other).abs().amax((0, 2, 3, 4)).unflatten(0, (3, 4)).amax(1)
        assert difference[0] < 1e-5
        assert difference[1] > 1e-3
        assert difference[2] > 1e-3


def test_streams_do_not_touch_each_other(vae: EmbeddedVAE) -> None:
    latents = noise(1, 8, 2, HEIGHT // 16, WIDTH // 16)
    portrait = vae.portrait_features(picture())
    alone = vae.decode(latents, plan(2), portrait, vae.new_state())
    mine, theirs = vae.new_state(), vae.new_state()
    parts = []
    for t in range(2):
        here = slice(t, t + 1)
        parts.append(vae.decode(latents[:, :, here], plan(2)[:, here], portrait, mine))
        vae.decode(latents[:, :, here] + 3, plan(2)[:, here], portrait, theirs)
    torch.testing.assert_close(torch.cat(parts, 1), alone, atol=2e-5, rtol=0)


def test_four_frames_make_one_latent_frame_by_themselves(vae: EmbeddedVAE) -> None:
    frames = noise(2, 12, 3, HEIGHT, WIDTH).clamp(-1, 1)
    latents = vae.encode(frames)
    assert latents.shape == (2, 3, 8, HEIGHT // 16, WIDTH // 16)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(vae.encode(frames[1:, 4:8]), latents[1:, 1:2], atol=1e-5, rtol=0)


def test_a_portrait_is_encoded_as_four_still_frames(vae: EmbeddedVAE) -> None:
    image = picture(2)
    reference, features = vae.encode_portrait(image)
    still = vae.encode(image[:, None].expand(-1, 4, -1, -1, -1))
    assert reference.shape == (2, 8, 1, HEIGHT // 16, WIDTH // 16)
    torch.testing.assert_close(reference[:, :, 0], still[:, 0])
    assert features.quarter_BCHW.shape == (2, 6, HEIGHT // 4, WIDTH // 4)
    assert features.eighth_BCHW.shape == (2, 8, HEIGHT // 8, WIDTH // 8)
    assert features.sixteenth_BCHW.shape == (2, 10, HEIGHT // 16, WIDTH // 16)
    torch.testing.assert_close(features.image_BCHW, image)


def test_features_are_selected_along_the_batch(vae: EmbeddedVAE) -> None:
    features = vae.portrait_features(picture(3))
    for chosen, rows in ((features[1], slice(1, 2)), (features[1:], slice(1, 3))):
        assert isinstance(chosen, PortraitFeatures)
        assert torch.equal(chosen.image_BCHW, features.image_BCHW[rows])
        assert torch.equal(chosen.sixteenth_BCHW, features.sixteenth_BCHW[rows])


def test_a_batch_is_decoded_item_by_item(vae: EmbeddedVAE) -> None:
    latents, image = noise(2, 8, 2, HEIGHT // 16, WIDTH // 16), picture(2)
    together = vae.decode(latents, plan(2, batch=2), vae.portrait_features(image), vae.new_state())
    single = vae.decode(latents[1:], plan(2, batch=2)[1:], vae.portrait_features(image[1:]), vae.new_state())
    torch.testing.assert_close(together[1:], single, atol=2e-5, rtol=0)


def test_the_warp_is_bounded_whatever_the_latents_are(vae: EmbeddedVAE) -> None:
    """A ramp of columns as portrait: a warped pixel's value tells where it was taken from."""
    ramp = torch.linspace(-1, 1, WIDTH).expand(1, 3, HEIGHT, WIDTH)
    latents = 1e4 * noise(1, 8, 2, HEIGHT // 16, WIDTH // 16)
    _, warped, _ = vae.decoder(latents.transpose(1, 2), plan(2), vae.portrait_features(ramp), vae.new_state())
    shift = (warped - ramp[:, None]).abs().max()
    bound = (MAX_COARSE_SHIFT + MAX_FINE_SHIFT) * WIDTH / (WIDTH - 1)
    assert 0.1 < shift <= bound + 1e-4


def test_frames_lie_between_the_warped_and_the_drawn_picture(vae: EmbeddedVAE) -> None:
    latents = noise(1, 2, 8, HEIGHT // 16, WIDTH // 16)
    made, warped, drawn = vae.decoder(latents, plan(2), vae.portrait_features(picture()), vae.new_state())
    low, high = torch.minimum(warped, drawn), torch.maximum(warped, drawn)
    assert bool(((made >= low - 1e-5) & (made <= high + 1e-5)).all())
    assert (made - warped).abs().max() > 1e-3
    assert (made - drawn).abs().max() > 1e-3


def test_a_new_network_shows_the_portrait_unmoved_in_its_warped_picture() -> None:
    """The shifts start at zero, so that training begins from a still portrait."""
    network = EmbeddedVAE(TINY).eval().requires_grad_(False)
    image = picture()
    latents = noise(1, 2, 8, 4, 3)
    _, warped, _ = network.decoder(latents, plan(2), network.portrait_features(image), network.new_state())
    torch.testing.assert_close(warped, image[:, None].expand(-1, 8, -1, -1, -1), atol=1e-4, rtol=0)


def test_enlargements_start_without_a_pattern() -> None:
    """The four pixels that a convolution makes at a place begin equal."""
    network = EmbeddedVAE(TINY)
    for conv in (network.decoder.up8, network.decoder.up4, network.decoder.up2, network.decoder.out):
        shuffled = torch.nn.functional.pixel_shuffle(
            conv.weight.detach()[:, 0, :1, :1].flatten()[None, :, None, None], 2
        )
        assert bool((shuffled == shuffled[..., :1, :1]).all())


def test_the_decoder_may_be_cast_by_itself(vae: EmbeddedVAE) -> None:
    cast = copy.deepcopy(vae)
    cast.decoder.to(torch.bfloat16)
    latents = noise(1, 8, 2, HEIGHT // 16, WIDTH // 16)
    exact = vae.decode(latents, plan(2), vae.portrait_features(picture()), vae.new_state())
    reference, features = cast.encode_portrait(picture())
    rounded = cast.decode(latents, plan(2), features, cast.new_state())
    assert reference.dtype == rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < 0.1
