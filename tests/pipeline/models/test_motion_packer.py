"""The motion packer: buckets, order, and positions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.models.dit import DiT
from pipeline.models.motion_packer import MotionPacker, PatchEmbedding
from pipeline.models.rope import make_rotation

pytestmark = pytest.mark.numerics

CPU = torch.device("cpu")
Draw = Callable[[str, tuple[int, ...]], Tensor]


@pytest.fixture
def packer(tiny_published: DiT) -> MotionPacker:
    """16 channels to width 128."""
    return tiny_published.frame_packer


@pytest.mark.parametrize("patch", [(1, 2, 2), (4, 8, 8)])
def test_a_patch_embedding_is_a_convolution_whose_stride_is_its_kernel(draw: Draw, patch: tuple[int, int, int]) -> None:
    embedding = PatchEmbedding(16, 32, patch).requires_grad_(False)
    latents = draw("latents", (2, 16, 8, 16, 24))
    expected = nn.Conv3d.forward(embedding, latents).flatten(2).transpose(1, 2)
    assert torch.allclose(embedding(latents), expected, atol=1e-5)


def test_the_newest_frame_comes_first_and_the_oldest_sixteen_last(packer: MotionPacker, draw: Draw) -> None:
    motion = draw("motion", (1, 16, 19, 16, 24))
    tokens = packer(motion)
    assert tokens.shape == (1, 96 + 24 + 24, 128)
    for span, frames in [((0, 96), slice(18, 19)), ((96, 120), slice(16, 18)), ((120, 144), slice(0, 16))]:
        changed = motion.clone()
        changed[:, :, frames] = 0
        differs = (packer(changed) - tokens).abs().sum(-1)[0] > 0
        assert differs[span[0] : span[1]].all()
        assert int(differs.sum()) == span[1] - span[0]


def test_only_the_last_nineteen_frames_count(packer: MotionPacker, draw: Draw) -> None:
    motion = draw("motion", (1, 16, 25, 16, 24))
    assert torch.equal(packer(motion), packer(motion[:, :, 6:]))


def test_missing_frames_are_zeros_before_the_given_ones(packer: MotionPacker, draw: Draw) -> None:
    motion = draw("motion", (1, 16, 2, 16, 24))
    padded = torch.cat([torch.zeros(1, 16, 17, 16, 24), motion], dim=2)
    assert torch.equal(packer(motion), packer(padded))


def test_positions_lie_before_the_video_and_spread_over_the_grid(packer: MotionPacker) -> None:
    """Coarser tokens have rows and columns from the first to the last of the grid, rounded down, not strided ones."""
    rotation = packer.rotation(8, 12, head_dim=32, device=CPU)
    buckets = [([-1], 8, 12), ([-3], 4, 6), ([-19, -14, -9, -4], 2, 3)]
    expected = [
        make_rotation(
            frames,
            np.linspace(0, 7, rows).astype(int).tolist(),
            np.linspace(0, 11, columns).astype(int).tolist(),
            head_dim=32,
            device=CPU,
        )
        for frames, rows, columns in buckets
    ]
    assert torch.equal(rotation.cos_L1P, torch.cat([part.cos_L1P for part in expected]))
    assert torch.equal(rotation.sin_L1P, torch.cat([part.sin_L1P for part in expected]))


def test_the_smallest_grid_has_one_coarse_token_per_place(packer: MotionPacker) -> None:
    assert packer.rotation(4, 4, head_dim=32, device=CPU).cos_L1P.shape == (16 + 4 + 4, 1, 16)
