"""Portraits from all kinds of files, good and bad."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from pipeline.errors import MediaError
from pipeline.geometry import place_exact
from pipeline.portrait import KEPT_SIDE_PX, NEUTRAL_RGB, Crop, load_portrait

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
RED, BLUE = (220, 40, 30), (30, 60, 200)


def halves(width_px: int = 120, height_px: int = 160) -> Image.Image:
    """A picture that is red above and blue below."""
    image = Image.new("RGB", (width_px, height_px), RED)
    image.paste(BLUE, (0, height_px // 2, width_px, height_px))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole(data: bytes) -> np.ndarray:
    """Load and cut everything out at its own size."""
    source = load_portrait(data)
    crop = Crop(x_px=0, y_px=0, width_px=source.width_px, height_px=source.height_px)
    return source.cut(crop, height_px=source.height_px, width_px=source.width_px)


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG file of two chunks."""
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (b"IHDR" + header, b"IDAT" + rows)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_header(width_px: int, height_px: int) -> bytes:
    """A PNG file that claims a size and holds no pixels."""
    return png(struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0), zlib.compress(b""))


def close(pixel: np.ndarray, colour: tuple[int, ...], tolerance: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_common_formats_keep_size_and_colour(kind: str) -> None:
    frame = whole(encoded(halves(), kind))
    assert frame.shape == (160, 120, 3)
    assert frame.dtype == np.uint8
    assert close(frame[20, 60], RED)
    assert close(frame[140, 60], BLUE)


def stored_turned(orientation: int) -> tuple[Image.Image, np.ndarray]:
    """A picture as a camera stores it, and what it is when turned upright."""
    upright = np.asarray(halves())
    upright = np.where(np.arange(120)[None, :, None] < 40, 255 - upright, upright)
    flipped = upright[:, ::-1] if orientation in (2, 4, 5, 7) else upright
    turned = np.rot90(flipped, {3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}.get(orientation, 0))
    return Image.fromarray(turned.copy()), upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {"compression": "raw"}), ("TIFF", {"compression": "tiff_lzw"})]
)
def test_the_exif_rotation_is_applied(kind: str, options: dict[str, str], orientation: int) -> None:
    """A picture stored turned comes out as it was taken, with upright width and height."""
    stored, upright = stored_turned(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(whole(encoded(stored, kind, exif=exif, **options)), upright)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_plain_tiff_is_turned_as_pillow_turns_it_for_the_published_code(orientation: int) -> None:
    stored, upright = stored_turned(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = load_portrait(encoded(stored, "TIFF", exif=exif), is_plain=True)
    assert (source.width_px, source.height_px) == (120, 160)
    assert np.array_equal(source.place(place_exact(160, 120, height_px=160, width_px=120)), upright)


def test_transparent_parts_become_neutral() -> None:
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 120, 40))
    frame = whole(encoded(image))
    assert close(frame[10, 60], NEUTRAL_RGB, 1)
    assert close(frame[60, 60], RED)


def test_a_transparent_palette_colour_becomes_neutral() -> None:
    image = halves().quantize(4)
    top = image.getpixel((60, 10))
    frame = whole(encoded(image, "PNG", transparency=top))
    assert close(frame[10, 60], NEUTRAL_RGB, 1)
    assert close(frame[140, 60], BLUE)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.full((100, 100), 0x8000, np.uint16)
    grey[50:] = 0x2000
    frame = whole(encoded(Image.fromarray(grey)))
    assert close(frame[20, 50], (128, 128, 128), 1)
    assert close(frame[80, 50], (32, 32, 32), 1)


def test_cmyk_is_converted() -> None:
    frame = whole(encoded(halves().convert("CMYK"), "JPEG", quality=95))
    assert close(frame[20, 60], RED, 20)
    assert close(frame[140, 60], BLUE, 20)


def test_an_animation_gives_its_first_picture() -> None:
    data = encoded(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (120, 160), (0, 255, 0))])
    assert close(whole(data)[20, 60], RED)


def test_a_colour_profile_is_applied_and_a_broken_one_ignored() -> None:
    plain = whole(encoded(halves()))
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = whole(encoded(halves(), "PNG", icc_profile=linear))
    broken = whole(encoded(halves(), "PNG", icc_profile=b"not a profile"))
    assert np.abs(same.astype(int) - plain).max() <= 2
    assert np.array_equal(broken, plain)


def test_the_size_is_refused_from_the_header() -> None:
    """The file holds no pixels at all: whoever decodes it first would report a damaged file."""
    with pytest.raises(MediaError, match=r"8000x7000 px, but at most 50 megapixels"):
        load_portrait(png_header(8000, 7000))


@pytest.mark.parametrize("side_px", [10_000, 65_000])
def test_a_decompression_bomb_is_refused(side_px: int) -> None:
    shown = rf"(10000x10000 px|{side_px**2 / 1e6:.0f} megapixels large), but at most 50 megapixels"
    with pytest.raises(MediaError, match=shown):
        load_portrait(png_header(side_px, side_px))


def test_a_tiny_image_is_refused() -> None:
    with pytest.raises(MediaError, match=r"63x300 px, but both sides have to be at least 64 px"):
        load_portrait(encoded(halves(63, 300)))


@pytest.mark.parametrize("data", [b"", b"hello, this is text\n" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(1000)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(MediaError, match=rf"portrait is {len(data)} bytes of something else, but it has to be a JPEG"):
        load_portrait(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_cut_off_image_is_refused(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (200, 200, 3), np.uint8)), kind)
    with pytest.raises(MediaError, match=r"portrait is (a damaged|\d+ bytes of something else)"):
        load_portrait(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        good = encoded(halves(), kind)
        for _ in range(40):
            bad = bytearray(good)
            for place in rng.integers(0, len(bad), 8):
                bad[place] = int(rng.integers(256))
            with contextlib.suppress(MediaError):
                assert load_portrait(bytes(bad)).width_px > 0


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("entry", range(8))
@pytest.mark.parametrize("kind", [2, 5])
def test_entries_of_an_odd_type_never_escape_as_another_error(entry: int, kind: int) -> None:
    """A TIFF file that gives numbers as text or fractions: Pillow raises a TypeError for some."""
    data = bytearray(encoded(halves(), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    data[directory + 2 + 12 * entry + 2] = kind
    with contextlib.suppress(MediaError):
        assert load_portrait(bytes(data)).width_px > 0


@pytest.mark.parametrize(("owner", "name"), [(Image, "open"), (ImageFile.ImageFile, "load")])
def test_a_machine_short_of_memory_does_not_blame_the_picture(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    data = encoded(halves(), "JPEG")

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(MemoryError):
        load_portrait(data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"nowhere.png is unreadable \(no such file or directory\)"):
        load_portrait(tmp_path / "nowhere.png")


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(encoded(halves()))
    assert (load_portrait(path).width_px, load_portrait(path).height_px) == (120, 160)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_picture_is_reduced_but_measured_in_its_own_pixels(kind: str) -> None:
    source = load_portrait(encoded(halves(6000, 4000), kind))
    assert (source.width_px, source.height_px) == (6000, 4000)
    assert max(source._image.size) <= KEPT_SIDE_PX
    above = source.cut(Crop(x_px=2000, y_px=0, width_px=1000, height_px=1990), height_px=199, width_px=100)
    assert close(above.reshape(-1, 3).mean(0), RED)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_picture_is_reduced_strip_by_strip_without_a_seam(orientation: int) -> None:
    """A slope of brightness across and down, half transparent; stored upright, and turned."""
    down, across = np.mgrid[0:900, 0:5200].astype(np.uint16)
    upright = np.stack([down // 4, across // 21, 0 * down, 0 * down + 128], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(upright if orientation == 1 else np.rot90(upright).copy())
    source = load_portrait(encoded(stored, "PNG", exif=exif, compress_level=1))
    assert (source.width_px, source.height_px) == (5200, 900)
    seen = source.cut(Crop(x_px=0, y_px=0, width_px=5200, height_px=900), height_px=450, width_px=2600)
    flat = upright[::2, ::2, :3] * np.float32(128 / 255) + np.array(NEUTRAL_RGB, np.float32) * np.float32(127 / 255)
    assert np.abs(seen - flat).max() < 3


@pytest.mark.skipif(not STATUS.exists(), reason="the peak of memory is read from Linux's /proc")
def test_a_large_transparent_picture_is_in_memory_once(tmp_path: Path) -> None:
    """49 megapixels of four bytes; a process of its own tells how much more it ever held than at its start.

    What getrusage says of a new process begins with the peak of the one that started it.
    """
    header = struct.pack(">IIBBBBB", 7000, 7000, 8, 6, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 4 * 7000)) for _ in range(7000)) + packer.flush()
    (tmp_path / "p.png").write_bytes(png(header, rows))
    code = (
        "import sys; from pathlib import Path; from pipeline.portrait import load_portrait\n"
        "status = lambda: Path('/proc/self/status').read_text().split()\n"
        "peak_kib = lambda: int(status()[status().index('VmHWM:') + 1])\n"
        "before = peak_kib(); load_portrait(Path(sys.argv[1])); print(peak_kib() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "p.png")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    once_kib = 4 * 7000**2 / 1024
    assert once_kib < int(result.stdout) < 1.9 * once_kib


def test_a_cut_is_exact_where_nothing_is_resampled() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (100, 80, 3), np.uint8)
    source = load_portrait(encoded(Image.fromarray(pixels)))
    crop = Crop(x_px=10, y_px=20, width_px=40, height_px=60)
    assert np.array_equal(source.cut(crop, height_px=60, width_px=40), pixels[20:80, 10:50])


def test_a_small_portrait_is_enlarged_to_the_whole_frame() -> None:
    source = load_portrait(encoded(halves(64, 96)))
    crop, _ = source.suggest_crop(256 / 384)
    frame = source.cut(crop, height_px=384, width_px=256)
    assert frame.shape == (384, 256, 3)
    assert frame.max(-1).min() > 100


@pytest.mark.parametrize(
    ("crop", "rule"),
    [
        (Crop(x_px=-2, y_px=0, width_px=60, height_px=90), "inside the image of 120x160 px"),
        (Crop(x_px=0, y_px=80, width_px=60, height_px=90), "inside the image of 120x160 px"),
        (Crop(x_px=0, y_px=0, width_px=0, height_px=0), "at least one pixel"),
        (Crop(x_px=float("nan"), y_px=0, width_px=60, height_px=90), "at least one pixel"),
        (Crop(x_px=0, y_px=0, width_px=90, height_px=90), "0.667 within 2 %"),
    ],
)
def test_an_impossible_crop_is_refused(crop: Crop, rule: str) -> None:
    with pytest.raises(MediaError, match=rule):
        load_portrait(encoded(halves())).cut(crop, height_px=384, width_px=256)


@pytest.mark.parametrize(("width_px", "height_px"), [(120, 160), (300, 100), (100, 300)])
@pytest.mark.parametrize("aspect", [2 / 3, 1.0, 16 / 9])
def test_without_a_face_the_crop_is_the_largest_in_the_upper_middle(
    width_px: int, height_px: int, aspect: float
) -> None:
    crop, face_found = load_portrait(encoded(halves(width_px, height_px))).suggest_crop(aspect)
    assert not face_found
    assert crop.width_px / crop.height_px == pytest.approx(aspect)
    assert crop.x_px + crop.width_px / 2 == pytest.approx(width_px / 2)
    assert crop.width_px == pytest.approx(width_px) or crop.height_px == pytest.approx(height_px)
    assert 0 <= crop.y_px <= (height_px - crop.height_px) / 2 + 1e-6


FACE = Path(__file__).parents[1] / "data" / "face.png"


def test_wide_frames_keep_the_whole_head() -> None:
    """They are as high as a square frame, four distances of the eyes; narrow ones are as wide as it."""
    with Image.open(FACE) as face:
        picture = Image.new("RGB", (4 * face.width, 3 * face.height), NEUTRAL_RGB)
        picture.paste(face.convert("RGB"), (face.width * 3 // 2, face.height))
    source = load_portrait(encoded(picture))
    (narrow, _), (square, is_found), (wide, _) = (source.suggest_crop(aspect) for aspect in (2 / 3, 1.0, 1.8))
    assert is_found
    assert square.width_px < source.height_px / 2
    assert narrow.width_px == pytest.approx(square.width_px)
    assert wide.height_px == pytest.approx(square.height_px)


def test_the_widest_crop_shows_all_that_fits_with_the_face_in_it() -> None:
    source = load_portrait(FACE)
    for aspect in (0.5, 1.0, 1.8):
        crop, is_found = source.widest_crop(aspect)
        assert is_found
        assert crop.width_px / crop.height_px == pytest.approx(aspect)
        fills = (crop.width_px / source.width_px, crop.height_px / source.height_px)
        assert max(fills) == pytest.approx(1)
        narrow, _ = source.suggest_crop(aspect)
        assert crop.width_px >= narrow.width_px
    crop, is_found = load_portrait(encoded(halves())).widest_crop(1.0)
    assert (crop.width_px, is_found) == (120, False)


def test_a_plain_portrait_is_what_is_stored_at_its_full_size() -> None:
    """As the published code reads it: rotation and transparency are left out, and it is resized once."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (100, 2 * KEPT_SIDE_PX, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    source = load_portrait(encoded(Image.fromarray(pixels), "PNG", exif=exif), is_plain=True)
    assert (source.width_px, source.height_px) == (2 * KEPT_SIDE_PX, 100)
    placement = place_exact(100, 2 * KEPT_SIDE_PX, height_px=64, width_px=64)
    size = (placement.resized_width_px, placement.resized_height_px)
    resized = Image.fromarray(np.ascontiguousarray(pixels[..., :3])).resize(size, Image.Resampling.BILINEAR)
    assert np.array_equal(source.place(placement), np.asarray(resized.crop(placement.box)))


def test_a_portrait_is_placed_with_black_where_the_published_code_has_it() -> None:
    """A picture of 720x400 in a frame of 704x384 gets 6 black columns on the left and 7 on the right."""
    source = load_portrait(encoded(Image.new("RGB", (720, 400), RED)))
    frame = source.place(place_exact(400, 720, height_px=384, width_px=704))
    assert frame.shape == (384, 704, 3)
    is_black = (frame == 0).all((0, 2))
    assert (is_black.argmin(), is_black[::-1].argmin()) == (6, 7)
    assert np.array_equal(np.unique(frame[:, 6:-7].reshape(-1, 3), axis=0), [RED])
