"""Rotary positions in time, rows and columns, computed for whatever position is asked for.

The width of a head is shared out to the three axes, time first, and adjacent pairs of features are rotated. Angles are
formed in float64; their cosines and sines are rounded to float16, as the published model's are.

Shape letters: L tokens, H heads, D width of a head, P = D / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rotation", "make_rotation", "rotate"]

_THETA = 10_000.0


class Rotation(NamedTuple):
    """Factors that rotate tokens to their positions."""

    cos_L1P: Tensor
    """Cosines, float32."""
    sin_L1P: Tensor
    """Sines, float32."""


def make_rotation(
    frames: Sequence[int] | Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    head_dim: int,
    device: torch.device,
) -> Rotation:
    """Compute the factors of a grid of tokens.

    Args:
        frames: Temporal positions; any integers, or a tensor of them on the device, which is never read by the host.
        rows: Vertical positions.
        columns: Horizontal positions.
        head_dim: Width of a head.
        device: Where the factors are needed.

    Returns:
        Factors in (frame, row, column) order, L = frames x rows x columns. Those of recent grids are kept: steps and
        streams ask for the same ones, and a CUDA graph cannot fetch them from the host.
    """
    if isinstance(frames, Tensor):
        return _make_rotation(frames, tuple(rows), tuple(columns), head_dim, device)
    return _keep_rotation(tuple(frames), tuple(rows), tuple(columns), head_dim, device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _keep_rotation(
    frames: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...], head_dim: int, device: torch.device
) -> Rotation:
    return _make_rotation(torch.tensor(frames, device=device), rows, columns, head_dim, device)


def _make_rotation(
    frames: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], head_dim: int, device: torch.device
) -> Rotation:
    space_dim = 2 * (head_dim // 6)
    angles_fp = _angles(frames, head_dim - 2 * space_dim)
    angles_rp, angles_cp = _grid_angles(rows, columns, space_dim, device)
    shape = (len(angles_fp), len(rows), len(columns), -1)
    angles_L1P = torch.cat(
        [
            angles_fp[:, None, None].expand(shape),
            angles_rp[None, :, None].expand(shape),
            angles_cp[None, None].expand(shape),
        ],
        dim=-1,
    ).reshape(-1, 1, head_dim // 2)
    return Rotation(angles_L1P.cos().half().float(), angles_L1P.sin().half().float())


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _grid_angles(
    rows: tuple[int, ...], columns: tuple[int, ...], space_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    rows_R, columns_C = torch.tensor(rows, device=device), torch.tensor(columns, device=device)
    return _angles(rows_R, space_dim), _angles(columns_C, space_dim)


def rotate(x_BLHD: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys to their positions.

    Args:
        x_BLHD: Queries or keys; leading dimensions are free.
        rotation: Factors of the L tokens.

    Returns:
        The rotated tensor, in the dtype of the input; computed in float32.
    """
    pairs = x_BLHD.float().unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():  # one operation instead of seven, but compilers cannot fuse complex numbers
        turned = torch.view_as_complex(pairs) * torch.complex(*rotation)
        return torch.view_as_real(turned).flatten(-2).to(x_BLHD.dtype)
    even, odd = pairs.unbind(-1)
    cos, sin = rotation
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_BLHD.dtype)


def _angles(positions: Tensor, axis_dim: int) -> Tensor:
    """Angles of one axis: float64, (positions, axis_dim / 2)."""
    exponents = torch.arange(0, axis_dim, 2, dtype=torch.float64, device=positions.device) / axis_dim
    return positions.double()[:, None] * _THETA**-exponents
