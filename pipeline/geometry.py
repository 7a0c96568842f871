"""How pixels, latents, tokens, frames and audio samples relate, and how a portrait is fitted to the frame.

This is the only module with such numbers in it. A block is 3 latent frames; a latent frame is `vae_temporal_stride`
frames; a token is `patch` x `patch` latent positions of one latent frame. One window of audio drives one block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from pipeline.errors import ConfigError, MediaError

__all__ = [
    "BLOCKS_PER_CLIP",
    "EMBEDDED_PX",
    "FPS",
    "FRAMES_PER_BLOCK",
    "FRAMES_PER_CLIP",
    "LATENT_FRAMES_PER_BLOCK",
    "SAMPLES_PER_FRAME",
    "SAMPLE_RATE_HZ",
    "SIZE_MULTIPLE_PX",
    "VAE_TEMPORAL_STRIDE",
    "WINDOW_S",
    "WINDOW_SAMPLES",
    "Placement",
    "VideoGeometry",
    "cover_size",
    "exact_size",
    "place_cover",
    "place_exact",
]

FPS = 25
SAMPLE_RATE_HZ = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FPS
VAE_TEMPORAL_STRIDE = 4
LATENT_FRAMES_PER_BLOCK = 3
FRAMES_PER_BLOCK = LATENT_FRAMES_PER_BLOCK * VAE_TEMPORAL_STRIDE
BLOCKS_PER_CLIP = 4
FRAMES_PER_CLIP = BLOCKS_PER_CLIP * FRAMES_PER_BLOCK
WINDOW_SAMPLES = FRAMES_PER_BLOCK * SAMPLES_PER_FRAME
WINDOW_S = FRAMES_PER_BLOCK / FPS

EMBEDDED_PX = (384, 256)
"""Size of the embedded avatar's pictures, height and width, where the machine is fast enough for them."""

SIZE_MULTIPLE_PX = 64
"""Grid of the published model's sizes: VAE stride 8, patch 2, and the motion packer's coarsest patch of 4 tokens."""

_EXACT_CANDIDATES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoGeometry:
    """Sizes of one video and of the latents and tokens behind it.

    Raises:
        ConfigError: A side is not a positive multiple of stride times patch.
    """

    height_px: int
    """Height of a frame."""
    width_px: int
    """Width of a frame."""
    vae_spatial_stride: int
    """Pixels per latent position, in each direction."""
    latent_channels: int
    """Channels of the VAE's latents."""
    patch: int
    """Latent positions per token, in each direction."""
    vae_temporal_stride: int = VAE_TEMPORAL_STRIDE
    """Frames per latent frame."""
    latent_frames_per_block: int = LATENT_FRAMES_PER_BLOCK
    """Latent frames denoised together."""

    def __post_init__(self) -> None:
        multiple_px = self.vae_spatial_stride * self.patch
        for key in ("height_px", "width_px"):
            side_px = getattr(self, key)
            if side_px <= 0 or side_px % multiple_px:
                raise ConfigError(key, side_px, f"it has to be a positive multiple of {multiple_px}")

    @property
    def latent_height(self) -> int:
        """Rows of a latent frame."""
        return self.height_px // self.vae_spatial_stride

    @property
    def latent_width(self) -> int:
        """Columns of a latent frame."""
        return self.width_px // self.vae_spatial_stride

    @property
    def token_rows(self) -> int:
        """Rows of tokens of a latent frame."""
        return self.latent_height // self.patch

    @property
    def token_columns(self) -> int:
        """Columns of tokens of a latent frame."""
        return self.latent_width // self.patch

    @property
    def tokens_per_latent_frame(self) -> int:
        """Tokens of a latent frame."""
        return self.token_rows * self.token_columns

    @property
    def tokens_per_block(self) -> int:
        """Tokens denoised together."""
        return self.tokens_per_latent_frame * self.latent_frames_per_block

    @property
    def frames_per_block(self) -> int:
        """Frames of a block."""
        return self.vae_temporal_stride * self.latent_frames_per_block

    @property
    def window_samples(self) -> int:
        """Audio samples that drive a block."""
        return self.frames_per_block * SAMPLES_PER_FRAME

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """Shape of a block's latents: (channels, latent frames, rows, columns)."""
        return (self.latent_channels, self.latent_frames_per_block, self.latent_height, self.latent_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How a portrait becomes a frame: resize the whole picture, then cut a box out of it.

    The box may reach beyond the resized picture (`exact` mode only); what lies outside is black.
    """

    resized_height_px: int
    """Height of the whole picture after resizing."""
    resized_width_px: int
    """Width of the whole picture after resizing."""
    left_px: int
    """Left edge of the box in the resized picture; negative where black columns are added."""
    top_px: int
    """Upper edge of the box in the resized picture; negative where black rows are added."""
    height_px: int
    """Height of the box: that of the frame."""
    width_px: int
    """Width of the box: that of the frame."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box as (left, upper, right, lower), in pixels of the resized picture."""
        return (self.left_px, self.top_px, self.left_px + self.width_px, self.top_px + self.height_px)


def exact_size(image_height_px: int, image_width_px: int, area_px: int) -> tuple[int, int]:
    """Choose the frame size exactly as the published model's code does.

    The picture is scaled down step by step until its size, rounded up to multiples of 64, fits the area. It is never
    enlarged. The lowest scale tried comes from a quadratic with 2ac where 4ac is meant; it is kept, since the size of
    about one picture in a hundred depends on it.

    Args:
        image_height_px: Height of the picture as stored.
        image_width_px: Width of the picture as stored.
        area_px: Largest area of a frame.

    Returns:
        Height and width of the frame, in pixels.

    Raises:
        MediaError: The picture is too thin to give a frame. (The published code has a last resort here that no
            picture reaches, and returns a frame without height or width.)
    """
    low, high = _exact_scales(image_height_px, image_width_px, area_px)
    for candidate in range(_EXACT_CANDIDATES):
        scale = high - (high - low) * candidate / _EXACT_CANDIDATES
        height_px = _ceil_to_grid(int(image_height_px * scale))
        width_px = _ceil_to_grid(int(image_width_px * scale))
        if 0 < height_px * width_px <= area_px:
            return height_px, width_px
    rule = f"it has to fit an area of {area_px} px without a side that shrinks to nothing"
    raise MediaError("portrait", f"{image_width_px}x{image_height_px} px", rule)


def cover_size(image_height_px: int, image_width_px: int, area_px: int) -> tuple[int, int]:
    """Choose the frame size that shows most of the picture while using most of the area.

    Small pictures are enlarged. Among all multiples of 64 within the area, the one with the largest product of
    (share of the picture that stays visible) and (share of the area that is used) is taken.

    Args:
        image_height_px: Height of the picture as seen (EXIF rotation applied).
        image_width_px: Width of the picture as seen.
        area_px: Largest area of a frame, at least 64 x 64.

    Returns:
        Height and width of the frame, in pixels.

    Raises:
        ConfigError: The area holds not even the smallest frame.
    """
    if area_px < SIZE_MULTIPLE_PX**2:
        raise ConfigError("area_px", area_px, f"it has to be at least {SIZE_MULTIPLE_PX**2}")
    aspect = Fraction(image_width_px, image_height_px)

    def merit(size: tuple[int, int]) -> Fraction:
        ratio = Fraction(size[1], size[0]) / aspect
        return min(ratio, 1 / ratio) * size[0] * size[1]

    cells = area_px // SIZE_MULTIPLE_PX**2
    sizes = (
        (rows * SIZE_MULTIPLE_PX, columns * SIZE_MULTIPLE_PX)
        for rows in range(1, cells + 1)
        for columns in range(1, cells // rows + 1)
    )
    return max(sizes, key=merit)


def place_exact(image_height_px: int, image_width_px: int, *, height_px: int, width_px: int) -> Placement:
    """Fit a picture to a frame exactly as the published model's code does.

    The short side of the picture becomes the short side of the frame, and the middle is cut out; where the long side
    is then too short, black is added.

    Args:
        image_height_px: Height of the picture as stored.
        image_width_px: Width of the picture as stored.
        height_px: Height of the frame.
        width_px: Width of the frame.

    Returns:
        The placement.
    """
    short_px = min(height_px, width_px)
    if image_height_px <= image_width_px:
        resized = short_px, int(short_px * image_width_px / image_height_px)
    else:
        resized = int(short_px * image_height_px / image_width_px), short_px
    return _centred(resized, height_px=height_px, width_px=width_px)


def place_cover(
    image_height_px: int, image_width_px: int, *, height_px: int, width_px: int, focus: tuple[float, float] = (0.5, 0.5)
) -> Placement:
    """Fit a picture to a frame so that it covers the whole frame.

    Args:
        image_height_px: Height of the picture as seen (EXIF rotation applied).
        image_width_px: Width of the picture as seen.
        height_px: Height of the frame.
        width_px: Width of the frame.
        focus: Which part stays where the picture is larger than the frame: (across, down), each from 0 (left, upper
            end) to 1 (right, lower end).

    Returns:
        The placement; its box lies inside the resized picture.

    Raises:
        ConfigError: The focus is out of range.
    """
    if not all(0 <= share <= 1 for share in focus):
        raise ConfigError("focus", focus, "both of its numbers have to be 0 to 1")
    scale = max(Fraction(height_px, image_height_px), Fraction(width_px, image_width_px))
    resized_height_px = max(height_px, round(image_height_px * scale))
    resized_width_px = max(width_px, round(image_width_px * scale))
    return Placement(
        resized_height_px=resized_height_px,
        resized_width_px=resized_width_px,
        left_px=round((resized_width_px - width_px) * focus[0]),
        top_px=round((resized_height_px - height_px) * focus[1]),
        height_px=height_px,
        width_px=width_px,
    )


def _exact_scales(image_height_px: int, image_width_px: int, area_px: int) -> tuple[float, float]:
    """Lowest and highest scale that `exact_size` tries."""
    image_area_px = image_height_px * image_width_px
    if image_area_px <= area_px:
        return 0.1, 1.0
    margin_px = SIZE_MULTIPLE_PX - 1
    b = margin_px * (image_height_px + image_width_px)
    c = margin_px**2 - area_px
    low = (-b + math.sqrt(b * b - 2 * image_area_px * c)) / (2 * image_area_px)
    return low, math.sqrt(area_px / image_area_px)


def _ceil_to_grid(side_px: int) -> int:
    return -(-side_px // SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX


def _centred(resized: tuple[int, int], *, height_px: int, width_px: int) -> Placement:
    """Cut the middle out of a resized picture; an odd pixel of black goes to the right and lower edge."""

    def start(resized_px: int, frame_px: int) -> int:
        missing_px = frame_px - resized_px
        return -(missing_px // 2) if missing_px > 0 else round(-missing_px / 2)

    return Placement(
        resized_height_px=resized[0],
        resized_width_px=resized[1],
        left_px=start(resized[1], width_px),
        top_px=start(resized[0], height_px),
        height_px=height_px,
        width_px=width_px,
    )
