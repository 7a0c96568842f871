"""RGB to I420, against the standard's numbers and against PyAV's own conversion."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from pipeline.models.colour import squares_to_i420, to_i420

pytestmark = pytest.mark.numerics

# ITU-R BT.601, limited range: Y, U, V of the full-strength colours.
COLOURS = {
    (-1, -1, -1): (16, 128, 128),
    (1, 1, 1): (235, 128, 128),
    (1, -1, -1): (81, 90, 240),
    (-1, 1, -1): (145, 54, 34),
    (-1, -1, 1): (41, 240, 110),
    (0, 0, 0): (126, 128, 128),
}


def flat(colour: tuple[float, float, float], height: int = 16, width: int = 8) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32)[None, :, None, None].expand(1, 3, height, width)


@pytest.mark.parametrize(("rgb", "yuv"), COLOURS.items())
def test_known_colours_become_the_standards_numbers(rgb: tuple[int, int, int], yuv: tuple[int, int, int]) -> None:
    picture = to_i420(flat(rgb)).numpy()[0]
    assert picture.shape == (24, 8)
    for rows, value in zip((slice(0, 16), slice(16, 20), slice(20, 24)), yuv, strict=True):
        assert np.abs(picture[rows].astype(int) - value).max() <= 1
        assert np.unique(picture[rows]).size == 1


def test_values_out_of_range_are_those_at_the_edge_of_it() -> None:
    assert torch.equal(to_i420(flat((1.7, -3.0, 1.2))), to_i420(flat((1, -1, 1))))


@pytest.mark.parametrize(("height", "width"), [(64, 48), (384, 256)])
def test_a_pyav_frame_made_of_it_shows_the_same_picture(height: int, width: int) -> None:
    """Smooth pictures, because the two sides fill in chroma differently at edges."""
    ys, xs = np.mgrid[:height, :width] / max(height, width)
    rgb = np.stack([0.5 + 0.4 * np.sin(2 * xs), 0.3 + 0.5 * ys, 0.6 - 0.4 * xs * ys], -1)
    frames = torch.from_numpy(rgb * 2 - 1).permute(2, 0, 1)[None].float().expand(2, -1, -1, -1)
    pictures = to_i420(frames).numpy()
    assert pictures.shape == (2, height * 3 // 2, width)
    assert pictures.dtype == np.uint8
    frame = av.VideoFrame.from_ndarray(pictures[1], format="yuv420p")
    shown = frame.to_ndarray(format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601").astype(float)
    assert np.abs(shown - rgb * 255).mean() < 1.5
    assert np.abs(shown - rgb * 255).max() < 8


def test_it_is_what_pyav_makes_of_the_same_picture() -> None:
    gradient = np.zeros((64, 48, 3), np.uint8)
    gradient[..., 0] = np.arange(64)[:, None] * 4
    gradient[..., 1] = np.arange(48)[None, :] * 5
    gradient[..., 2] = 255 - gradient[..., 0]
    expected = av.VideoFrame.from_ndarray(gradient, format="rgb24").to_ndarray(format="yuv420p").astype(int)
    made = to_i420(torch.from_numpy(gradient).permute(2, 0, 1)[None].float() / 127.5 - 1).numpy()[0].astype(int)
    assert np.abs(made - expected).mean() < 1
    assert np.abs(made - expected).max() <= 3


def test_chroma_is_the_mean_of_four_pixels() -> None:
    picture = flat((-1, -1, -1)).clone()
    picture[0, 0, 0, 0] = 1
    v_plane = to_i420(picture).numpy()[0, 20:].reshape(8, 4)
    assert v_plane[0, 0] == 128 + round(112 / 4)
    assert (v_plane.ravel()[1:] == 128).all()


def test_bfloat16_pictures_are_taken_too() -> None:
    exact, rounded = to_i420(flat((0.3, -0.2, 0.7))), to_i420(flat((0.3, -0.2, 0.7)).bfloat16())
    assert int((exact.int() - rounded.int()).abs().max()) <= 1


def test_squares_taken_apart_become_the_same_pictures() -> None:
    frames = 1.5 * torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    squares = frames.unflatten(3, (12, 2)).unflatten(2, (8, 2)).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
    difference = squares_to_i420(squares).int() - to_i420(frames).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-3
