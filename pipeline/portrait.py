"""Portraits: from any image file to the engine's frame, with the face where the engine expects it.

Untrusted files come in here, so the header is checked before anything is decoded, only plain raster formats are opened,
and every failure is a `MediaError` that names the value and the rule. Nothing here needs torch.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.errors import MediaError
from pipeline.face import Face, find_face
from pipeline.geometry import Placement

__all__ = ["Crop", "PortraitSource", "load_portrait"]

MAX_PIXELS = 50_000_000
MIN_SIDE_PX = 64
# Larger pictures are reduced while loading: no frame needs more, and uploads stay in memory.
KEPT_SIDE_PX = 2560
# Vector and document formats (EPS, PDF, WMF) run interpreters: they are never opened.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
NEUTRAL_RGB = (186, 188, 192)
# Colours are converted in strips of this size, so that a large picture is in memory once.
STRIP_PIXELS = 4_000_000
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of an orientation upright (Exif 2.32, table 6)."""

# Where the engine's training pictures have the eyes, as parts of the frame, and how far apart they are.
EYES_Y = 0.41
EYE_DISTANCE_X = 0.25
# Wide frames show more, so that a head keeps its chin: they are at least so many distances of the eyes high.
EYE_DISTANCES_HIGH = 4.0
# Distance of the eyes in a frontal face, as a part of the detector's face width: bounds it for turned heads.
FRONTAL_EYE_DISTANCE = 0.40
# Without a face, the crop begins this part of the free height below the top: people leave more room below.
UPPER_CROP = 0.2
ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A part of a portrait, in pixels of the upright image; fractions are allowed."""

    x_px: float
    """Left edge."""
    y_px: float
    """Upper edge."""
    width_px: float
    """Width."""
    height_px: float
    """Height."""


class PortraitSource:
    """A decoded portrait from which frames are cut.

    Args:
        image: The picture: upright RGB, possibly smaller than the original.
        width_px: Width of the upright original; crops are in its pixels.
        height_px: Height of the upright original.
    """

    def __init__(self, image: Image.Image, *, width_px: int, height_px: int) -> None:
        self._image = image
        self.width_px = width_px
        self.height_px = height_px

    def suggest_crop(self, aspect: float) -> tuple[Crop, bool]:
        """Choose the part of the portrait to show. Takes up to half a second: not for the event loop.

        Args:
            aspect: Width of the engine's frame divided by its height.

        Returns:
            A crop inside the image, and whether a face was found: then its eyes lie where the engine expects them, as
            far as the image reaches; otherwise it is the upper middle of the image.
        """
        face = find_face(self._image)
        if face is None:
            return self._upper_middle(aspect), False
        high = EYE_DISTANCES_HIGH * aspect
        return self._around(face, aspect, eye_distances_wide=max(1 / EYE_DISTANCE_X, high)), True

    def widest_crop(self, aspect: float) -> tuple[Crop, bool]:
        """Choose as much of the portrait as fits the frame. Takes up to half a second: not for the event loop.

        Args:
            aspect: Width of the engine's frame divided by its height.

        Returns:
            The largest crop, and whether a face was found that decided which part it is.
        """
        face = find_face(self._image)
        if face is None:
            return self._upper_middle(aspect), False
        return self._around(face, aspect, eye_distances_wide=math.inf), True

    def cut(self, crop: Crop, *, height_px: int, width_px: int) -> NDArray[np.uint8]:
        """Cut out a part and resample it.

        Args:
            crop: The part; its aspect is that of the result within 2 %.
            height_px: Height of the result.
            width_px: Width of the result.

        Returns:
            uint8 RGB, (height_px, width_px, 3).

        Raises:
            MediaError: The crop is empty, not finite, reaches over the image, or has another aspect.
        """
        self._check(crop, width_px / height_px)
        scale_x, scale_y = self._image.width / self.width_px, self._image.height / self.height_px
        box = (
            max(0.0, crop.x_px * scale_x),
            max(0.0, crop.y_px * scale_y),
            min(float(self._image.width), (crop.x_px + crop.width_px) * scale_x),
            min(float(self._image.height), (crop.y_px + crop.height_px) * scale_y),
        )
        frame = self._image.resize((width_px, height_px), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        return np.array(frame, np.uint8)

    def place(self, placement: Placement) -> NDArray[np.uint8]:
        """Resize the whole portrait and cut out a box, as the published model's code does.

        Args:
            placement: How; computed from `height_px` and `width_px`.

        Returns:
            uint8 RGB, (height_px, width_px, 3) of the placement; black where the box reaches over the picture.
        """
        size = (placement.resized_width_px, placement.resized_height_px)
        resized = self._image.resize(size, Image.Resampling.BILINEAR)
        return np.array(resized.crop(placement.box), np.uint8)

    def _check(self, crop: Crop, aspect: float) -> None:
        """Raise MediaError unless the crop lies inside the image (to half a pixel) and has the aspect."""
        values = (crop.x_px, crop.y_px, crop.width_px, crop.height_px)
        shown = f"{crop.width_px:g}x{crop.height_px:g} px at ({crop.x_px:g}, {crop.y_px:g})"
        if not all(math.isfinite(value) for value in values) or crop.width_px < 1 or crop.height_px < 1:
            raise MediaError("crop", shown, "it has to be at least one pixel wide and high")
        right, bottom = crop.x_px + crop.width_px, crop.y_px + crop.height_px
        if min(crop.x_px, crop.y_px) < -0.5 or right > self.width_px + 0.5 or bottom > self.height_px + 0.5:
            raise MediaError("crop", shown, f"it has to lie inside the image of {self.width_px}x{self.height_px} px")
        if abs(crop.width_px / crop.height_px / aspect - 1) > ASPECT_TOLERANCE:
            rule = f"width / height has to be {aspect:.3f} within {100 * ASPECT_TOLERANCE:.0f} %"
            raise MediaError("crop", shown, rule)

    def _largest(self, aspect: float) -> tuple[float, float]:
        """Return width and height of the largest crop."""
        width_px = min(float(self.width_px), self.height_px * aspect)
        return width_px, width_px / aspect

    def _upper_middle(self, aspect: float) -> Crop:
        width_px, height_px = self._largest(aspect)
        left_px, top_px = (self.width_px - width_px) / 2, (self.height_px - height_px) * UPPER_CROP
        return Crop(x_px=left_px, y_px=top_px, width_px=width_px, height_px=height_px)

    def _around(self, face: Face, aspect: float, *, eye_distances_wide: float) -> Crop:
        """Return the crop that puts the eyes in their place, made smaller and moved until it lies in the image."""
        scale = self.width_px / self._image.width
        (left_x, left_y), (right_x, right_y) = face.left_eye, face.right_eye
        distance = max(math.hypot(right_x - left_x, right_y - left_y), FRONTAL_EYE_DISTANCE * face.width_px)
        width_px = min(scale * distance * eye_distances_wide, self._largest(aspect)[0])
        height_px = width_px / aspect
        x_px = scale * (left_x + right_x) / 2 - width_px / 2
        y_px = scale * (left_y + right_y) / 2 - EYES_Y * height_px
        return Crop(
            x_px=min(max(x_px, 0.0), self.width_px - width_px),
            y_px=min(max(y_px, 0.0), self.height_px - height_px),
            width_px=width_px,
            height_px=height_px,
        )


def load_portrait(source: bytes | Path, *, is_plain: bool = False) -> PortraitSource:
    """Decode an image: rotation, colours and transparency resolved; the first picture of an animation.

    Blocks while decoding (up to about a second): not for the event loop.

    Args:
        source: The content of an image file, or its path.
        is_plain: Whether it is read as the published code does it instead: the stored pixels at their full size, with
            rotation, colour profile and transparency left out (only TIFF is turned upright, there as here by Pillow).

    Returns:
        The portrait.

    Raises:
        MediaError: Not readable, not an image, damaged, too small, or more than 50 megapixels.
    """
    what, data = ("portrait", source) if isinstance(source, bytes) else (f"image {source}", _read(source))
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        # Pillow tells the size in its sentence only.
        num_pixels = re.search(r"\d+", str(exc))
        shown = f"{int(num_pixels[0]) / 1e6:.0f} megapixels large" if num_pixels else "larger"
        raise _too_many_pixels(what, shown) from exc
    except MemoryError:  # the machine's fault
        raise
    except Exception as exc:  # Pillow's readers raise nearly anything on odd files
        kinds = "it has to be a JPEG, PNG, WebP, GIF, BMP or TIFF image"
        raise MediaError(what, f"{len(data)} bytes of something else", kinds) from exc
    with image:
        _check_size(what, image)
        try:
            return _decode_plain(image) if is_plain else _decode(image)
        except MemoryError:  # as above
            raise
        except Exception as exc:  # as above
            raise MediaError(what, f"a damaged {image.format} file ({exc})", "it has to decode completely") from exc


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise MediaError(f"image {path}", f"unreadable ({reason.lower()})", "it has to be an image file") from exc


def _formats() -> list[str]:
    """Return the allowed formats that this build of Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _too_many_pixels(what: str, shown: str) -> MediaError:
    return MediaError(what, shown, f"at most {MAX_PIXELS // 1_000_000} megapixels are allowed")


def _check_size(what: str, image: Image.Image) -> None:
    """Raise MediaError by the header alone."""
    shown = f"{image.width}x{image.height} px"
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(what, shown)
    if min(image.size) < MIN_SIDE_PX:
        raise MediaError(what, shown, f"both sides have to be at least {MIN_SIDE_PX} px")


def _decode(image: Image.Image) -> PortraitSource:
    """Decode, reduce, turn upright and convert to sRGB."""
    if image.format == "TIFF":
        # Pillow turns these upright itself: after that they have their size, and no orientation.
        image.load()
    width_px, height_px = image.size
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    factor = min(1.0, KEPT_SIDE_PX / max(image.size))
    kept = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # JPEG decodes straight to a half, a quarter or an eighth: less time and memory.
    image.draft(None, kept)
    image.load()
    rgb = _reduce(image, max(1, max(image.size) // KEPT_SIDE_PX))
    if orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
    if orientation in (5, 6, 7, 8):
        width_px, height_px = height_px, width_px
    if max(rgb.size) > KEPT_SIDE_PX:
        rgb.thumbnail((KEPT_SIDE_PX, KEPT_SIDE_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return PortraitSource(rgb, width_px=width_px, height_px=height_px)


def _decode_plain(image: Image.Image) -> PortraitSource:
    return PortraitSource(image.convert("RGB"), width_px=image.width, height_px=image.height)


def _reduce(image: Image.Image, divisor: int) -> Image.Image:
    """Convert any mode to 8-bit sRGB, and both sides to a part of theirs, strip by strip."""
    reduced = Image.new("RGB", (-(-image.width // divisor), -(-image.height // divisor)))
    rows = max(1, STRIP_PIXELS // image.width // divisor)
    for top in range(0, reduced.height, rows):
        bottom = min((top + rows) * divisor, image.height)
        strip = _to_rgb(image.crop((0, top * divisor, image.width, bottom)))
        reduced.paste(strip.reduce(divisor), (0, top))
    return reduced


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit sRGB, transparent parts over a neutral grey."""
    if image.mode.startswith("I"):
        # 16-bit grey, whatever Pillow calls it.
        image = Image.fromarray((np.clip(np.asarray(image, np.int64), 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        colour = Image.new("RGBA", layer.size, (*NEUTRAL_RGB, 255))
        flat = Image.alpha_composite(colour, layer).convert("RGB")
        return _apply_profile(flat, image.info.get("icc_profile"))
    if image.mode not in ("RGB", "CMYK"):
        return image.convert("RGB")
    return _apply_profile(image, image.info.get("icc_profile"))


def _apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert from an embedded colour profile to sRGB; a profile that cannot be used is left out."""
    if profile:
        try:
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), target, outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")
