"""The pool of clips: filled in order, held-out people kept for good, others replaced."""

from __future__ import annotations

import pytest
import torch

from tests.fakes.farm import FakeFarm
from tools.train.farm import ClipPool, ClipShape

pytestmark = pytest.mark.unit

SHAPE = ClipShape(num_frames=12, height_px=4, width_px=2)


def make_pool(farm: FakeFarm, capacity: int = 4) -> ClipPool:
    return ClipPool.empty(farm, capacity=capacity, num_held_out=2, device="cpu")


def offer(farm: FakeFarm, count: int) -> None:
    for slot in range(count):
        farm.make(slot)


def test_clips_come_with_all_their_parts_and_the_slots_are_free_again() -> None:
    farm = FakeFarm(SHAPE, 3)
    pool = make_pool(farm)
    offer(farm, 3)
    assert pool.refill() == [0, 1, 2]
    assert (pool.size, pool.taken, farm.filled().size) == (3, 3, 0)
    for part in (pool.frames, pool.motion, pool.visemes, pool.landmarks, pool.audio):
        assert [float(clip.float().mean()) for clip in part[:3]] == [0, 1, 2]
    assert pool.frames.shape == (4, 13, 4, 2, 3)
    assert (pool.frames.dtype, pool.audio.dtype) == (torch.uint8, torch.int64)


def test_a_limit_leaves_the_rest_for_later() -> None:
    farm = FakeFarm(SHAPE, 3)
    pool = make_pool(farm)
    offer(farm, 3)
    assert pool.refill(2) == [0, 1]
    assert pool.refill(2) == [2]
    assert pool.refill(2) == []


def test_a_full_pool_replaces_any_but_the_held_out() -> None:
    farm = FakeFarm(SHAPE, 4)
    pool = make_pool(farm)
    offer(farm, 4)
    pool.refill()
    places = []
    for _ in range(20):
        offer(farm, 1)
        places += pool.refill()
        assert int(pool.motion[places[-1], 0, 0]) == farm.num_made - 1
    assert set(places) == {2, 3}
    assert [int(pool.motion[k, 0, 0]) for k in range(2)] == [0, 1]
    assert (pool.size, pool.taken) == (4, 24)


def test_pictures_are_looked_up_by_clip_and_frame() -> None:
    farm = FakeFarm(SHAPE, 2)
    pool = make_pool(farm)
    offer(farm, 2)
    pool.refill()
    pool.frames[1, 5, 3, 1] = torch.tensor([255, 0, 51], dtype=torch.uint8)
    pictures = pool.pictures(torch.tensor([[0], [1]]), torch.tensor([4, 5]))
    assert pictures.shape == (2, 2, 3, 4, 2)
    torch.testing.assert_close(pictures[1, 1, :, 3, 1], torch.tensor([1.0, -1.0, -0.6]))
    assert bool((pictures[0] == -1).all())


def test_waiting_for_clips_that_do_not_come_ends() -> None:
    farm = FakeFarm(SHAPE, 2)
    pool = make_pool(farm)
    offer(farm, 2)
    pool.wait_for(2, deadline_s=60)
    with pytest.raises(TimeoutError, match="2 of 3 clips after 0 s"):
        pool.wait_for(3, deadline_s=0)
