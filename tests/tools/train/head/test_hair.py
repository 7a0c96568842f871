"""Tests of the hair: where it grows and where it must not hang."""

import numpy as np
import pytest

from tools.train.head.hair import STYLES, grow, hairline_heights, sample_style
from tools.train.head.mesh import load_head

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", [name for name in STYLES if name != "bald"])
def test_every_style_grows_finite_strands_that_leave_the_face_free(name: str) -> None:
    style = sample_style(name, np.random.default_rng(1))
    strands = grow(style, load_head().base, np.random.default_rng(2))
    assert strands is not None
    assert len(strands.points) > 2000
    assert np.isfinite(strands.points).all()
    np.testing.assert_allclose(np.linalg.norm(strands.tangents, axis=-1), 1, atol=1e-2)
    x, y, z = np.moveaxis(strands.points, -1, 0)
    on_eyes = (np.abs(x) < 0.45) & (y > 6.9) & (y < 7.40) & (z > 1.0)
    assert not on_eyes.any()


def test_a_bald_head_has_no_strands() -> None:
    rng = np.random.default_rng(1)
    assert grow(sample_style("bald", rng), load_head().base, rng) is None


def test_the_same_seed_grows_the_same_hair() -> None:
    style = sample_style("long", np.random.default_rng(5))
    one, two = (grow(style, load_head().base, np.random.default_rng(6)) for _ in range(2))
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.points, two.points)


def test_a_receding_hairline_lies_higher_at_the_temples() -> None:
    young = hairline_heights(sample_style("crop", np.random.default_rng(3)))
    receded = hairline_heights(sample_style("crop", np.random.default_rng(3), receding=1.0))
    assert (receded[:4] > young[:4]).all()
    np.testing.assert_array_equal(receded[4:], young[4:])


def test_an_unknown_style_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'mullet'.*afro"):
        sample_style("mullet", np.random.default_rng(0))
