"""Geometry: how pixels, latents, tokens, frames and samples relate, and how portraits are fitted."""

import pytest

from pipeline.errors import ConfigError, MediaError
from pipeline.geometry import (
    FPS,
    FRAMES_PER_BLOCK,
    SAMPLE_RATE_HZ,
    WINDOW_S,
    WINDOW_SAMPLES,
    VideoGeometry,
    cover_size,
    exact_size,
    place_cover,
    place_exact,
)

pytestmark = pytest.mark.unit


def published(height_px: int = 704, width_px: int = 384) -> VideoGeometry:
    return VideoGeometry(height_px=height_px, width_px=width_px, vae_spatial_stride=8, latent_channels=16, patch=2)


def test_a_window_is_480_ms_of_sound_and_12_frames() -> None:
    assert (FPS, SAMPLE_RATE_HZ, FRAMES_PER_BLOCK, WINDOW_SAMPLES) == (25, 16_000, 12, 7_680)
    assert pytest.approx(0.48) == WINDOW_S


def test_the_published_frame_of_704x384_has_1056_tokens_per_latent_frame() -> None:
    geometry = published()
    assert (geometry.latent_height, geometry.latent_width) == (88, 48)
    assert (geometry.token_rows, geometry.token_columns) == (44, 24)
    assert geometry.tokens_per_latent_frame == 1056
    assert geometry.tokens_per_block == 3168
    assert geometry.block_shape == (16, 3, 88, 48)


def test_the_embedded_frame_of_384x256_has_96_tokens_per_latent_frame() -> None:
    geometry = VideoGeometry(height_px=384, width_px=256, vae_spatial_stride=16, latent_channels=8, patch=2)
    assert geometry.block_shape == (8, 3, 24, 16)
    assert geometry.tokens_per_latent_frame == 96
    assert geometry.frames_per_block == FRAMES_PER_BLOCK
    assert geometry.window_samples == WINDOW_SAMPLES


@pytest.mark.parametrize(("height_px", "width_px", "key"), [(700, 384, "height_px"), (704, 0, "width_px")])
def test_a_side_off_the_grid_is_refused_by_name(height_px: int, width_px: int, key: str) -> None:
    with pytest.raises(ConfigError, match="multiple of 16") as caught:
        published(height_px, width_px)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("area_px", "image", "frame"),
    [
        (288_000, (720, 400), (704, 384)),
        (288_000, (400, 720), (384, 704)),
        (288_000, (1024, 1024), (512, 512)),
        (288_000, (1280, 720), (704, 384)),
        (288_000, (1536, 1024), (640, 448)),
        (288_000, (300, 200), (320, 256)),
        (288_000, (64, 64), (64, 64)),
        (270_336, (832, 480), (704, 384)),
        (270_336, (1536, 1024), (576, 384)),
        (270_336, (1024, 1024), (512, 512)),
        (399_360, (1024, 1024), (576, 576)),
        (399_360, (720, 400), (768, 448)),
        (399_360, (1920, 1080), (832, 448)),
    ],
)
def test_the_exact_mode_chooses_the_published_sizes(
    area_px: int, image: tuple[int, int], frame: tuple[int, int]
) -> None:
    assert exact_size(*image, area_px) == frame


def test_the_exact_mode_keeps_the_quirk_of_the_quadratic() -> None:
    """With the textbook 4ac this picture would get 384x640."""
    assert exact_size(1065, 1597, 270_336) == (384, 576)


def test_the_exact_mode_refuses_a_picture_too_thin_for_a_frame() -> None:
    with pytest.raises(MediaError, match="100000x1 px"):
        exact_size(1, 100_000, 270_336)


@pytest.mark.parametrize(
    ("image", "resized", "box"),
    [
        ((720, 400), (691, 384), (0, -6, 384, 698)),
        ((1280, 720), (682, 384), (0, -11, 384, 693)),
        ((400, 720), (384, 691), (154, -160, 538, 544)),
    ],
)
def test_the_exact_mode_leaves_black_where_the_long_side_is_too_short(
    image: tuple[int, int], resized: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """The box of a 704x384 frame may begin before the resized picture; 13 missing rows are 6 above and 7 below."""
    placement = place_exact(*image, height_px=704, width_px=384)
    assert (placement.resized_height_px, placement.resized_width_px) == resized
    assert placement.box == box


@pytest.mark.parametrize(
    ("image", "frame"), [((720, 400), (704, 384)), ((300, 200), (640, 448)), ((64, 64), (512, 512))]
)
def test_the_cover_mode_enlarges_small_pictures_to_the_area(image: tuple[int, int], frame: tuple[int, int]) -> None:
    assert cover_size(*image, 288_000) == frame


def test_the_cover_mode_never_exceeds_the_area() -> None:
    for image in [(100, 3000), (3000, 100), (777, 333), (1, 1)]:
        height_px, width_px = cover_size(*image, 270_336)
        assert height_px * width_px <= 270_336
        assert height_px % 64 == width_px % 64 == 0


def test_the_cover_mode_refuses_an_area_below_the_smallest_frame() -> None:
    with pytest.raises(ConfigError, match="area_px is 4000, but it has to be at least 4096"):
        cover_size(100, 100, 4000)


@pytest.mark.parametrize("image", [(1, 1), (50, 4000), (4000, 50), (333, 221), (384, 256), (1081, 719)])
def test_the_cover_mode_never_leaves_black(image: tuple[int, int]) -> None:
    placement = place_cover(*image, height_px=384, width_px=256)
    left, top, right, bottom = placement.box
    assert left >= 0
    assert top >= 0
    assert right <= placement.resized_width_px
    assert bottom <= placement.resized_height_px
    assert (right - left, bottom - top) == (256, 384)
    assert placement.resized_width_px == 256 or placement.resized_height_px == 384


def test_the_focus_moves_the_box_from_end_to_end() -> None:
    assert place_cover(400, 1000, height_px=384, width_px=256, focus=(0, 0)).box == (0, 0, 256, 384)
    assert place_cover(400, 1000, height_px=384, width_px=256, focus=(1, 1)).box == (704, 0, 960, 384)


def test_a_focus_outside_the_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="focus"):
        place_cover(400, 1000, height_px=384, width_px=256, focus=(0, 1.5))
