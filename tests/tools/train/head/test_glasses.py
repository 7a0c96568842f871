"""Tests of the glasses."""

import numpy as np
import pytest

from tools.train.head.glasses import sample_frame
from tools.train.head.mesh import EYE_CENTRE, load_head

pytestmark = pytest.mark.unit


def test_glasses_sit_before_the_eyes_and_reach_the_ears() -> None:
    for seed in range(5):
        frame = sample_frame(load_head().base, np.random.default_rng(seed))
        rims = frame.points[frame.points[:, 2] > 1.3]
        assert rims[:, 0].min() < -EYE_CENTRE[0] < EYE_CENTRE[0] < rims[:, 0].max()
        assert np.abs(rims[:, 1] - EYE_CENTRE[1]).max() < 0.3
        assert frame.points[:, 2].min() < 0.2
        assert np.abs(frame.points[:, 0]).max() < 0.95


def test_the_mesh_is_whole_and_its_normals_are_unit_vectors() -> None:
    frame = sample_frame(load_head().base, np.random.default_rng(0))
    np.testing.assert_array_equal(np.unique(frame.triangles), np.arange(len(frame.points)))
    np.testing.assert_allclose(np.linalg.norm(frame.normals, axis=1), 1, atol=1e-5)
