"""Pictures are fitted to the frame by resizing, cutting and, in exact mode, black edges."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fitting import fit
from pipeline.geometry import place_cover, place_exact

pytestmark = pytest.mark.unit


def test_a_picture_of_the_right_size_is_not_changed() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    assert np.array_equal(fit(picture, place_cover(64, 128, height_px=64, width_px=128)), picture)


def test_the_middle_of_a_wide_picture_is_cut_out() -> None:
    """A ramp from left to right shows which columns are left; rows and columns do not get confused."""
    picture = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    frame = fit(np.ascontiguousarray(picture), place_cover(100, 200, height_px=50, width_px=50))
    assert frame.shape == (50, 50, 3)
    assert np.abs(frame[25, :, 0].astype(float) - (50.5 + 2 * np.arange(50))).max() <= 1


def test_making_it_smaller_averages() -> None:
    """A fine chequer becomes grey: pixels are not picked."""
    chequer = (255 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8)
    frame = fit(np.repeat(chequer[..., None], 3, 2), place_cover(64, 64, height_px=16, width_px=16))
    assert np.abs(frame[2:-2, 2:-2].astype(int) - 128).max() <= 2


def test_the_exact_mode_leaves_black_edges() -> None:
    white = np.full((720, 400, 3), 255, np.uint8)
    frame = fit(white, place_exact(720, 400, height_px=704, width_px=384))
    assert frame.shape == (704, 384, 3)
    assert np.flatnonzero((frame == 0).all((1, 2))).tolist() == [*range(6), *range(697, 704)]
    assert (frame[6:697] == 255).all()
