"""Rotary positions: axes, pairs, rounding, and any position."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.models.rope import Rotation, make_rotation, rotate

pytestmark = pytest.mark.numerics

CPU = torch.device("cpu")
Draw = Callable[[str, tuple[int, ...]], Tensor]


def one(position: tuple[int, int, int], head_dim: int = 128) -> Rotation:
    frame, row, column = position
    return make_rotation([frame], [row], [column], head_dim=head_dim, device=CPU)


@pytest.mark.parametrize("position", [(0, 0, 0), (7, 3, 5), (-19, 2, 0), (1_000_000, 43, 23)])
def test_angles_follow_the_axes_of_the_published_head(position: tuple[int, int, int]) -> None:
    """44 features turn with time, 42 with rows, 42 with columns, each axis with its own exponents."""
    expected = np.concatenate(
        [p * 10_000.0 ** (-2 * np.arange(dim // 2) / dim) for p, dim in zip(position, (44, 42, 42), strict=True)]
    )
    rotation = one(position)
    assert np.array_equal(rotation.cos_L1P[0, 0].numpy(), np.cos(expected).astype(np.float16).astype(np.float32))
    assert np.array_equal(rotation.sin_L1P[0, 0].numpy(), np.sin(expected).astype(np.float16).astype(np.float32))


def test_tokens_come_in_frame_row_column_order() -> None:
    grid = make_rotation([4, 5], [0, 1, 2], [0, 1], head_dim=32, device=CPU)
    positions = [(f, r, c) for f in (4, 5) for r in (0, 1, 2) for c in (0, 1)]
    for token, position in enumerate(positions):
        assert torch.equal(grid.cos_L1P[token], one(position, 32).cos_L1P[0])
        assert torch.equal(grid.sin_L1P[token], one(position, 32).sin_L1P[0])


def test_adjacent_features_are_rotated_as_pairs(draw: Draw) -> None:
    x = draw("x", (1, 1, 2, 8))
    cos, sin = torch.tensor([0.6, 1.0, 0.0, 0.8]), torch.tensor([0.8, 0.0, 1.0, 0.6])
    even, odd = x[..., 0::2], x[..., 1::2]
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    rotation = Rotation(cos.view(1, 1, 4), sin.view(1, 1, 4))
    assert torch.allclose(rotate(x, rotation), expected, atol=1e-6)


def test_compiled_and_eager_rotation_agree(draw: Draw) -> None:
    """Eagerly a complex product is used, compiled real ones."""
    x = draw("x", (2, 6, 4, 32))
    grid = make_rotation([9], [0, 1, 2], [0, 1], head_dim=32, device=CPU)
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, grid), rotate(x, grid), atol=1e-6)


def test_the_dtype_of_the_input_is_kept(draw: Draw) -> None:
    x = draw("x", (1, 1, 2, 32))
    rotated = rotate(x.bfloat16(), one((3, 0, 0), 32))
    assert rotated.dtype == torch.bfloat16
    assert torch.allclose(rotated.float(), rotate(x, one((3, 0, 0), 32)), atol=0.03)


def test_positions_may_come_as_a_tensor() -> None:
    listed = make_rotation([30, 42], [0, 1], [0], head_dim=32, device=CPU)
    given = make_rotation(torch.tensor([30, 42]), [0, 1], [0], head_dim=32, device=CPU)
    assert torch.equal(listed.cos_L1P, given.cos_L1P)
    assert torch.equal(listed.sin_L1P, given.sin_L1P)


def test_factors_made_for_inference_serve_training_too() -> None:
    """Factors are kept between calls, and tensors of inference mode cannot take part in gradients."""
    with torch.inference_mode():
        rotation = make_rotation([77], [0], [0], head_dim=32, device=CPU)
    assert not rotation.cos_L1P.is_inference()
    assert make_rotation([77], [0], [0], head_dim=32, device=CPU).cos_L1P is rotation.cos_L1P
