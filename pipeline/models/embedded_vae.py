"""The embedded avatar's video VAE: 16x in space, 4x in time, and a decoder that borrows from the portrait and the plan.

Four frames make one latent frame; the encoder sees those four frames alone. The decoder is causal: a latent frame is
decoded from itself, what came before it (`DecoderState`, one feature map per temporal convolution), the planned motion
of its four frames, and the portrait, whose own pixels it warps and completes. That is where the sharpness comes from at
this size: skin, hair and background are moved, only what the portrait does not show (open mouth, closed eyes, uncovered
background) is drawn. The plan tells each frame's pose, blink and gaze exactly, so heads turn smoothly within a latent
frame, and latents are free for what only they can tell: the mouth.

Shape suffixes: B batch, T latent frames, F video frames (4T), C channels, H and W pixels, h and w latent rows and
columns, M numbers of the motion signal per latent frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DecoderState", "EmbeddedVAE", "EmbeddedVAEConfig", "PortraitFeatures"]

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 16
MAX_COARSE_SHIFT = 0.3
MAX_FINE_SHIFT = 0.06
"""Largest shift of the two warps, in half picture widths and heights: an unbounded warp collapses in training."""
MASK_LIMIT = 4.0
"""Bound of the blend's logit, so that neither the warped nor the drawn picture ever stops learning."""
LEAKY_SLOPE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedVAEConfig:
    """Sizes of the network; every width is a number of channels."""

    latent_channels: int
    motion_signal_dim: int
    """Numbers per latent frame that describe pose, blink, gaze and brow."""
    encoder_widths: tuple[int, int, int]
    """At 1/4, 1/8 and 1/16 of the picture."""
    decoder_widths: tuple[int, int, int, int]
    """At 1/16, 1/8, 1/4 and 1/2 of the picture."""
    portrait_widths: tuple[int, int, int]
    """Of the portrait's features at 1/4, 1/8 and 1/16."""


@dataclass(frozen=True, slots=True)
class PortraitFeatures:
    """What the decoder keeps of a portrait; constant for a stream. Batch dimension first."""

    image_BCHW: Tensor
    """float32 in [-1, 1]."""
    quarter_BCHW: Tensor
    eighth_BCHW: Tensor
    sixteenth_BCHW: Tensor

    def __getitem__(self, index: int | slice) -> PortraitFeatures:
        """Select along the batch dimension.

        Args:
            index: A slice, or an index (which keeps the dimension).

        Returns:
            The features of the selected items.
        """
        keep = slice(index, index + 1) if isinstance(index, int) else index
        return PortraitFeatures(
            self.image_BCHW[keep], self.quarter_BCHW[keep], self.eighth_BCHW[keep], self.sixteenth_BCHW[keep]
        )


@dataclass(slots=True)
class DecoderState:
    """Causal context of one stream: for each temporal convolution the last feature map it saw, or None at the start."""

    maps: list[Tensor | None]


def _act(x: Tensor) -> Tensor:
    """The activation everywhere in this file: on CPUs several times cheaper than SiLU, which was no better."""
    return F.leaky_relu(x, LEAKY_SLOPE)


class ChannelNorm(nn.Module):
    """RMS norm over channels at each position, with a gain per channel."""

    EPS = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalise.

        Args:
            x_NCHW: Any dtype; the statistics are taken in float32.

        Returns:
            The normalised maps, in their dtype.
        """
        scale = torch.rsqrt(x_NCHW.float().square().mean(-3, keepdim=True) + self.EPS)
        normed: Tensor = x_NCHW * scale.to(x_NCHW.dtype) * self.gain
        return normed


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(norm(x))))), picture by picture; the large maps go without the norm, which costs more
    there than it brings.
    """

    def __init__(self, channels: int, *, normed: bool = True) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels) if normed else nn.Identity()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x_NCHW: Pictures.

        Returns:
            Maps of the same shape.
        """
        y: Tensor = self.conv_out(_act(self.conv_in(_act(self.norm(x_NCHW)))))
        return x_NCHW + y


class TemporalBlock(nn.Module):
    """A residual block whose first convolution also sees the time step before (kernel 2 in time, causal)."""

    def __init__(self, channels: int, *, normed: bool = True) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels) if normed else nn.Identity()
        self.conv_in = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x_BTCHW: Tensor, before_BCHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the block to the next time steps of a stream.

        Args:
            x_BTCHW: The time steps.
            before_BCHW: What this block returned as state for the steps before; None at the start, where the first step
                stands in for the one before it.

        Returns:
            The result, (B, T, C, H, W), and the state for the next call: what the last step adds to the one after it.
        """
        batch, steps, channels = x_BTCHW.shape[:3]
        y = _act(self.norm(x_BTCHW)).flatten(0, 1)
        weight = self.conv_in.weight
        past = F.conv2d(y, weight[:, :channels], padding=1).unflatten(0, (batch, steps))
        present = F.conv2d(y, weight[:, channels:], self.conv_in.bias, padding=1).unflatten(0, (batch, steps))
        first = past[:, :1] if before_BCHW is None else before_BCHW[:, None]
        mixed = _act(present + torch.cat([first, past[:, :-1]], 1))
        return x_BTCHW + self.conv_out(mixed.flatten(0, 1)).unflatten(0, (batch, steps)), past[:, -1]


class Pyramid(nn.Module):
    """Three levels of residual blocks at 1/4, 1/8 and 1/16 of the input."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.stem = nn.Conv2d(in_channels * 16, quarter, 3, padding=1)
        self.level4 = nn.Sequential(ResidualBlock(quarter), ResidualBlock(quarter))
        self.down8 = nn.Conv2d(quarter * 4, eighth, 1)
        self.level8 = nn.Sequential(ResidualBlock(eighth), ResidualBlock(eighth))
        self.down16 = nn.Conv2d(eighth * 4, sixteenth, 1)
        self.level16 = nn.Sequential(ResidualBlock(sixteenth), ResidualBlock(sixteenth))

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the three levels.

        Args:
            x_NCHW: Pictures; height and width are multiples of 16.

        Returns:
            Features at 1/4, 1/8 and 1/16.
        """
        a = self.level4(self.stem(F.pixel_unshuffle(x_NCHW, 4)))
        b = self.level8(self.down8(F.pixel_unshuffle(a, 2)))
        return a, b, self.level16(self.down16(F.pixel_unshuffle(b, 2)))


class MotionInput(nn.Module):
    """What the motion signal adds to the decoder's maps: a number per channel and time step, at three scales.

    Args:
        signal_dim: Numbers of the signal per latent frame.
        widths: Channels at 1/16, 1/8 and 1/4 of the picture, where a latent frame has 1, 2 and 4 time steps.
    """

    HIDDEN = 96

    def __init__(self, signal_dim: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.widths = widths
        self.expand = nn.Linear(signal_dim, self.HIDDEN)
        self.mix = nn.Linear(self.HIDDEN, self.HIDDEN)
        heads = [nn.Linear(self.HIDDEN, width << level) for level, width in enumerate(widths)]
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)

    def forward(self, signal_BTM: Tensor) -> list[Tensor]:
        """Compute the three additions.

        Args:
            signal_BTM: Motion signal, in the decoder's dtype.

        Returns:
            (B, T, C16, 1, 1), (B, 2T, C8, 1, 1) and (B, 4T, C4, 1, 1).
        """
        hidden = _act(self.mix(_act(self.expand(signal_BTM))))
        pairs = zip(self.heads, self.widths, strict=True)
        return [head(hidden).unflatten(-1, (-1, width, 1, 1)).flatten(1, 2) for head, width in pairs]


def _unify_subpixels(conv: nn.Conv2d) -> None:
    """Start an enlargement by pixel_shuffle without a pattern: the four pixels of a square get the same weights."""
    weight = conv.weight.data.unflatten(0, (-1, 4))
    weight.copy_(weight[:, :1].expand_as(weight))


def _warp(source_BCHW: Tensor, shift_BFHW2: Tensor) -> Tensor:
    """Sample each batch item's source F times at the identity grid plus a shift (in half widths and heights, x first).

    The grid and the sampling are float32: in bfloat16 the grid itself would be off by a pixel.
    """
    batch, frames, height, width, _ = shift_BFHW2.shape
    device = source_BCHW.device
    ys = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    xs = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    identity = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    grid = (shift_BFHW2 + identity).reshape(batch, frames * height, width, 2)
    sampled = F.grid_sample(source_BCHW.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.unflatten(2, (frames, height)).transpose(1, 2)  # type: ignore[no-any-return]


def _conv_parts(conv: nn.Conv2d, *parts_NCHW: Tensor) -> Tensor:
    """Convolve parts that stand for one input, channel after channel, without putting them together."""
    first = parts_NCHW[0].shape[1]
    total = F.conv2d(parts_NCHW[0], conv.weight[:, :first], conv.bias, padding=conv.padding)
    for part in parts_NCHW[1:]:
        last = first + part.shape[1]
        total = total + F.conv2d(part, conv.weight[:, first:last], padding=conv.padding)
        first = last
    return total


def _enlarge(shift_BFHW2: Tensor, factor: int) -> Tensor:
    batch = shift_BFHW2.shape[0]
    flat = shift_BFHW2.flatten(0, 1).permute(0, 3, 1, 2)
    large = F.interpolate(flat, scale_factor=factor, mode="bilinear", align_corners=False)
    return large.permute(0, 2, 3, 1).unflatten(0, (batch, -1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents and portrait features to frames; see the module docstring."""

    NUM_TEMPORAL_BLOCKS = 5

    def __init__(self, config: EmbeddedVAEConfig) -> None:
        super().__init__()
        w16, w8, w4, w2 = config.decoder_widths
        p4, p8, p16 = config.portrait_widths
        self.portrait = Pyramid(3, config.portrait_widths)
        self.motion = MotionInput(config.motion_signal_dim, (w16, w8, w4))
        self.stem = nn.Conv2d(config.latent_channels + p16, w16, 3, padding=1)
        self.blocks16 = nn.ModuleList([TemporalBlock(w16), TemporalBlock(w16)])
        self.up8 = nn.Conv2d(w16, w8 * 8, 1)
        self.join8 = nn.Conv2d(p8, w8, 1)
        self.blocks8 = nn.ModuleList([TemporalBlock(w8), TemporalBlock(w8)])
        self.coarse_shift = nn.Conv2d(w8, 4, 3, padding=1)
        self.up4 = nn.Conv2d(w8, w4 * 8, 1)
        self.join4 = nn.Conv2d(w4 + p4, w4, 1)
        self.blocks4 = nn.ModuleList([TemporalBlock(w4, normed=False)])
        self.refine4 = ResidualBlock(w4, normed=False)
        self.fine_shift = nn.Conv2d(w4, 2, 3, padding=1)
        self.up2 = nn.Conv2d(w4, w2 * 4, 1)
        self.join2 = nn.Conv2d(w2 + 12, w2, 3, padding=1)
        self.refine2 = ResidualBlock(w2, normed=False)
        self.out = nn.Conv2d(w2, 16, 3, padding=1)
        for enlargement in (self.up8, self.up4, self.up2, self.out):
            _unify_subpixels(enlargement)
        for shift in (self.coarse_shift, self.fine_shift):
            nn.init.zeros_(shift.weight)
            nn.init.zeros_(shift.bias)  # type: ignore[arg-type]

    def forward(
        self, latents_BTCHW: Tensor, motion_BTM: Tensor, portrait: PortraitFeatures, state: DecoderState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode the next latent frames of a stream.

        Args:
            latents_BTCHW: Latent frames, (B, T, C, h, w).
            motion_BTM: Motion signal, in the same dtype.
            portrait: Of the same batch.
            state: Updated in place.

        Returns:
            Frames, the warped portrait and the drawn picture, each float32 in about [-1, 1], (B, 4T, 3, H, W). The
            last two are what the frames are blended from; training looks at them.
        """
        maps_NCHW, warped_BFCHW = self.warp(latents_BTCHW, motion_BTM, portrait, state)
        frames_BFCHW, drawn_BFCHW = self.draw(maps_NCHW, warped_BFCHW)
        return frames_BFCHW, warped_BFCHW, drawn_BFCHW

    def warp(
        self, latents_BTCHW: Tensor, motion_BTM: Tensor, portrait: PortraitFeatures, state: DecoderState
    ) -> tuple[Tensor, Tensor]:
        """Do the first part: all that depends on time.

        Args:
            latents_BTCHW: Latent frames, (B, T, C, h, w).
            motion_BTM: Motion signal, in the same dtype.
            portrait: Of the same batch.
            state: Updated in place.

        Returns:
            Maps at 1/4 of the picture, (B * 4T, C, H / 4, W / 4), and the warped portrait, float32, (B, 4T, 3, H, W).
        """
        batch, steps = latents_BTCHW.shape[:2]
        count = iter(range(self.NUM_TEMPORAL_BLOCKS))

        def temporal(x: Tensor, blocks: nn.ModuleList) -> Tensor:
            for block in blocks:
                i = next(count)
                x, state.maps[i] = block(x, state.maps[i])
            return x

        x = torch.cat([latents_BTCHW, portrait.sixteenth_BCHW[:, None].expand(-1, steps, -1, -1, -1)], 2)
        motion16, motion8, motion4 = self.motion(motion_BTM)
        x = temporal(self.stem(x.flatten(0, 1)).unflatten(0, (batch, steps)) + motion16, self.blocks16)
        x = self._double(x, self.up8) + self.join8(portrait.eighth_BCHW)[:, None] + motion8
        x = temporal(x, self.blocks8)
        coarse = self._double_shift(self.coarse_shift(x.flatten(0, 1)), batch)

        shift4 = _enlarge(coarse, 2)
        near = _warp(portrait.quarter_BCHW, shift4).to(x.dtype)
        x = _conv_parts(self.join4, self._double(x, self.up4).flatten(0, 1), near.flatten(0, 1))
        x = x.unflatten(0, (batch, 4 * steps)) + motion4
        x = self.refine4(temporal(x, self.blocks4).flatten(0, 1))
        fine = MAX_FINE_SHIFT * torch.tanh(0.1 * self.fine_shift(x).float())
        shift4 = shift4 + fine.permute(0, 2, 3, 1).unflatten(0, (batch, 4 * steps))

        return x, _warp(portrait.image_BCHW, _enlarge(shift4, 4))

    def draw(self, maps_NCHW: Tensor, warped_BFCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Do the second part, frame by frame: draw what the portrait does not show, and blend.

        Args:
            maps_NCHW: The first part's maps, N = B * F.
            warped_BFCHW: The first part's warped portrait.

        Returns:
            Frames and the drawn picture, each float32 in about [-1, 1], (B, F, 3, H, W).
        """
        pixels = F.pixel_unshuffle(warped_BFCHW.flatten(0, 1).to(maps_NCHW.dtype), 2)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        y = _conv_parts(self.join2, F.pixel_shuffle(self.up2(maps_NCHW), 2), pixels)
        drawn_and_mask = F.pixel_shuffle(self.out(self.refine2(y)), 2).float()
        drawn_and_mask = drawn_and_mask.unflatten(0, warped_BFCHW.shape[:2])
        drawn, logit = drawn_and_mask[:, :, :3], drawn_and_mask[:, :, 3:]
        mask = torch.sigmoid(MASK_LIMIT * torch.tanh(logit / MASK_LIMIT))
        return torch.lerp(drawn, warped_BFCHW, mask), drawn

    @staticmethod
    def _double(x_BTCHW: Tensor, project: nn.Module) -> Tensor:
        """Twice as large in space and in time: (B, T, C, H, W) -> (B, 2T, C', 2H, 2W)."""
        batch, steps = x_BTCHW.shape[:2]
        y = F.pixel_shuffle(project(x_BTCHW.flatten(0, 1)), 2)
        return y.unflatten(1, (2, -1)).reshape(batch, 2 * steps, -1, *y.shape[-2:])  # type: ignore[no-any-return]

    @staticmethod
    def _double_shift(raw_NCHW: Tensor, batch: int) -> Tensor:
        """Two frames' bounded shifts per time step: (B*2T, 4, H, W) -> (B, 4T, H, W, 2)."""
        pair = raw_NCHW.float().unflatten(1, (2, 2)).flatten(0, 1).permute(0, 2, 3, 1)
        return (MAX_COARSE_SHIFT * torch.tanh(0.1 * pair)).unflatten(0, (batch, -1))  # type: ignore[no-any-return]


class EmbeddedVAE(nn.Module):
    """Encoder and streaming decoder of the embedded avatar.

    The decoder may be cast to another dtype by itself; the encoder, which runs once per portrait, stays in float32.

    Args:
        config: Sizes.
    """

    def __init__(self, config: EmbeddedVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Pyramid(3 * TEMPORAL_STRIDE, config.encoder_widths)
        self.to_latent = nn.Conv2d(config.encoder_widths[2], config.latent_channels, 3, padding=1)
        self.latent_norm = nn.BatchNorm2d(config.latent_channels, affine=False, momentum=0.02)
        self.decoder = Decoder(config)

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """Encode whole groups of four frames.

        Args:
            frames_BFCHW: Frames in [-1, 1]; F a multiple of 4, H and W multiples of 16.

        Returns:
            Latents of unit variance per channel, float32, (B, F / 4, C, H / 16, W / 16).
        """
        batch = frames_BFCHW.shape[0]
        groups = frames_BFCHW.unflatten(1, (-1, TEMPORAL_STRIDE)).flatten(2, 3).flatten(0, 1)
        deep = self.encoder(groups.contiguous(memory_format=torch.channels_last))[2]
        latents: Tensor = self.latent_norm(self.to_latent(deep).float())
        return latents.unflatten(0, (batch, -1))  # type: ignore[no-any-return]

    def encode_portrait(self, image_BCHW: Tensor) -> tuple[Tensor, PortraitFeatures]:
        """Encode a portrait: as four still frames for the DiT, as features for the decoder.

        Args:
            image_BCHW: Picture in [-1, 1].

        Returns:
            The reference latent, float32, (B, C, 1, h, w), and the decoder's features.
        """
        still = image_BCHW[:, None].expand(-1, TEMPORAL_STRIDE, -1, -1, -1)
        return self.encode(still).transpose(1, 2), self.portrait_features(image_BCHW)

    def portrait_features(self, image_BCHW: Tensor) -> PortraitFeatures:
        """Compute what the decoder needs of a portrait.

        Args:
            image_BCHW: Picture in [-1, 1].

        Returns:
            The picture and its features at three scales.
        """
        image = image_BCHW.to(self.decoder.stem.weight.dtype, memory_format=torch.channels_last)
        levels = self.decoder.portrait(image)
        return PortraitFeatures(image_BCHW.float(), *levels)

    def new_state(self) -> DecoderState:
        """Make the state of a stream that has not begun."""
        return DecoderState([None] * Decoder.NUM_TEMPORAL_BLOCKS)

    def decode(
        self, latents_BCTHW: Tensor, motion_BTM: Tensor, portrait: PortraitFeatures, state: DecoderState
    ) -> Tensor:
        """Decode the next latent frames of a stream; any number at a time gives the same frames.

        Args:
            latents_BCTHW: Latents as the DiT makes them, (B, C, T, h, w).
            motion_BTM: The motion signal that the DiT was given.
            portrait: Features of the stream's portrait.
            state: The stream's state, updated in place.

        Returns:
            Frames in about [-1, 1], float32, (B, 4T, 3, H, W).
        """
        dtype = self.decoder.stem.weight.dtype
        latents_BTCHW = latents_BCTHW.transpose(1, 2).to(dtype)
        frames: Tensor = self.decoder(latents_BTCHW, motion_BTM.to(dtype), portrait, state)[0]
        return frames
