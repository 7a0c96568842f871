"""Where the autoencoder is looked at closely."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench.vae import detail_mask

pytestmark = pytest.mark.unit


def test_the_mask_covers_mouth_and_eyes_and_little_else() -> None:
    """Landmarks of a face with eyes 64 px apart; the second frame is moved by 10 px."""
    points = {"mouth_left": (104, 220), "mouth_right": (152, 220), "eye_left": (96, 156), "eye_right": (160, 156)}
    face = np.zeros((8, 2), np.float32)
    face[:2] = points["mouth_left"], points["mouth_right"]
    face[4:6] = points["eye_left"], points["eye_right"]
    mask = detail_mask(np.stack([face, face + 10]), 384, 256)
    assert mask.shape == (2, 384, 256)
    for x, y in points.values():
        assert mask[0, y, x]
        assert mask[1, y + 10, x + 10]
    assert not mask[0, 188, 128]
    assert not mask[0, 20, 128]
    assert 0.04 < mask[0].mean() < 0.2
    assert np.array_equal(mask[0, :-10, :-10], mask[1, 10:, 10:])
