"""What the VAE is shown: sequences and their reference, mirrored and tinted alike, and points to look at closely."""

from __future__ import annotations

import pytest
import torch

from tests.fakes.farm import FakeFarm
from tools.train.farm import ClipPool, ClipShape
from tools.train.vae_stage import draw_crop_centres, draw_sequences
from tools.train.views import ClipView

pytestmark = pytest.mark.numerics

HEIGHT, WIDTH = 16, 32


@pytest.fixture
def pool() -> ClipPool:
    """Three clips; each frame holds its clip's number, and a white column where all its landmarks are."""
    farm = FakeFarm(ClipShape(num_frames=24, height_px=HEIGHT, width_px=WIDTH), 3)
    pool = ClipPool.empty(farm, capacity=3, num_held_out=1, device="cpu")
    for slot in range(3):
        farm.make(slot)
    pool.refill()
    pool.frames[:] = 40 * torch.arange(3, dtype=torch.uint8)[:, None, None, None, None]
    for clip in range(3):
        for frame in range(25):
            column = (frame + 2 * clip) % WIDTH
            pool.frames[clip, frame, :, column] = 255
            pool.landmarks[clip, frame] = torch.tensor([column + 0.5, 8.0])
    return pool


def test_landmarks_stay_on_what_they_mark_mirrored_or_not(pool: ClipPool) -> None:
    torch.manual_seed(0)
    batch = draw_sequences(ClipView(pool), 32)
    assert batch.frames.shape == (32, 12, 3, HEIGHT, WIDTH)
    assert batch.reference.shape == (32, 3, HEIGHT, WIDTH)
    bright = batch.frames.mean((2, 3)).argmax(-1) + 0.5
    torch.testing.assert_close(batch.landmarks[:, :, 0, 0], bright)
    direction = batch.landmarks[:, 1, 0, 0] - batch.landmarks[:, 0, 0, 0]
    assert {-1.0, 1.0} <= set(direction.tolist()), "some are mirrored and some are not"


def test_held_out_people_are_not_drawn_and_references_are_of_the_same_person(pool: ClipPool) -> None:
    """Colours are jittered alike, so the darkest pixel of sequence and reference is the same."""
    torch.manual_seed(1)
    pool.frames[0] = 200
    batch = draw_sequences(ClipView(pool), 64)
    low, reference = batch.frames.amin((1, 3, 4)), batch.reference.amin((2, 3))
    torch.testing.assert_close(low, reference)
    assert float(low.max()) < 0.2, "the held-out clip is brighter"


def test_poses_count_from_the_reference_and_turn_round_in_a_mirror(pool: ClipPool) -> None:
    """Yaw and blink of each frame are its number; of the reference that begins a clip both are 0."""
    torch.manual_seed(0)
    pool.motion[:] = 0
    pool.motion[..., 0] = torch.arange(1.0, 25.0)
    pool.motion[..., 3] = torch.arange(1.0, 25.0) / 100
    batch = draw_sequences(ClipView(pool), 64)
    yaw, frame = batch.motion[..., 0], batch.motion[..., 3] * 100
    mirrored = yaw[:, 1] < yaw[:, 0]
    assert 10 < int(mirrored.sum()) < 54
    reference = frame - torch.where(mirrored[:, None], -yaw, yaw)
    torch.testing.assert_close(reference, reference[:, :1].expand_as(reference), atol=1e-4, rtol=0)
    rounded = reference[:, 0].round()
    assert int((rounded == 0).sum()) > 32, "most portraits begin the clip"
    assert int((rounded > 0).sum()) > 4


def test_blinks_are_drawn_more_often_than_they_are(pool: ClipPool) -> None:
    torch.manual_seed(0)
    pool.motion[:] = 0
    pool.motion[:, 23, 3] = 1
    shares = float((draw_sequences(ClipView(pool), 400).motion[..., 3].amax(1) > 0).float().mean())
    assert 0.1 < shares < 0.3, "one place of 13 reaches the blink"


def test_half_of_the_crops_are_at_the_mouth() -> None:
    torch.manual_seed(0)
    marks = torch.zeros(400, 12, 6, 2)
    marks[..., :4, :] = torch.tensor([100.0, 300.0])
    marks[..., 4:6, :] = torch.tensor([100.0, 100.0])
    chosen, centre = draw_crop_centres(marks, 1000, 2000)
    assert chosen.shape == (400, 3)
    assert centre.shape == (1200, 2)
    assert set(chosen.unique().tolist()) == set(range(1, 11)), "each has a frame before and after it"
    near = [
        float(((centre - torch.tensor(at)).norm(dim=1) < 40).float().mean()) for at in ((100.0, 300.0), (100.0, 100.0))
    ]
    assert near == pytest.approx([0.5, 0.32], abs=0.06)
