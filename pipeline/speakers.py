"""Several speakers in one portrait: which part of the picture listens to whom.

A speaker's region is a mask (an image file as large as the portrait, white where the speaker is) or a box. From regions
in the portrait's pixels come masks over the tokens of a latent frame, as the published model takes them: every speaker
is heard wherever no other one is, so the background hears all of them. The n-th region belongs to the n-th sound.
Nothing here needs torch.

Shape letters: V voices (speakers), H and W rows and columns of pixels, R and C rows and columns of tokens.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError, MediaError
from pipeline.geometry import Placement
from pipeline.portrait import FORMATS, Crop

__all__ = ["Box", "Masks", "draw_masks", "parse_region", "shown_part", "to_tokens"]

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge: in pixels of the portrait, or, if none exceeds 1, as parts of its sides."""
Masks = NDArray[np.bool_]

MARGIN = 0.1
"""How far a speaker reaches beyond the own mask, as a part of its longer side: no other one is heard there."""
THRESHOLD = 0.5
WHITE = 128
"""Grey values of mask files from here on are the speaker."""


def parse_region(text: str) -> Path | Box:
    """Read a region as people write it.

    Args:
        text: Four numbers with commas in between, or the path of a mask.

    Returns:
        The box or the path.
    """
    parts = text.split(",")
    try:
        left, upper, right, lower = (float(part) for part in parts)
    except ValueError:
        return Path(text)
    return left, upper, right, lower


def draw_masks(regions: Sequence[Path | Box], *, height_px: int, width_px: int) -> Masks:
    """Draw the regions of all speakers in pixels of the portrait.

    Args:
        regions: One per speaker.
        height_px: Height of the upright portrait.
        width_px: Width of the upright portrait.

    Returns:
        (V, H, W), true where the speaker is; no pixel belongs to two.

    Raises:
        ConfigError: Fewer than two speakers, a region that is empty, reaches over the portrait or has another size than
            it, or two that overlap.
        MediaError: A mask cannot be read.
    """
    if len(regions) < 2:
        raise ConfigError("number of speakers", len(regions), "masks are for two or more; a single one needs none")
    masks_VHW = np.zeros((len(regions), height_px, width_px), np.bool_)
    for voice, region in enumerate(regions):
        if isinstance(region, Path):
            masks_VHW[voice] = _read_mask(region, height_px=height_px, width_px=width_px)
        else:
            _fill_box(masks_VHW[voice], region, key=f"box of speaker {voice + 1}")
        if not masks_VHW[voice].any():
            rule = "at least one pixel has to be the speaker (in a mask file: white)"
            raise ConfigError(f"region of speaker {voice + 1}", _shown(region), rule)
        for other in range(voice):
            num_shared = int((masks_VHW[voice] & masks_VHW[other]).sum())
            if num_shared:
                shown = f"{num_shared} px ({_shown(regions[other])} and {_shown(region)})"
                rule = "no pixel may belong to two speakers"
                raise ConfigError(f"overlap of speakers {other + 1} and {voice + 1}", shown, rule)
    return masks_VHW


def to_tokens(masks_VHW: Masks, crop: Crop, *, token_rows: int, token_columns: int) -> Masks:
    """Find the tokens that listen to each speaker.

    Masks are sampled where the middles of the tokens are, grown by a margin, and taken away from all other speakers.

    Args:
        masks_VHW: Result of `draw_masks`.
        crop: The part of the portrait that the frame shows; the whole portrait is what the published code takes.
        token_rows: Rows of tokens of a latent frame.
        token_columns: Columns of tokens of a latent frame.

    Returns:
        (V, R, C), true where the speaker is heard. With rows and columns joined, the transformer takes it.

    Raises:
        ConfigError: A speaker is outside the frame, smaller than a token, or too close to another one to be heard.
    """
    across = _Samples(crop.x_px, crop.width_px, token_columns, masks_VHW.shape[2])
    down = _Samples(crop.y_px, crop.height_px, token_rows, masks_VHW.shape[1])
    own_VRC = down.take(across.take(masks_VHW.astype(np.float32), 2), 1) > THRESHOLD
    for voice, own_RC in enumerate(own_VRC):
        if not own_RC.any():
            rule = f"it has to cover the middle of at least one of the frame's {token_columns}x{token_rows} tokens"
            raise ConfigError(f"region of speaker {voice + 1}", "outside the frame or too small", rule)
    grown_VRC = np.stack([_grow(own_RC) for own_RC in own_VRC])
    heard_VRC = np.stack([~np.delete(grown_VRC, voice, 0).any(0) for voice in range(len(own_VRC))])
    for voice, (own_RC, heard_RC) in enumerate(zip(own_VRC, heard_VRC, strict=True)):
        if not (own_RC & heard_RC).any():
            rule = f"the others, with a margin of {100 * MARGIN:.0f} % of their size, have to leave a part of it"
            raise ConfigError(f"region of speaker {voice + 1}", "taken by other speakers", rule)
    return heard_VRC


def shown_part(placement: Placement, *, height_px: int, width_px: int) -> Crop:
    """Find the part of a portrait that a placement shows.

    Args:
        placement: How the portrait became the frame.
        height_px: Height of the portrait.
        width_px: Width of the portrait.

    Returns:
        The part, for `to_tokens`; where the frame has black edges, it reaches over the portrait.
    """
    across, down = width_px / placement.resized_width_px, height_px / placement.resized_height_px
    return Crop(
        x_px=placement.left_px * across,
        y_px=placement.top_px * down,
        width_px=placement.width_px * across,
        height_px=placement.height_px * down,
    )


class _Samples:
    """Linear interpolation of pixels at the middles of equal cells along one axis.

    Args:
        start_px: Where the first cell begins.
        span_px: Length of all cells.
        num_cells: How many there are.
        num_px: Pixels there are; beyond them is nothing.
    """

    def __init__(self, start_px: float, span_px: float, num_cells: int, num_px: int) -> None:
        middles_px = start_px + (np.arange(num_cells) + 0.5) * span_px / num_cells
        self._is_inside = (middles_px >= 0) & (middles_px <= num_px)
        position = (middles_px - 0.5).clip(0, num_px - 1)
        self._before = position.astype(np.int64)
        self._after = np.minimum(self._before + 1, num_px - 1)
        self._share = position - self._before

    def take(self, values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """Sample along an axis, which becomes that of the cells."""
        shape = [1] * values.ndim
        shape[axis] = -1
        share = self._share.astype(np.float32).reshape(shape)
        mixed = np.take(values, self._before, axis) * (1 - share) + np.take(values, self._after, axis) * share
        return mixed * self._is_inside.astype(np.float32).reshape(shape)


def _grow(mask_RC: Masks) -> Masks:
    """Add a margin around a mask: a square, in proportion to the mask's longer side."""
    rows, columns = np.nonzero(mask_RC)
    radius = math.ceil(MARGIN * (max(np.ptp(rows), np.ptp(columns)) + 1))
    num_rows, num_columns = mask_RC.shape
    padded = np.pad(mask_RC, radius)
    tall = np.any([padded[shift : shift + num_rows] for shift in range(2 * radius + 1)], axis=0)
    return np.any([tall[:, shift : shift + num_columns] for shift in range(2 * radius + 1)], axis=0)  # type: ignore[no-any-return]


def _fill_box(mask_HW: Masks, box: Box, *, key: str) -> None:
    """Mark the pixels whose middles are in a box."""
    height_px, width_px = mask_HW.shape
    if not all(math.isfinite(edge) and edge >= 0 for edge in box):
        raise ConfigError(key, _shown(box), "its edges have to be finite and at least 0")
    sides = (width_px, height_px, width_px, height_px) if max(box) <= 1 else (1, 1, 1, 1)
    left, upper, right, lower = (edge * side for edge, side in zip(box, sides, strict=True))
    if right > width_px or lower > height_px:
        raise ConfigError(key, _shown(box), f"it has to lie inside the portrait of {width_px}x{height_px} px")
    if left >= right or upper >= lower:
        raise ConfigError(key, _shown(box), "it has to be left, upper, right, lower with something in between")
    columns, rows = (np.arange(width_px) + 0.5, np.arange(height_px) + 0.5)
    is_inside = (columns >= left) & (columns < right)
    mask_HW[:] = ((rows >= upper) & (rows < lower))[:, None] & is_inside


def _read_mask(path: Path, *, height_px: int, width_px: int) -> Masks:
    """Decode a mask file."""
    what, rule = f"mask {path}", "it has to be a PNG or another plain image"
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise MediaError(what, f"unreadable ({(exc.strerror or type(exc).__name__).lower()})", rule) from exc
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            if image.size != (width_px, height_px):
                size_rule = f"it has to be as large as the portrait, {width_px}x{height_px} px"
                raise ConfigError(what, f"{image.width}x{image.height} px", size_rule)
            return _grey(image) >= WHITE
    except (ConfigError, MemoryError):
        raise
    except Exception as exc:  # Pillow's readers raise nearly anything on odd files
        raise MediaError(what, "damaged or something else", rule) from exc


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values of a mask; where it is transparent, nobody is."""
    if image.mode.startswith("I;16"):  # Pillow would clip and not scale
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return np.asarray(image.convert("L"))


def _shown(region: Path | Box) -> str:
    """Return a region in words."""
    return str(region) if isinstance(region, Path) else ",".join(f"{edge:g}" for edge in region)
