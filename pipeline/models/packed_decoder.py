"""The embedded avatar's decoder in packed layers, for CPUs, from latents straight to I420; made from a loaded decoder.

Beside the packing, a temporal block's two time steps are one convolution over time, linear layers that follow each
other are one, what depends on the portrait alone is computed once, and the last stage, where pictures are large, works
at half size with the four pixels of each square as planes of their own: only finished luma is laid out at full size.

Shape letters: T time steps, F video frames (four times the latent frames), C channels, Q the four pixels of a square in
reading order, H and W rows and columns; h and w rows and columns of half the picture's size. There is one stream, so
there is no batch dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.colour import squares_to_i420
from pipeline.models.embedded_vae import (
    LEAKY_SLOPE,
    MASK_LIMIT,
    MAX_COARSE_SHIFT,
    MAX_FINE_SHIFT,
    ChannelNorm,
    Decoder,
    DecoderState,
    PortraitFeatures,
    ResidualBlock,
    TemporalBlock,
)
from pipeline.models.packed import PackedConv

__all__ = ["PackedDecoder", "PackedPortrait"]


@dataclass(frozen=True, slots=True)
class PackedPortrait:
    """What a portrait adds to the maps of every frame, and what is warped."""

    stem_1CHW: Tensor
    """What the portrait and the bias give in the first convolution."""
    eighth_1CHW: Tensor
    """What joins at 1/8."""
    quarter_1CHW: Tensor
    """Features at 1/4, float32."""
    image_1CHW: Tensor
    """float32 in [-1, 1]."""


class PackedDecoder:
    """The decoder.

    Args:
        plain: A decoder on the CPU, its dtype settled.
    """

    def __init__(self, plain: Decoder) -> None:
        self._plain = plain
        width4 = plain.join4.out_channels
        own4, near4 = plain.join4.weight[:, :width4], plain.join4.weight[:, width4:]
        num_latent_channels = plain.stem.in_channels - plain.portrait.down16.out_channels
        self._stem_latent = PackedConv(_last(plain.stem.weight[:, :num_latent_channels]), None)
        self._stem_portrait = PackedConv(_last(plain.stem.weight[:, num_latent_channels:]), plain.stem.bias)
        self._blocks16 = _temporal_blocks(plain.blocks16)
        self._up8 = _Double(*_parameters(plain.up8))
        self._join8 = _pack(plain.join8)
        self._blocks8 = _temporal_blocks(plain.blocks8)
        self._coarse_shift = _pack(plain.coarse_shift)
        self._up4 = _Double(*_apply_after(own4.flatten(1), plain.up4))
        self._join4_near = PackedConv(_last(near4), plain.join4.bias)
        self._blocks4 = _temporal_blocks(plain.blocks4)
        self._refine4 = _Residual(plain.refine4)
        self._fine_shift = _pack(plain.fine_shift)
        self._up2 = PackedConv(*_squares_first(*_parameters(plain.up2), 1))
        own2, pixels2 = plain.join2.weight[:, :-12], plain.join2.weight[:, -12:]
        self._join2, self._join2_pixels = PackedConv(_last(own2), plain.join2.bias), PackedConv(_last(pixels2), None)
        self._refine2, self._out = _Residual(plain.refine2), _pack(plain.out)

    def prepare(self, portrait: PortraitFeatures) -> PackedPortrait:
        """Compute what depends on the portrait alone.

        Args:
            portrait: Features of one portrait, from the plain decoder.

        Returns:
            What `decode` takes.
        """
        return PackedPortrait(
            self._stem_portrait(_last(portrait.sixteenth_BCHW)),
            self._join8(_last(portrait.eighth_BCHW)),
            portrait.quarter_BCHW.float().contiguous(),
            portrait.image_BCHW.contiguous(),
        )

    def decode(
        self, latents_BCTHW: Tensor, motion_BTM: Tensor, portrait: PackedPortrait, state: DecoderState
    ) -> Tensor:
        """Decode the next latent frames of a stream; any number at a time gives the same frames.

        Args:
            latents_BCTHW: Latents as the DiT makes them, B = 1.
            motion_BTM: The motion signal that the DiT was given.
            portrait: Of the stream.
            state: The stream's state, updated in place.

        Returns:
            I420 pictures, as `to_i420` makes them of the plain decoder's frames.
        """
        dtype = self._plain.stem.weight.dtype
        motion16, motion8, motion4 = (part[0] for part in self._plain.motion(motion_BTM.to(dtype)))
        latents_TCHW = _last(latents_BCTHW[0].transpose(0, 1).to(dtype))
        maps = iter(range(Decoder.NUM_TEMPORAL_BLOCKS))

        def temporal(x_TCHW: Tensor, blocks: list[_Temporal]) -> Tensor:
            for block in blocks:
                i = next(maps)
                x_TCHW, state.maps[i] = block(x_TCHW, state.maps[i])
            return x_TCHW

        x16 = self._stem_latent(latents_TCHW, onto=_last(portrait.stem_1CHW + motion16))
        eighth_TCHW = _last(portrait.eighth_1CHW.expand(len(motion8), -1, -1, -1))
        x8 = self._up8(temporal(x16, self._blocks16), motion8, onto=eighth_TCHW)
        x8 = temporal(x8, self._blocks8)
        coarse_T4HW = MAX_COARSE_SHIFT * torch.tanh(0.1 * self._coarse_shift(x8).float())
        coarse_F2HW = coarse_T4HW.reshape(-1, 2, *x8.shape[-2:])
        shift_F2HW = F.interpolate(coarse_F2HW, scale_factor=2, mode="bilinear", align_corners=False)

        near = _warp(portrait.quarter_1CHW, shift_F2HW, squares=1)[:, :, 0].transpose(0, 1)
        x4 = self._up4(x8, motion4, onto=self._join4_near(near.to(dtype, memory_format=torch.channels_last)))
        x4 = self._refine4(temporal(x4, self._blocks4))
        shift_F2HW = shift_F2HW + MAX_FINE_SHIFT * torch.tanh(0.1 * self._fine_shift(x4).float())

        shift_F2HW = F.interpolate(shift_F2HW, scale_factor=4, mode="bilinear", align_corners=False)
        warped_3FQhw = _warp(portrait.image_1CHW, shift_F2HW, squares=2)
        return squares_to_i420(self._blend(self._draw(x4, warped_3FQhw), warped_3FQhw))

    def _draw(self, x4_FCHW: Tensor, warped_3FQhw: Tensor) -> Tensor:
        """Draw at half size: four planes for each of three colours and the mask, (F, 16, h * w), float32."""
        doubled = self._up2(x4_FCHW).permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).transpose(2, 3)
        x2_FCHW = doubled.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
        # a product with the identity turns planes into channels, or back, several times faster than a copy does
        planes_F3Qhw = warped_3FQhw.transpose(0, 1).to(x2_FCHW.dtype, memory_format=torch.contiguous_format)
        planes_FCP = planes_F3Qhw.flatten(1, 2).flatten(2)
        pixels_FPC = torch.matmul(planes_FCP.mT, torch.eye(12, dtype=planes_FCP.dtype))
        pixels_FCHW = pixels_FPC.unflatten(1, x2_FCHW.shape[-2:]).permute(0, 3, 1, 2)
        x2_FCHW = self._refine2(self._join2_pixels(pixels_FCHW, onto=self._join2(x2_FCHW)))
        drawn_FPC = self._out(x2_FCHW).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.matmul(torch.eye(16, dtype=drawn_FPC.dtype), drawn_FPC.mT).float()

    @staticmethod
    def _blend(drawn: Tensor, warped_3FQhw: Tensor) -> Tensor:
        """Blend drawn and warped pictures: (F, 3, Q, h, w)."""
        drawn_FCQhw = drawn.unflatten(2, warped_3FQhw.shape[-2:]).unflatten(1, (4, 4))
        mask_F1Qhw = torch.tanh_(drawn_FCQhw[:, 3:] / MASK_LIMIT).mul_(MASK_LIMIT).sigmoid_()
        return torch.lerp(drawn_FCQhw[:, :3], warped_3FQhw.transpose(0, 1), mask_F1Qhw)


class _Temporal:
    """A temporal block; as state it keeps the last step's input of the convolution over time."""

    def __init__(self, plain: TemporalBlock) -> None:
        self._norm = plain.norm if isinstance(plain.norm, ChannelNorm) else None
        weight_CCtHW = torch.stack(plain.conv_in.weight.chunk(2, dim=1), dim=2)
        weight_CCtHW = weight_CCtHW.contiguous(memory_format=torch.channels_last_3d)
        self._conv_in = PackedConv(weight_CCtHW, plain.conv_in.bias, slope=LEAKY_SLOPE)
        self._conv_out = _pack(plain.conv_out)

    def __call__(self, x_TCHW: Tensor, before_CHW: Tensor | None) -> tuple[Tensor, Tensor]:
        num_steps, channels, height, width = x_TCHW.shape
        seen_THWC = x_TCHW.new_empty(num_steps + 1, height, width, channels)
        seen_TCHW = seen_THWC.permute(0, 3, 1, 2)
        torch.ops.aten.leaky_relu.out(self._normed(x_TCHW), LEAKY_SLOPE, out=seen_TCHW[1:])
        seen_TCHW[0] = seen_TCHW[1] if before_CHW is None else before_CHW
        mixed_TCHW = self._conv_in(seen_TCHW.transpose(0, 1)[None])[0].transpose(0, 1)
        return self._conv_out(mixed_TCHW, onto=x_TCHW), seen_TCHW[-1]

    def _normed(self, x_TCHW: Tensor) -> Tensor:
        if self._norm is None:
            return x_TCHW
        length = torch.linalg.vector_norm(x_TCHW, dim=1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(length.square() / x_TCHW.shape[1] + ChannelNorm.EPS)
        normed_TCHW: Tensor = x_TCHW * inverse.to(x_TCHW.dtype) * self._norm.gain
        return normed_TCHW


class _Residual:
    """A residual block without a norm; it changes its input."""

    def __init__(self, plain: ResidualBlock) -> None:
        assert isinstance(plain.norm, nn.Identity)
        self._conv_in = PackedConv(plain.conv_in.weight, plain.conv_in.bias, slope=LEAKY_SLOPE)
        self._conv_out = _pack(plain.conv_out)

    def __call__(self, x_FCHW: Tensor) -> Tensor:
        y_FCHW: Tensor = self._conv_out(self._conv_in(F.leaky_relu(x_FCHW, LEAKY_SLOPE)), onto=x_FCHW)
        return y_FCHW


class _Double:
    """Twice as large in space and in time, added to what joins there; and what the motion signal adds."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        weight, self._bias = _squares_first(weight, bias, 2)
        self._conv = PackedConv(weight, None)

    def __call__(self, x_TCHW: Tensor, motion_TC11: Tensor, *, onto: Tensor) -> Tensor:
        num_steps, _, height, width = x_TCHW.shape
        places_TtHhWwC = onto.permute(0, 2, 3, 1).view(num_steps, 2, height, 2, width, 2, -1)
        biases_TN = self._bias + motion_TC11.view(num_steps, 2, 1, -1).expand(-1, -1, 4, -1).flatten(1)
        for step in range(num_steps):  # one by one, so that what the motion adds can be the convolution's bias
            doubled_1CHW = self._conv(x_TCHW[step : step + 1], bias=biases_TN[step])
            doubled_HWthwC = doubled_1CHW[0].permute(1, 2, 0).unflatten(2, (2, 2, 2, -1))
            places_TtHhWwC[step].permute(1, 3, 0, 2, 4, 5).add_(doubled_HWthwC)
        return onto


def _last(x: Tensor) -> Tensor:
    """Lay out with the channels last."""
    return x.contiguous(memory_format=torch.channels_last)


def _pack(conv: nn.Conv2d) -> PackedConv:
    return PackedConv(*_parameters(conv))


def _parameters(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight, conv.bias


def _temporal_blocks(blocks: nn.ModuleList) -> list[_Temporal]:
    return [_Temporal(cast(TemporalBlock, block)) for block in blocks]


def _squares_first(weight: Tensor, bias: Tensor, num_times: int) -> tuple[Tensor, Tensor]:
    """Reorder a convolution's outputs from (time, channel, pixel of the square) to (time, pixel, channel)."""
    parts = (part.unflatten(0, (num_times, -1, 4)).transpose(1, 2).flatten(0, 2) for part in (weight, bias))
    reordered_weight, reordered_bias = parts
    return _last(reordered_weight), reordered_bias


def _apply_after(after: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weights of a doubling's 1x1 convolution with a 1x1 convolution (C', C) of the doubled maps taken into it."""
    weight, bias = _parameters(conv)
    parts = (part.float().unflatten(0, (2, -1, 4)) for part in (weight[:, :, 0, 0], bias[:, None]))
    weight, bias = (torch.einsum("oc,tcqi->toqi", after.float(), part).flatten(0, 2) for part in parts)
    return weight[:, :, None, None].to(after.dtype), bias[:, 0].to(after.dtype)


def _warp(source_1CHW: Tensor, shift_F2HW: Tensor, *, squares: int) -> Tensor:
    """Sample a picture at the identity grid plus a shift (in half widths and heights, x first).

    Returns: the pictures, taken apart into the pixels of squares of this side: (C, F, Q, H / side, W / side).
    """
    num_frames, _, height, width = shift_F2HW.shape
    rows, columns = height // squares, width // squares
    shift = shift_F2HW.view(num_frames, 2, rows, squares, columns, squares).permute(0, 3, 5, 2, 4, 1)
    grid = torch.add(shift, _identity_grid(height, width, squares), out=torch.empty(shift.shape))
    sampled = F.grid_sample(
        source_1CHW, grid.view(1, -1, columns, 2), mode="bilinear", padding_mode="border", align_corners=False
    )
    pixels: Tensor = sampled.view(-1, num_frames, squares**2, rows, columns)
    return pixels


@lru_cache(maxsize=4)
def _identity_grid(height: int, width: int, squares: int) -> Tensor:
    """Where every pixel is, x first, pixels of a square first: (side, side, H / side, W / side, 2)."""
    ys = (torch.arange(height, dtype=torch.float32) + 0.5) * (2 / height) - 1
    xs = (torch.arange(width, dtype=torch.float32) + 0.5) * (2 / width) - 1
    grid_HW2 = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    squares_HhWw2 = grid_HW2.view(height // squares, squares, width // squares, squares, 2)
    return squares_HhWw2.permute(1, 3, 0, 2, 4).contiguous()
