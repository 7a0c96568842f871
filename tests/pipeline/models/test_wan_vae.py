"""The published model's VAE: reference outputs, published names, streaming, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.motion_packer import MotionPacker
from pipeline.models.wan_vae import (
    MOTION_LATENT_FRAMES,
    PUBLISHED_WAN_VAE,
    SINGLE_FLAVOUR,
    TIMESTEP_FLAVOUR,
    DecoderState,
    Encoder,
    StillFlavour,
    WanVAE,
)

pytestmark = pytest.mark.numerics

TINY = dataclasses.replace(PUBLISHED_WAN_VAE, width=8)
"""The sizes for which the reference outputs were made."""
TOLERANCE = 1e-5
"""Relative length of a difference that rounding explains; about 1e-6 is seen."""
ROWS, COLUMNS = 3, 2
"""Of the latents, where no reference output asks for others."""

Draw = Callable[[str, tuple[int, ...]], Tensor]
RelativeError = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def vae(draw: Draw) -> WanVAE:
    """A tiny network with the weights that the reference outputs were made with."""
    network = WanVAE(TINY)
    weights = {}
    for name, parameter in network.state_dict().items():
        values = draw(name, tuple(parameter.shape))
        if name.endswith("gamma"):
            weights[name] = 1 + 0.1 * values
        elif values.ndim >= 2:
            weights[name] = values / (values.numel() / values.shape[0]) ** 0.5
        else:
            weights[name] = 0.1 * values
    network.load_state_dict(weights)
    return network


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """The reference outputs by name."""
    path = Path(__file__).parents[2] / "data" / "tiny_parity.npz"
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("vae_")}


@pytest.fixture(scope="module")
def latents(draw: Draw) -> Tensor:
    """Eight latent frames."""
    return draw("latents", (1, 16, 8, ROWS, COLUMNS))


@pytest.fixture(scope="module")
def whole(vae: WanVAE, latents: Tensor) -> Tensor:
    """Their frames, decoded at once."""
    return vae.decode(latents, vae.new_state())


@pytest.fixture(scope="module")
def image(draw: Draw) -> Tensor:
    """A portrait."""
    return draw("portrait", (1, 3, 8 * ROWS, 8 * COLUMNS)).clamp(-1, 1)


def test_the_encoder_gives_the_reference_latents(
    vae: WanVAE, draw: Draw, golden: dict[str, Tensor], relative_error: RelativeError
) -> None:
    video = draw("in.vid", (1, 3, 9, 64, 64)).clamp(-1, 1)
    assert relative_error(vae.encode(video.transpose(1, 2)), golden["vae_encode"]) < TOLERANCE
    state = vae.new_encoder_state()
    pieces = [vae.encode(piece, state) for piece in video.transpose(1, 2).split([5, 4], 1)]
    assert relative_error(torch.cat(pieces, 2), golden["vae_encode"]) < TOLERANCE


def test_the_decoder_gives_the_reference_frames_in_two_pieces(
    vae: WanVAE, draw: Draw, golden: dict[str, Tensor], relative_error: RelativeError
) -> None:
    """The reference frames were not clamped; nine in ten of their values lie within the bounds."""
    latents = draw("in.z", (1, 16, 10, 8, 8))
    state = vae.new_state()
    for name, piece in (("vae_decode_first7", latents[:, :, :7]), ("vae_decode_next3", latents[:, :, 7:])):
        expected = golden[name]
        assert (expected.abs() < 1).float().mean() > 0.9
        frames = vae.decode(piece, state)
        assert frames.dtype == torch.float32
        assert relative_error(frames.transpose(1, 2), expected.clamp(-1, 1)) < TOLERANCE


def published_keys() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters in the published file."""

    def conv(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    def residual(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
        keys = {f"{name}.residual.0.gamma": (before, 1, 1, 1), f"{name}.residual.3.gamma": (after, 1, 1, 1)}
        keys |= conv(f"{name}.residual.2", after, before, 3, 3, 3) | conv(f"{name}.residual.6", after, after, 3, 3, 3)
        return keys | (conv(f"{name}.shortcut", after, before, 1, 1, 1) if before != after else {})

    def network(
        name: str, entrance: tuple[int, int], exit_: tuple[int, int], layers: str
    ) -> dict[str, tuple[int, ...]]:
        keys = conv(f"{name}.conv1", *entrance, 3, 3, 3)
        keys |= residual(f"{name}.middle.0", 384, 384) | residual(f"{name}.middle.2", 384, 384)
        keys |= {f"{name}.middle.1.norm.gamma": (384, 1, 1)}
        keys |= conv(f"{name}.middle.1.to_qkv", 1152, 384, 1, 1) | conv(f"{name}.middle.1.proj", 384, 384, 1, 1)
        keys |= {f"{name}.head.0.gamma": (exit_[1], 1, 1, 1)} | conv(f"{name}.head.2", *exit_, 3, 3, 3)
        sampling = "downsamples" if name == "encoder" else "upsamples"
        for index, (kind, *sizes) in enumerate(layer.split() for layer in layers.split(",")):
            before, after = int(sizes[0]), int(sizes[-1])
            layer = f"{name}.{sampling}.{index}"
            keys |= (
                residual(layer, before, after) if kind == "res" else conv(f"{layer}.resample.1", after, before, 3, 3)
            )
            if kind in ("down3d", "up3d"):
                keys |= conv(f"{layer}.time_conv", before * (2 if kind == "up3d" else 1), before, 3, 1, 1)
        return keys

    down = (
        "res 96, res 96, down2d 96, res 96 192, res 192, down3d 192, res 192 384, res 384, down3d 384, res 384, res 384"
    )
    up = (
        "res 384, res 384, res 384, up3d 384 192, res 192 384, res 384, res 384, up3d 384 192, "
        "res 192, res 192, res 192, up2d 192 96, res 96, res 96, res 96"
    )
    return {
        **network("encoder", (96, 3), (32, 384), down),
        **network("decoder", (384, 16), (3, 96), up),
        **conv("conv1", 32, 32, 1, 1, 1),
        **conv("conv2", 16, 16, 1, 1, 1),
    }


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        published = WanVAE(PUBLISHED_WAN_VAE)
    actual = {name: tuple(parameter.shape) for name, parameter in published.state_dict().items()}
    assert actual == published_keys()
    assert len(actual) == 194
    assert sum(parameter.numel() for parameter in published.parameters()) == 126_892_531


def test_the_published_strides_are_four_and_eight() -> None:
    assert (PUBLISHED_WAN_VAE.temporal_stride, PUBLISHED_WAN_VAE.spatial_stride) == (4, 8)
    assert PUBLISHED_WAN_VAE.latent_channels == 16


def test_a_model_made_without_storage_has_fast_layouts_once_it_is_loaded(vae: WanVAE) -> None:
    with torch.device("meta"):
        empty = WanVAE(TINY)
    loaded = empty.to_empty(device="cpu")
    loaded.load_state_dict(vae.state_dict())
    assert loaded.decoder.conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    resample = loaded.get_parameter("decoder.upsamples.3.resample.1.weight")
    assert resample.is_contiguous(memory_format=torch.channels_last)


def diffusers_name(name: str) -> str:
    """Where diffusers keeps a parameter of the published file."""

    def up_block(match: re.Match[str]) -> str:
        level, index = divmod(int(match[1]), TINY.num_residual_blocks + 2)
        return f"up_blocks.{level}." + ("upsamplers.0" if index > TINY.num_residual_blocks else f"resnets.{index}")

    name = re.sub(r"upsamples\.(\d+)", up_block, name).replace("downsamples", "down_blocks")
    names = {
        r"^conv1": "quant_conv",
        r"^conv2": "post_quant_conv",
        r"coder\.conv1": "coder.conv_in",
        r"head\.0": "norm_out",
        r"head\.2": "conv_out",
        r"middle\.0": "mid_block.resnets.0",
        r"middle\.1": "mid_block.attentions.0",
        r"middle\.2": "mid_block.resnets.1",
        r"residual\.0": "norm1",
        r"residual\.2": "conv1",
        r"residual\.3": "norm2",
        r"residual\.6": "conv2",
        "shortcut": "conv_shortcut",
    }
    for published, theirs in names.items():
        name = re.sub(published, theirs, name)
    return name


def test_it_agrees_with_diffusers(
    vae: WanVAE, draw: Draw, latents: Tensor, whole: Tensor, relative_error: RelativeError
) -> None:
    """Both ways, over more frames than the encoder takes at a time."""
    # Imported here, so that a machine with a GPU and without diffusers runs the rest.
    from diffusers import AutoencoderKLWan

    theirs = AutoencoderKLWan(base_dim=8)
    theirs.load_state_dict({diffusers_name(name): values for name, values in vae.state_dict().items()})
    theirs.requires_grad_(False)
    mean, std = (torch.tensor(values).reshape(1, 16, 1, 1, 1) for values in (TINY.latent_mean, TINY.latent_std))
    assert relative_error(whole.transpose(1, 2), theirs.decode(latents * std + mean).sample) < TOLERANCE
    video = draw("video", (1, 29, 3, 8 * ROWS, 8 * COLUMNS)).clamp(-1, 1)
    expected = (theirs.encode(video.transpose(1, 2)).latent_dist.mode() - mean) / std
    assert relative_error(vae.encode(video), expected) < TOLERANCE


@pytest.mark.parametrize("pieces", [[1] * 8, [2, 3, 3], [3, 1, 4], [1, 7]])
def test_any_pieces_give_the_frames_of_the_whole(
    vae: WanVAE, latents: Tensor, whole: Tensor, pieces: list[int]
) -> None:
    state = vae.new_state()
    parts = [vae.decode(piece, state) for piece in latents.split(pieces, 2)]
    lengths = [4 * piece for piece in pieces]
    lengths[0] -= 3
    assert [part.shape[1] for part in parts] == lengths
    assert whole.shape == (1, 29, 3, 8 * ROWS, 8 * COLUMNS)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changed", [0, 1, 4])
def test_a_latent_frame_counts_from_its_own_first_frame_on(
    vae: WanVAE, latents: Tensor, whole: Tensor, changed: int
) -> None:
    other = latents.clone()
    other[:, :, changed] += 1
    difference = (vae.decode(other, vae.new_state()) - whole).abs().amax((0, 2, 3, 4))
    first = max(4 * changed - 3, 0)
    assert bool((difference[:first] < 1e-5).all())
    assert bool((difference[first : first + 4] > 1e-3).all())


def test_streams_take_turns_without_touching_each_other(vae: WanVAE, latents: Tensor, whole: Tensor) -> None:
    mine, theirs = vae.new_state(), vae.new_state()
    parts = []
    for piece in latents.split(2, 2):
        parts.append(vae.decode(piece, mine))
        vae.decode(3 - piece, theirs)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_a_clone_continues_as_the_original_does(vae: WanVAE, latents: Tensor, whole: Tensor) -> None:
    original = vae.new_state()
    vae.decode(latents[:, :, :3], original)
    clone = original.clone()
    for state in (original, clone):
        torch.testing.assert_close(vae.decode(latents[:, :, 3:], state), whole[:, 9:], atol=1e-5, rtol=0)


def test_a_state_keeps_its_memory_once_it_has_begun(vae: WanVAE, latents: Tensor) -> None:
    state = vae.new_state()
    assert state.num_bytes == 0
    vae.decode(latents[:, :, :1], state)

    def places(held: DecoderState) -> list[int]:
        assert all(past is not None for past in held.pasts)
        return [past.data_ptr() for past in held.pasts if past is not None]

    before, num_bytes = places(state), state.num_bytes
    assert num_bytes > 0
    vae.decode(latents[:, :, 1:4], state)
    assert places(state) == before
    assert state.num_bytes == num_bytes
    assert not set(places(state.clone())) & set(before)


def test_a_batch_is_decoded_and_encoded_item_by_item(vae: WanVAE, draw: Draw) -> None:
    latents = draw("batch", (2, 16, 3, ROWS, COLUMNS))
    frames = vae.decode(latents, vae.new_state())
    torch.testing.assert_close(frames[1:], vae.decode(latents[1:], vae.new_state()), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.encode(frames)[1:], vae.encode(frames[1:]), atol=1e-5, rtol=0)


def test_one_frame_is_encoded_as_the_beginning_of_a_video(vae: WanVAE, draw: Draw) -> None:
    video = draw("video", (1, 17, 3, 8 * ROWS, 8 * COLUMNS)).clamp(-1, 1)
    latents = vae.encode(video)
    assert latents.shape == (1, 16, 5, ROWS, COLUMNS)
    torch.testing.assert_close(latents[:, :, :1], vae.encode(video[:, :1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pieces", [[1, 4, 4, 4, 4], [5, 12], [13, 4]])
def test_a_video_may_be_encoded_in_pieces(vae: WanVAE, draw: Draw, pieces: list[int]) -> None:
    video = draw("video", (1, 17, 3, 8 * ROWS, 8 * COLUMNS)).clamp(-1, 1)
    state = vae.new_encoder_state()
    parts = [vae.encode(piece, state) for piece in video.split(pieces, 1)]
    assert [part.shape[2] for part in parts] == [(piece + 3) // 4 for piece in pieces]
    torch.testing.assert_close(torch.cat(parts, 2), vae.encode(video), atol=1e-5, rtol=0)


def test_a_video_that_has_begun_goes_on_in_fours(vae: WanVAE) -> None:
    state = vae.new_encoder_state()
    vae.encode(torch.zeros(1, 1, 3, 16, 16), state)
    for num_frames in (0, 1, 5):
        with pytest.raises(ConfigError, match=r"0 \+ 4k, 3, H, W\)"):
            vae.encode(torch.zeros(1, num_frames, 3, 16, 16), state)


def test_a_portrait_is_a_still_video(vae: WanVAE, image: Tensor) -> None:
    portrait = vae.encode_portrait(image)
    still = vae.encode(image[:, None].expand(-1, 73, -1, -1, -1))
    assert portrait.motion_BCThw.shape == (1, 16, 19, ROWS, COLUMNS)
    torch.testing.assert_close(portrait.motion_BCThw, still, atol=1e-5, rtol=0)
    torch.testing.assert_close(portrait.reference_BCThw, vae.encode(image[:, None]), atol=1e-5, rtol=0)


def test_the_flavour_of_a_single_device_is_a_longer_video_and_its_second_latent_frame(
    vae: WanVAE, image: Tensor, relative_error: RelativeError
) -> None:
    """Written out as the published code does it: 5 pictures for the reference, 73 times those for the past."""
    portrait = vae.encode_portrait(image, SINGLE_FLAVOUR)
    five = image[:, None].expand(-1, 5, -1, -1, -1)
    past = vae.encode(five.repeat(1, 73, 1, 1, 1))
    assert past.shape[2] == 92
    torch.testing.assert_close(portrait.reference_BCThw, vae.encode(five)[:, :, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(portrait.motion_BCThw, past[:, :, -19:], atol=1e-5, rtol=0)
    default = vae.encode_portrait(image)
    assert relative_error(default.reference_BCThw, portrait.reference_BCThw) > 0.1
    assert relative_error(default.motion_BCThw, portrait.motion_BCThw) > 1e-3


def test_the_past_is_what_the_transformer_packs() -> None:
    for flavour in (TIMESTEP_FLAVOUR, SINGLE_FLAVOUR):
        assert (flavour.num_frames + 3) // 4 >= MotionPacker.NUM_LATENT_FRAMES == MOTION_LATENT_FRAMES


def test_a_still_video_may_be_short_and_the_network_another_one(image: Tensor) -> None:
    """Three halvings of the frame rate and single blocks lead to even numbers of frames between them."""
    torch.manual_seed(0)
    other = Encoder(dataclasses.replace(TINY, num_residual_blocks=1, halves_time=(True, True, True)))
    for num_frames in (1, 9, 17, 73):
        with torch.inference_mode():
            still = other.encode_still(image.movedim(1, -1), num_frames)
            video = image.movedim(1, -1)[:, None].expand(-1, num_frames, -1, -1, -1)
            torch.testing.assert_close(still, other(video, [None] * other.num_slots), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("flavour", "num_warm"), [(TIMESTEP_FLAVOUR, 7), (SINGLE_FLAVOUR, 92)])
def test_streams_of_a_portrait_start_after_still_latent_frames(
    vae: WanVAE, image: Tensor, latents: Tensor, flavour: StillFlavour, num_warm: int
) -> None:
    """Every block then gives twelve frames, and every stream of the portrait the same ones."""
    portrait = vae.encode_portrait(image, flavour)
    past = vae.encode(image[:, None].expand(-1, 4 * num_warm - 3, -1, -1, -1))
    expected = vae.decode(torch.cat([past, latents[:, :, :6]], 2), vae.new_state())[:, 4 * num_warm - 3 :]
    for _ in range(2):
        state = portrait.warm_state.clone()
        blocks = [vae.decode(block, state) for block in latents[:, :, :6].split(3, 2)]
        assert [block.shape[1] for block in blocks] == [12, 12]
        torch.testing.assert_close(torch.cat(blocks, 1), expected, atol=1e-5, rtol=0)


def test_bfloat16_changes_rounding_only(
    vae: WanVAE, latents: Tensor, whole: Tensor, image: Tensor, relative_error: RelativeError
) -> None:
    rounded = WanVAE(TINY)
    rounded.load_state_dict(vae.state_dict())
    rounded.bfloat16()
    frames, still = rounded.decode(latents, rounded.new_state()), rounded.encode(image[:, None])
    assert frames.dtype == still.dtype == torch.float32
    assert 0 < relative_error(frames, whole) < 0.05
    assert 0 < relative_error(still, vae.encode(image[:, None])) < 0.05


def test_frames_are_clamped(vae: WanVAE, latents: Tensor) -> None:
    frames = vae.decode(5 * latents, vae.new_state())
    assert (frames.min(), frames.max()) == (-1, 1)


@pytest.mark.parametrize("inference", [True, False])
def test_it_works_within_and_without_inference_mode(
    vae: WanVAE, latents: Tensor, whole: Tensor, inference: bool
) -> None:
    """A state may pass from one to the other."""
    with torch.inference_mode(inference):
        state = vae.new_state()
        first = vae.decode(latents[:, :, :3], state)
        state = state.clone()
    with torch.inference_mode(not inference):
        second = vae.decode(latents[:, :, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "shape",
    [(5, 3, 16, 16), (1, 4, 3, 16, 16), (1, 0, 3, 16, 16), (1, 5, 4, 16, 16), (1, 5, 3, 12, 16), (1, 5, 3, 16, 9)],
)
def test_videos_that_do_not_fit_are_refused(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"1 \+ 4k, 3, H, W\) with H and W multiples of 8") as error:
        vae.encode(torch.zeros(shape))
    assert error.value.value == shape


@pytest.mark.parametrize("shape", [(16, 3, 3, 2), (1, 8, 3, 3, 2), (1, 16, 0, 3, 2)])
def test_latents_that_do_not_fit_are_refused(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"\(B, 16, T, h, w\) with at least one latent frame") as error:
        vae.decode(torch.zeros(shape), vae.new_state())
    assert error.value.value == shape


def test_a_stream_does_not_change_its_size(vae: WanVAE, latents: Tensor, whole: Tensor) -> None:
    """A refused piece leaves the stream as it was."""
    state = vae.new_state()
    vae.decode(latents[:, :, :2], state)
    for shape in ((2, 16, 1, ROWS, COLUMNS), (1, 16, 1, ROWS + 1, COLUMNS)):
        with pytest.raises(ConfigError, match=r"the stream has been \(1, 16, T, 3, 2\) so far"):
            vae.decode(torch.zeros(shape), state)
    torch.testing.assert_close(vae.decode(latents[:, :, 2:], state), whole[:, 5:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"halves_time": (True, True)}, "width_multiples has 4 entries, so it has to have 3"),
        ({"latent_std": (1.0,)}, "one entry per channel, 16"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PUBLISHED_WAN_VAE, **changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.timeout(300)
def test_the_published_size_decodes_blocks_without_growing() -> None:
    """704x384 in bfloat16: from the second block on no more is held, and no more is needed for a while."""
    torch.manual_seed(0)
    with torch.device("meta"):
        published = WanVAE(PUBLISHED_WAN_VAE).bfloat16()
    published.to_empty(device="cuda")
    for name, parameter in published.named_parameters():
        if parameter.ndim > 1 and not name.endswith("gamma"):
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(name.endswith("gamma"))
    latents = torch.randn(1, 16, 3, 88, 48, device="cuda", dtype=torch.bfloat16)
    state = published.new_state()
    held_bytes, peak_bytes = [], []
    for block in range(6):
        torch.cuda.reset_peak_memory_stats()
        frames = published.decode(latents, state)
        assert frames.shape == (1, 12 if block else 9, 3, 704, 384)
        assert frames.std() > 0.01
        del frames
        held_bytes.append(torch.cuda.memory_allocated())
        peak_bytes.append(torch.cuda.max_memory_allocated())
    assert max(held_bytes[2:]) <= held_bytes[1]
    assert max(peak_bytes[2:]) <= peak_bytes[1]
