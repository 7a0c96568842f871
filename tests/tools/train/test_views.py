"""The clips at other picture sizes."""

from __future__ import annotations

import pytest
import torch

from tests.fakes.farm import FakeFarm
from tools.train.farm import ClipPool, ClipShape
from tools.train.views import ClipView

pytestmark = pytest.mark.unit


@pytest.fixture
def pool() -> ClipPool:
    """One clip; its left half is white, its landmarks are on the border."""
    farm = FakeFarm(ClipShape(num_frames=12, height_px=32, width_px=64), 1)
    pool = ClipPool.empty(farm, capacity=1, num_held_out=0, device="cpu")
    farm.make(0)
    pool.refill()
    pool.frames[..., :32, :] = 255
    pool.landmarks[:] = torch.tensor([32.0, 16.0])
    return pool


def test_the_full_size_is_the_pool_itself(pool: ClipPool) -> None:
    clip, frame = torch.tensor([0, 0]), torch.tensor([1, 5])
    assert torch.equal(ClipView(pool).pictures(clip, frame), pool.pictures(clip, frame))
    assert torch.equal(ClipView(pool).landmarks(clip, frame), pool.landmarks[clip, frame])


def test_a_smaller_size_shows_the_same_in_fewer_pixels(pool: ClipPool) -> None:
    view = ClipView(pool, 0.75)
    clip, frame = torch.zeros(2, 1, dtype=torch.long), torch.tensor([[1, 2, 3]])
    pictures = view.pictures(clip, frame)
    assert pictures.shape == (2, 3, 3, 24, 48) == (2, 3, 3, view.height_px, view.width_px)
    assert float(pictures[..., :22].min()) == 1
    assert float(pictures[..., 26:].max()) == -1
    assert view.landmarks(clip, frame)[0, 0, 0].tolist() == [24.0, 12.0]
