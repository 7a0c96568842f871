"""Portraits on their way into the networks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.worker.pictures import portrait_tensor

pytestmark = pytest.mark.unit


def test_bytes_become_numbers_from_minus_one_to_one_channel_first() -> None:
    portrait = np.zeros((4, 2, 3), np.uint8)
    portrait[3, 1] = (255, 0, 51)
    image = portrait_tensor(portrait, height_px=4, width_px=2)
    assert image.shape == (1, 3, 4, 2)
    assert image[0, :, 3, 1].tolist() == pytest.approx([1.0, -1.0, -0.6])


@pytest.mark.parametrize("portrait", [None, np.zeros((2, 4, 3), np.uint8), np.zeros((4, 2, 4), np.uint8)])
def test_another_shape_is_refused_with_the_right_one(portrait: NDArray[np.uint8] | None) -> None:
    with pytest.raises(ConfigError, match=r"it has to be an RGB picture of shape \(4, 2, 3\)"):
        portrait_tensor(portrait, height_px=4, width_px=2)
