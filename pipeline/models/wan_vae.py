"""The published model's video VAE (Wan 2.1): 8x in space, 4x in time, 16 channels, causal in time.

The first frame of a video is a latent frame by itself; every latent frame after it stands for four frames. Encoder and
decoder are convolutions that see the present and the past: each convolution over time keeps the last frames it saw
(`DecoderState` holds them for a stream), so that a video may be decoded in pieces of any length. Two things happen only
at the very start: the layers that change the frame rate leave the first frame alone, and the ones that double it take
zeros for what came before the second.

Names and shapes of the parameters are those of `Wan2.1_VAE.pth`. Inside, channels come last (that is how the
convolutions are fast); everything runs in the dtype of the weights, and nothing is ever trained.

Shape letters: B batch, C channels, T latent frames, F frames, H and W rows and columns of pictures or feature maps,
h and w of latents, N = B x F.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError

__all__ = [
    "MOTION_LATENT_FRAMES",
    "PUBLISHED_WAN_VAE",
    "SINGLE_FLAVOUR",
    "TIMESTEP_FLAVOUR",
    "Decoder",
    "DecoderState",
    "Encoder",
    "EncoderState",
    "StillFlavour",
    "StillPortrait",
    "WanVAE",
    "WanVAEConfig",
]

MOTION_LATENT_FRAMES = 19
"""Latent frames of a still portrait that the transformer takes as the past of a video."""

_ENCODER_PIECE_FRAMES = 12
_DECODER_PIECE_LATENT_FRAMES = 3
"""At most so many at a time where a whole still video passes: they bound the memory and do not change the result."""

_Pasts = list[Tensor | None]
"""For each convolution over time, by its slot, the last frames of its input, (B, F, H, W, C); None before the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WanVAEConfig:
    """Sizes of the network.

    Raises:
        ConfigError: Numbers that contradict each other.
    """

    width: int
    """Channels at full resolution, times the first of `width_multiples`."""
    width_multiples: tuple[int, ...]
    """Channels at full resolution and after each halving, in multiples of `width`."""
    num_residual_blocks: int
    """Per resolution in the encoder; the decoder has one more."""
    halves_time: tuple[bool, ...]
    """For each halving of rows and columns whether it halves the frame rate too."""
    latent_mean: tuple[float, ...]
    """Of the raw latents, per channel."""
    latent_std: tuple[float, ...]
    """Of the raw latents, per channel."""

    def __post_init__(self) -> None:
        num_halvings = len(self.width_multiples) - 1
        if len(self.halves_time) != num_halvings:
            rule = f"width_multiples has {num_halvings + 1} entries, so it has to have {num_halvings}"
            raise ConfigError("halves_time", self.halves_time, rule)
        if len(self.latent_std) != len(self.latent_mean):
            rule = f"it has to have one entry per channel, {len(self.latent_mean)} as in latent_mean"
            raise ConfigError("latent_std", self.latent_std, rule)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return len(self.latent_mean)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at full resolution and after each halving."""
        return tuple(self.width * multiple for multiple in self.width_multiples)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent position, in each direction."""
        return int(2 ** len(self.halves_time))

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame, the very first excepted."""
        return int(2 ** sum(self.halves_time))


# fmt: off
PUBLISHED_WAN_VAE = WanVAEConfig(
    width=96,
    width_multiples=(1, 2, 4, 4),
    num_residual_blocks=2,
    halves_time=(False, True, True),
    latent_mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    latent_std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
)
# fmt: on


@dataclass(slots=True)
class DecoderState:
    """Causal context of one stream. Its tensors are made by the first `decode` and keep their places after that."""

    pasts: _Pasts

    def clone(self) -> DecoderState:
        """Make a state that continues from the same point, independently."""
        return DecoderState([None if past is None else past.clone() for past in self.pasts])

    @property
    def num_bytes(self) -> int:
        """Memory that the state holds."""
        return sum(past.nbytes for past in self.pasts if past is not None)


@dataclass(slots=True)
class EncoderState:
    """Causal context of one video that is encoded in pieces."""

    pasts: _Pasts

    @property
    def has_begun(self) -> bool:
        """Whether the video's first frame has been encoded."""
        return any(past is not None for past in self.pasts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StillFlavour:
    """How a portrait becomes the past of a video. The published pipelines differ here, and so do their videos."""

    num_frames: int
    """Copies of the portrait that are encoded; the last `MOTION_LATENT_FRAMES` latent frames go to the transformer."""
    reference_latent_frame: int
    """Which of the latent frames is the reference: 0 is a picture by itself, 1 a moment of a still video."""
    num_warm_latent_frames: int
    """So many latent frames, the first, are decoded before a stream; the state is kept, the pictures are not."""


TIMESTEP_FLAVOUR = StillFlavour(num_frames=73, reference_latent_frame=0, num_warm_latent_frames=7)
"""Of the published pipeline with one step per device: what visavis does too unless asked otherwise."""
SINGLE_FLAVOUR = StillFlavour(num_frames=365, reference_latent_frame=1, num_warm_latent_frames=92)
"""Of the published pipeline on a single device, which decodes each clip behind all latent frames of its past."""


@dataclass(frozen=True, slots=True)
class StillPortrait:
    """A portrait as the published model knows it: a video in which nothing moves."""

    reference_BCThw: Tensor
    """The latent that shows whom the video is of, float32, (B, C, 1, h, w)."""
    motion_BCThw: Tensor
    """The past of a stream, as the transformer takes it, float32."""
    warm_state: DecoderState
    """The decoder's state after such a past. It stays as it is: every stream starts with a clone."""


class _ChannelNorm(nn.Module):
    """RMS norm over channels at each position, with a gain per channel.

    Args:
        channels: Number of channels.
        num_axes: Axes that the published gain has after its channels, each of length 1.
    """

    SMALLEST_LENGTH = 1e-12

    def __init__(self, channels: int, *, num_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[-1]
        return F.rms_norm(x, (channels,), self.gamma.flatten(), eps=self.SMALLEST_LENGTH**2 / channels)


class _CausalConv3d(nn.Conv3d):
    """A convolution over time and space that sees what came before, and keeps rows and columns as they are.

    The past is what the kernel reaches beyond its stride: in front of the next frames stand the last ones it saw, or
    zeros at the start.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Its size: (frames, rows, columns).
        stride_frames: Frames from one output to the next.
    """

    slot: int
    """Where the past of this convolution is in the list of all of them."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int] = (3, 3, 3), *, stride_frames: int = 1
    ) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, stride=(stride_frames, 1, 1), padding=padding)
        self.weight = nn.Parameter(self.weight.to(memory_format=torch.channels_last_3d))
        self.num_past_frames = kernel[0] - stride_frames

    def forward(  # type: ignore[override]
        self, x_BFHWC: Tensor, pasts: _Pasts, norm: _ChannelNorm | None = None
    ) -> Tensor:
        """Convolve the next frames; with a norm, convolve silu(norm(x)), which is then the past too."""
        past = self.past(x_BFHWC, pasts)
        batch, num_frames, *sides = x_BFHWC.shape
        joined = x_BFHWC.new_empty(batch, self.num_past_frames + num_frames, *sides)
        joined[:, : self.num_past_frames] = past
        if norm is None:
            joined[:, self.num_past_frames :] = x_BFHWC
        else:
            # F.silu cannot write to a given place.
            torch.ops.aten.silu.out(norm(x_BFHWC), out=joined[:, self.num_past_frames :])
        past.copy_(joined[:, -self.num_past_frames :])
        y_BCFHW = F.conv3d(joined.permute(0, 4, 1, 2, 3), self.weight, self.bias, self.stride, self.padding)
        return y_BCFHW.permute(0, 2, 3, 4, 1)

    def past(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        """The frames before x: at the start, zeros that are the state from then on."""
        past = pasts[self.slot]
        if past is None:
            batch, _, *sides = x_BFHWC.shape
            past = pasts[self.slot] = x_BFHWC.new_zeros(batch, self.num_past_frames, *sides)
        return past


class _FrameConv2d(nn.Conv2d):
    """A convolution of each frame by itself."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=padding)
        self.weight = nn.Parameter(self.weight.to(memory_format=torch.channels_last))

    def forward(self, x_BFHWC: Tensor) -> Tensor:
        x_NCHW = x_BFHWC.flatten(0, 1).permute(0, 3, 1, 2)
        y_NCHW = F.conv2d(x_NCHW, self.weight, self.bias, self.stride, self.padding)
        return y_NCHW.permute(0, 2, 3, 1).unflatten(0, x_BFHWC.shape[:2])  # type: ignore[no-any-return]


def _pointwise(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Apply a convolution of one position as the matrix product that it is, to the last dimension."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class _ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with a matrix on x where the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": _ChannelNorm(in_channels),
                "2": _CausalConv3d(in_channels, out_channels),
                "3": _ChannelNorm(out_channels),
                "6": _CausalConv3d(out_channels, out_channels),
            }
        )
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        norm_in, conv_in, norm_out, conv_out = self.residual.values()
        y_BFHWC: Tensor = conv_out(conv_in(x_BFHWC, pasts, norm_in), pasts, norm_out)
        return y_BFHWC.add_(x_BFHWC if self.shortcut is None else _pointwise(self.shortcut, x_BFHWC))


class _Attention(nn.Module):
    """Every position of a frame attends to all positions of that frame; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(channels, num_axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BFHWC: Tensor) -> Tensor:
        tokens_N1LC = self.norm(x_BFHWC).flatten(2, 3).flatten(0, 1)[:, None]
        query, key, value = _pointwise(self.to_qkv, tokens_N1LC).chunk(3, -1)
        mixed_N1LC = F.scaled_dot_product_attention(query, key, value)
        return x_BFHWC + _pointwise(self.proj, mixed_N1LC).reshape(x_BFHWC.shape)


class _Downsample(nn.Module):
    """Half the rows and columns, and half the frames if asked for: the first of a stream then stays as it is."""

    def __init__(self, channels: int, *, halves_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": _FrameConv2d(channels, channels, stride=2)})
        self.time_conv = _CausalConv3d(channels, channels, (3, 1, 1), stride_frames=2) if halves_time else None

    def forward(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        padded_BFHWC = F.pad(x_BFHWC, (0, 0, 0, 1, 0, 1))
        y_BFHWC: Tensor = self.resample["1"](padded_BFHWC)
        if self.time_conv is None:
            return y_BFHWC
        if pasts[self.time_conv.slot] is not None:
            return self.time_conv(y_BFHWC, pasts)  # type: ignore[no-any-return]
        first, rest = y_BFHWC[:, :1], y_BFHWC[:, 1:]
        pasts[self.time_conv.slot] = first.clone()
        return torch.cat([first, self.time_conv(rest, pasts)], 1) if rest.shape[1] else first


class _Upsample(nn.Module):
    """Twice the rows and columns and half the channels, after twice the frames if asked for.

    The first frame of a stream stays one, and the doubling of those after it sees zeros in its place.
    """

    def __init__(self, channels: int, *, doubles_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": _FrameConv2d(channels, channels // 2, padding=1)})
        self.time_conv = _CausalConv3d(channels, 2 * channels, (3, 1, 1)) if doubles_time else None

    def forward(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        if self.time_conv is not None:
            x_BFHWC = self._double_time(self.time_conv, x_BFHWC, pasts)
        large_NCHW = F.interpolate(x_BFHWC.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest-exact")
        large_BFHWC = large_NCHW.permute(0, 2, 3, 1).unflatten(0, x_BFHWC.shape[:2])
        return self.resample["1"](large_BFHWC)  # type: ignore[no-any-return]

    def _double_time(self, time_conv: _CausalConv3d, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        if pasts[time_conv.slot] is None:
            first, rest = x_BFHWC[:, :1], x_BFHWC[:, 1:]
            time_conv.past(first, pasts)
            return torch.cat([first, self._double_time(time_conv, rest, pasts)], 1) if rest.shape[1] else first
        pairs: Tensor = time_conv(x_BFHWC, pasts)
        return pairs.unflatten(-1, (2, -1)).movedim(-2, 2).flatten(1, 2)  # type: ignore[no-any-return]


class _Middle(nn.ModuleList):
    """What both networks do at the lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__([_ResidualBlock(channels, channels), _Attention(channels), _ResidualBlock(channels, channels)])

    def forward(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        before, attention, after = self
        return after(attention(before(x_BFHWC, pasts)), pasts)  # type: ignore[no-any-return]


class _Head(nn.ModuleDict):
    """The last layer of both networks: conv(act(norm(x)))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__({"0": _ChannelNorm(in_channels), "2": _CausalConv3d(in_channels, out_channels)})

    def forward(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        norm, conv = self.values()
        return conv(x_BFHWC, pasts, norm)  # type: ignore[no-any-return]


def _number_slots(network: nn.Module) -> int:
    """Give every convolution over time of a network its slot, and return how many there are."""
    convolutions = [module for module in network.modules() if isinstance(module, _CausalConv3d)]
    for slot, convolution in enumerate(convolutions):
        convolution.slot = slot
    return len(convolutions)


def _hold(x_BFHWC: Tensor, num_frames: int) -> Tensor:
    """Repeat the last frame until there are so many."""
    num_missing = num_frames - x_BFHWC.shape[1]
    return torch.cat([x_BFHWC, x_BFHWC[:, -1:].expand(-1, num_missing, -1, -1, -1)], 1) if num_missing else x_BFHWC


class Encoder(nn.Module):
    """Frames to means and logarithms of variances of raw latents.

    Args:
        config: Sizes.
    """

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv1 = _CausalConv3d(3, widths[0])
        layers: list[nn.Module] = []
        for level, (before, width) in enumerate(pairwise((widths[0], *widths))):
            layers.append(_ResidualBlock(before, width))
            layers += [_ResidualBlock(width, width) for _ in range(config.num_residual_blocks - 1)]
            if level < len(config.halves_time):
                layers.append(_Downsample(width, halves_time=config.halves_time[level]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _Middle(widths[-1])
        self.head = _Head(widths[-1], 2 * config.latent_channels)
        self.num_slots = _number_slots(self)

    def forward(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        """Encode the next frames of a video.

        Args:
            x_BFHWC: Pictures; beside the very first one, a multiple of the temporal stride.
            pasts: Of this network, updated in place.

        Returns:
            Means, then logarithms of variances, (B, T, h, w, 2C).
        """
        x_BFHWC = self.conv1(x_BFHWC, pasts)
        for layer in self.downsamples:
            x_BFHWC = layer(x_BFHWC, pasts)
        return self.head(self.middle(x_BFHWC, pasts), pasts)  # type: ignore[no-any-return]

    def encode_still(self, image_BHWC: Tensor, num_frames: int) -> Tensor:
        """Encode a video in which nothing moves, at about a quarter of the cost of 73 frames.

        Behind a layer, frames differ for as long as it looks back to where the video began; after that they are all the
        same, and one is enough.

        Args:
            image_BHWC: The picture.
            num_frames: Length of the video, as for a whole one.

        Returns:
            What encoding the whole video gives.
        """
        pasts: _Pasts = [None] * self.num_slots
        x_BFHWC = image_BHWC[:, None]
        for layer in (self.conv1, *self.downsamples, self.middle, self.head):
            convolutions = [module for module in layer.modules() if isinstance(module, _CausalConv3d)]
            reach_frames = sum(convolution.kernel_size[0] - 1 for convolution in convolutions)
            # Whoever halves the frame rate wants an odd number at the start.
            x_BFHWC = layer(_hold(x_BFHWC, min((x_BFHWC.shape[1] + reach_frames) | 1, num_frames)), pasts)
            for convolution in convolutions:
                num_frames = (num_frames - 1) // convolution.stride[0] + 1
        return _hold(x_BFHWC, num_frames)


class Decoder(nn.Module):
    """Raw latents to frames.

    Args:
        config: Sizes.
    """

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        doubles_time = config.halves_time[::-1]
        self.conv1 = _CausalConv3d(config.latent_channels, widths[0])
        self.middle = _Middle(widths[0])
        layers: list[nn.Module] = []
        channels = widths[0]
        for level, width in enumerate(widths):
            layers.append(_ResidualBlock(channels, width))
            layers += [_ResidualBlock(width, width) for _ in range(config.num_residual_blocks)]
            if level < len(doubles_time):
                layers.append(_Upsample(width, doubles_time=doubles_time[level]))
                channels = width // 2
        self.upsamples = nn.ModuleList(layers)
        self.head = _Head(widths[-1], 3)
        self.num_slots = _number_slots(self)

    def forward(self, x_BFHWC: Tensor, pasts: _Pasts) -> Tensor:
        """Decode the next latent frames of a video.

        Args:
            x_BFHWC: Raw latents after the matrix in front of the decoder.
            pasts: Of this network, updated in place.

        Returns:
            Frames, in about [-1, 1], (B, F, H, W, 3).
        """
        x_BFHWC = self.middle(self.conv1(x_BFHWC, pasts), pasts)
        for layer in self.upsamples:
            x_BFHWC = layer(x_BFHWC, pasts)
        return self.head(x_BFHWC, pasts)  # type: ignore[no-any-return]


class WanVAE(nn.Module):
    """Encoder and streaming decoder.

    Any number of streams may take turns, each with its own state; a state belongs to one size of picture. Cast to
    bfloat16 it computes as the published pipeline does, except that norms are rounded once, at their end.

    Args:
        config: Sizes.
    """

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.conv2 = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)
        self.requires_grad_(False)

    @torch.inference_mode()
    def encode(self, frames_BFCHW: Tensor, state: EncoderState | None = None) -> Tensor:
        """Encode a video, or the next piece of one.

        Args:
            frames_BFCHW: RGB in [-1, 1], H and W multiples of the spatial stride; a multiple of the temporal stride,
                and one frame more where a video begins.
            state: Of a video that comes in pieces, from `new_encoder_state`, updated in place; None: the whole video.

        Returns:
            Latents of about unit variance per channel, float32, (B, C, T, h, w), T = F / 4 (1 + (F - 1) / 4 where a
            video begins).

        Raises:
            ConfigError: The shape breaks a rule.
        """
        state = state or self.new_encoder_state()
        num_first_frames = 0 if state.has_begun else 1
        self._check_frames(frames_BFCHW, num_first_frames=num_first_frames)
        first, rest = frames_BFCHW[:, :num_first_frames], frames_BFCHW[:, num_first_frames:]
        pieces = [piece for piece in (first, *rest.split(_ENCODER_PIECE_FRAMES, 1)) if piece.shape[1]]
        moments_BThwC = torch.cat([self.encoder(self._to_encoder(piece), state.pasts) for piece in pieces], 1)
        return self._to_latents(moments_BThwC)

    def new_encoder_state(self) -> EncoderState:
        """Make the state of a video of which nothing is encoded yet."""
        return EncoderState([None] * self.encoder.num_slots)

    @torch.inference_mode()
    def encode_portrait(self, image_BCHW: Tensor, flavour: StillFlavour = TIMESTEP_FLAVOUR) -> StillPortrait:
        """Encode a portrait as the past of a video in which it does not move, and warm the decoder with it.

        Args:
            image_BCHW: RGB in [-1, 1].
            flavour: How long that video is, and which parts of it are used.

        Returns:
            What the transformer and the decoder start a stream from.

        Raises:
            ConfigError: The shape breaks a rule.
        """
        self._check_frames(image_BCHW[:, None], num_first_frames=1)
        still_BCThw = self._to_latents(self.encoder.encode_still(self._to_encoder(image_BCHW), flavour.num_frames))
        reference = flavour.reference_latent_frame
        return StillPortrait(
            still_BCThw[:, :, reference : reference + 1],
            still_BCThw[:, :, -MOTION_LATENT_FRAMES:],
            self.warm_state(still_BCThw[:, :, : flavour.num_warm_latent_frames]),
        )

    @torch.inference_mode()
    def warm_state(self, still_BCThw: Tensor) -> DecoderState:
        """Make the state from which the published pipeline decodes the first block of a video.

        With it every latent frame gives four frames, the first one too.

        Args:
            still_BCThw: Latents of the still portrait, all of which are decoded, and the frames thrown away.

        Returns:
            A new state.
        """
        state = self.new_state()
        for piece_BCThw in still_BCThw.split(_DECODER_PIECE_LATENT_FRAMES, 2):
            self.decode(piece_BCThw, state)
        return state

    def new_state(self) -> DecoderState:
        """Make the state of a video that has not begun: its first latent frame gives one frame only."""
        return DecoderState([None] * self.decoder.num_slots)

    @torch.inference_mode()
    def decode(self, latents_BCThw: Tensor, state: DecoderState) -> Tensor:
        """Decode the next latent frames of a stream; any number at a time gives the same frames.

        Args:
            latents_BCThw: Clean latents as `encode` makes them.
            state: The stream's state, updated in place.

        Returns:
            RGB in [-1, 1], float32, (B, F, 3, H, W), F = 4T (4T - 3 at the start of a new state).

        Raises:
            ConfigError: The shape breaks a rule, or is not that of the stream.
        """
        self._check_latents(latents_BCThw, state)
        dtype = self.conv2.weight.dtype
        mean_C, inverse_std_C = _normalisation(self.config, dtype, latents_BCThw.device)
        raw_BThwC = (latents_BCThw.movedim(1, -1) / inverse_std_C + mean_C).to(dtype)
        frames_BFHWC = self.decoder(_pointwise(self.conv2, raw_BThwC), state.pasts)
        return frames_BFHWC.float().clamp_(-1, 1).movedim(-1, 2)  # type: ignore[no-any-return]

    def _to_encoder(self, pictures: Tensor) -> Tensor:
        return pictures.movedim(-3, -1).to(self.conv1.weight.dtype)

    def _to_latents(self, moments_BThwC: Tensor) -> Tensor:
        mu_BThwC = _pointwise(self.conv1, moments_BThwC)[..., : self.config.latent_channels]
        mean_C, inverse_std_C = _normalisation(self.config, mu_BThwC.dtype, mu_BThwC.device)
        return ((mu_BThwC - mean_C) * inverse_std_C).float().movedim(-1, 1)

    def _check_frames(self, frames_BFCHW: Tensor, *, num_first_frames: int) -> None:
        shape, space, time = tuple(frames_BFCHW.shape), self.config.spatial_stride, self.config.temporal_stride
        fits = len(shape) == 5 and shape[2] == 3 and not shape[3] % space and not shape[4] % space
        if not fits or shape[1] < 1 or shape[1] % time != num_first_frames:
            rule = f"it has to be (B, {num_first_frames} + {time}k, 3, H, W) with H and W multiples of {space}"
            raise ConfigError("shape of frames_BFCHW", shape, rule)

    def _check_latents(self, latents_BCThw: Tensor, state: DecoderState) -> None:
        shape, channels = tuple(latents_BCThw.shape), self.config.latent_channels
        if len(shape) != 5 or shape[1] != channels or not shape[2]:
            rule = f"it has to be (B, {channels}, T, h, w) with at least one latent frame"
            raise ConfigError("shape of latents_BCThw", shape, rule)
        past = state.pasts[self.decoder.conv1.slot]
        if past is not None and (past.shape[0], *past.shape[2:4]) != (shape[0], *shape[3:]):
            batch, _, height, width, _ = past.shape
            rule = f"the stream has been ({batch}, {channels}, T, {height}, {width}) so far"
            raise ConfigError("shape of latents_BCThw", shape, rule)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _normalisation(config: WanVAEConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of the latents, both rounded to the dtype, as the published code rounds them."""
    mean_C = torch.tensor(config.latent_mean, dtype=dtype, device=device)
    return mean_C, 1 / torch.tensor(config.latent_std, dtype=dtype, device=device)
