"""Tests of the baked occlusion."""

import numpy as np
import pytest

from tools.train.head.bake import bake
from tools.train.head.mesh import DATA, PART_BODY, load_head
from tools.train.head.renderer import Renderer

pytestmark = pytest.mark.contract


def test_hollows_see_less_sky_than_the_forehead(renderer: Renderer) -> None:
    assert renderer.device
    shares = {"baked now": bake(24), "shipped": np.load(DATA / "occlusion.npz")["occlusion"]}
    head = load_head()
    for name, share in shares.items():
        assert share.shape == (len(head.rest),), name
        skin = head.part == PART_BODY

        def near(x: float, y: float, z: float, share: np.ndarray = share, skin: np.ndarray = skin) -> float:
            distance = np.linalg.norm(head.rest - np.array([x, y, z]), axis=1)
            return float(share[np.where(skin, distance, np.inf).argmin()])

        forehead, socket, throat = near(0, 7.8, 1.3), near(0.12, 7.25, 1.3), near(0, 6.1, 0.8)
        assert forehead > 200, name
        assert socket < 0.85 * forehead, name
        assert throat < 0.85 * forehead, name
