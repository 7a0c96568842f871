"""Regions of several speakers: drawn, refused, and brought to tokens as the published model takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.errors import ConfigError, MediaError
from pipeline.geometry import Placement, place_cover, place_exact
from pipeline.portrait import Crop, PortraitSource
from pipeline.speakers import Box, Masks, draw_masks, parse_region, shown_part, to_tokens

pytestmark = pytest.mark.unit

HEIGHT, WIDTH = 96, 160
WHOLE = Crop(x_px=0, y_px=0, width_px=WIDTH, height_px=HEIGHT)


def draw(*regions: Path | Box) -> Masks:
    return draw_masks(regions, height_px=HEIGHT, width_px=WIDTH)


def published_masks(masks: Masks, *, rows: int, columns: int) -> Masks:
    """Written out with torch: trilinear to 12 latent frames, threshold, a square of 10 % around, all but the others."""
    video = torch.from_numpy(masks).float()[:, None, None].expand(-1, 1, 12, -1, -1)
    own = F.interpolate(video, size=(12, rows, columns), mode="trilinear")[:, 0, 0] > 0.5
    grown = []
    for mask in own:
        where = mask.nonzero()
        side = int((where.amax(0) - where.amin(0) + 1).max())
        radius = -(-side // 10)
        grown.append(F.max_pool2d(mask[None].float(), 2 * radius + 1, stride=1, padding=radius)[0] > 0)
    others = [torch.stack([g for b, g in enumerate(grown) if b != a]).any(0) for a in range(len(grown))]
    return ~torch.stack(others).numpy()


def ellipse(centre_x: float, centre_y: float, radius_x: float, radius_y: float) -> Masks:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1  # type: ignore[no-any-return]


def save(path: Path, mask: Masks, mode: str = "L") -> Path:
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("10,20,30.5,40", (10, 20, 30.5, 40)),
        (" 0.1, 0.2, 0.3, 1", (0.1, 0.2, 0.3, 1)),
        ("left.png", Path("left.png")),
        ("a,b,c,d.png", Path("a,b,c,d.png")),
        ("1,2,3", Path("1,2,3")),
    ],
)
def test_regions_are_four_numbers_or_a_path(text: str, region: Path | Box) -> None:
    assert parse_region(text) == region


def test_boxes_are_in_pixels_or_in_parts_of_the_portrait() -> None:
    """A pixel belongs to a box if its middle does."""
    masks = draw((16, 24, 48, 96), (0.5, 0, 1, 0.25))
    expected = np.zeros((2, HEIGHT, WIDTH), bool)
    expected[0, 24:, 16:48] = True
    expected[1, :24, 80:] = True
    assert np.array_equal(masks, expected)
    assert draw((10.4, 0, 20.6, 9), (30, 0, 40, 9))[0].sum() == 11 * 9


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P"])
def test_masks_may_be_files(tmp_path: Path, mode: str) -> None:
    mask = ellipse(40, 48, 20, 30)
    masks = draw(save(tmp_path / "left.png", mask, mode), (100, 0, 160, 96))
    assert np.array_equal(masks[0], mask)


def test_the_speakers_of_a_picture_are_heard_where_no_other_one_is() -> None:
    """By hand: two boxes of 4x4 tokens; each keeps 1 token around it to itself, the background hears both."""
    heard = to_tokens(draw((0, 0, 64, 64), (96, 0, 160, 64)), WHOLE, token_rows=6, token_columns=10)
    expected = np.ones((2, 6, 10), bool)
    expected[0, :5, 5:] = False
    expected[1, :5, :5] = False
    assert np.array_equal(heard, expected)


@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (24, 40), (7, 9), (44, 24)])
def test_tokens_are_those_of_the_published_code(rows: int, columns: int) -> None:
    masks = np.stack([ellipse(30, 40, 22, 31), ellipse(85, 60, 14, 20), ellipse(135, 35, 20, 30)])
    heard = to_tokens(masks, WHOLE, token_rows=rows, token_columns=columns)
    assert heard.shape == (3, rows, columns)
    assert np.array_equal(heard, published_masks(masks, rows=rows, columns=columns))
    assert heard.any((1, 2)).all()
    assert not heard.all()


def test_the_frame_may_show_a_part_of_the_portrait() -> None:
    """The right half alone, as if the masks had been cut; and with black around the portrait, where nobody is."""
    masks = np.stack([ellipse(105, 48, 15, 30), ellipse(140, 48, 12, 30)])
    part = to_tokens(masks, Crop(x_px=80, y_px=0, width_px=80, height_px=96), token_rows=12, token_columns=10)
    assert np.array_equal(part, published_masks(masks[:, :, 80:], rows=12, columns=10))
    wider = Crop(x_px=-40, y_px=-16, width_px=240, height_px=128)
    padded = np.pad(masks, ((0, 0), (16, 16), (40, 40)))
    expected = published_masks(padded, rows=16, columns=30)
    assert np.array_equal(to_tokens(masks, wider, token_rows=16, token_columns=30), expected)


@pytest.mark.parametrize("place", [place_cover, place_exact])
def test_masks_follow_the_portrait_into_the_frame(place: Callable[..., Placement]) -> None:
    """The masks, painted, placed as a portrait is, and looked at in the frame's pixels, give the same tokens."""
    masks = np.stack([ellipse(30, 40, 22, 31), ellipse(115, 45, 20, 30)])
    placement = place(HEIGHT, WIDTH, height_px=192, width_px=384)
    crop = shown_part(placement, height_px=HEIGHT, width_px=WIDTH)
    pictures = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]
    sources = [PortraitSource(picture, width_px=WIDTH, height_px=HEIGHT) for picture in pictures]
    painted = np.stack([source.place(placement) for source in sources]) >= 128
    expected = published_masks(painted, rows=12, columns=24)
    assert np.array_equal(to_tokens(masks, crop, token_rows=12, token_columns=24), expected)


def test_a_speaker_at_the_edge_reaches_into_the_black_by_the_margin_only() -> None:
    masks = draw((0, 0, 32, 96), (128, 0, 160, 96))
    wider = Crop(x_px=-160, y_px=0, width_px=320, height_px=96)
    heard = to_tokens(masks, wider, token_rows=6, token_columns=20)
    assert np.flatnonzero(~heard[1].all(0)).tolist() == [9, 10, 11, 12]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(0, 0, 40, 40)], "number of speakers is 1, but masks are for two or more"),
        ([(0, 0, 40, 40), (50, 0, 60, 9), (39, 39, 80, 80)], "overlap of speakers 1 and 3 is '1 px .*no pixel may"),
        ([(0, 0, 0.5, 1), (0.25, 0, 1, 1)], r"overlap of speakers 1 and 2 is '3840 px \(0,0,0.5,1 and 0.25,0,1,1\)'"),
        ([(0, 0, 40, 40), (60, 0, 161, 96)], r"box of speaker 2 is '60,0,161,96', but .*portrait of 160x96 px"),
        ([(-1, 0, 40, 40), (60, 0, 100, 96)], r"box of speaker 1 is '-1,0,40,40', but .* at least 0"),
        ([(0, 0, float("nan"), 40), (60, 0, 100, 96)], "have to be finite"),
        ([(0, 0, 40, 40), (100, 0, 60, 96)], r"box of speaker 2 .* left, upper, right, lower"),
        ([(0, 0, 40, 40), (60.6, 0, 61.2, 96)], "region of speaker 2 .* at least one pixel"),
    ],
)
def test_regions_that_make_no_sense_are_refused(regions: list[Box], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(*regions)


def test_masks_of_another_size_or_without_a_speaker_are_refused(tmp_path: Path) -> None:
    small = save(tmp_path / "small.png", np.ones((50, 60), bool))
    with pytest.raises(ConfigError, match=r"small.png is '60x50 px', but it has to be as large .*160x96 px"):
        draw(small, (0, 0, 10, 10))
    black = save(tmp_path / "black.png", np.zeros((HEIGHT, WIDTH), bool))
    with pytest.raises(ConfigError, match=r"region of speaker 2 is '.*black.png', but at least one pixel"):
        draw((0, 0, 10, 10), black)


def test_masks_of_16_bits_and_masks_on_a_transparent_ground_are_read(tmp_path: Path) -> None:
    speaker = ellipse(40, 48, 20, 30)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.where(speaker, 65_535, 300).astype(np.uint16)).save(deep)
    clear = tmp_path / "clear.png"
    colours = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    colours[..., 3] = speaker * 255
    Image.fromarray(colours).save(clear)
    for path in (deep, clear):
        assert np.array_equal(draw(path, (100, 0, 160, 96))[0], speaker)


def test_files_that_are_no_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"mask .*gone.png is unreadable \(no such file"):
        draw(tmp_path / "gone.png", (0, 0, 10, 10))
    (tmp_path / "text.png").write_text("white")
    with pytest.raises(MediaError, match=r"mask .*text.png is damaged or something else"):
        draw(tmp_path / "text.png", (0, 0, 10, 10))
    whole = save(tmp_path / "whole.png", ellipse(40, 48, 20, 30)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=r"mask .*half.png is damaged"):
        draw(tmp_path / "half.png", (0, 0, 10, 10))


def test_a_machine_short_of_memory_does_not_blame_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (8, 8), 255).save(path)

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        draw_masks([path, path], height_px=8, width_px=8)


def test_speakers_whom_no_token_would_hear_are_refused() -> None:
    with pytest.raises(ConfigError, match="region of speaker 2 .* at least one of the frame's 10x6 tokens"):
        to_tokens(draw((0, 0, 64, 64), (96, 0, 100, 4)), WHOLE, token_rows=6, token_columns=10)
    left = Crop(x_px=80, y_px=0, width_px=80, height_px=96)
    with pytest.raises(ConfigError, match="region of speaker 1 is 'outside the frame"):
        to_tokens(draw((0, 0, 64, 64), (96, 0, 160, 64)), left, token_rows=6, token_columns=5)
    with pytest.raises(ConfigError, match="region of speaker 2 is 'taken by other speakers', but .* margin of 10 %"):
        to_tokens(draw((0, 0, 144, 96), (144, 0, 160, 96)), WHOLE, token_rows=6, token_columns=10)
