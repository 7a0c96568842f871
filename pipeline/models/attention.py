"""Attention as the transformer uses it in three places: among frames, to text, and to audio.

Queries and keys are normalised over the full width, before they are split into heads, and rotated to their positions
after (`pipeline.models.rope`), where a position matters.

Shape letters: B batch, L queries, K keys, H heads, D width of a head, C full width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.rope import Rotation, rotate

__all__ = ["Attention", "KeysValues", "RMSNorm", "attend"]


class KeysValues(NamedTuple):
    """What queries attend to."""

    keys_BKHD: Tensor
    """Keys."""
    values_BKHD: Tensor
    """Values."""


class RMSNorm(nn.Module):
    """Root mean square norm: computed in float32, rounded to the input's dtype, then scaled.

    Args:
        dim: Width over which the mean is taken.
    """

    EPS = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension.

        Args:
            x: Input, any shape (..., dim).

        Returns:
            The normalised input, in its dtype.
        """
        return F.rms_norm(x.float(), self.weight.shape, eps=self.EPS).to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """The projections of one attention.

    Args:
        dim: Full width.
        num_heads: Number of heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)

    def project(self, x_BLC: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, KeysValues]:
        """Project tokens that attend to each other.

        Args:
            x_BLC: Tokens.
            rotation: Their positions; None: nothing is rotated yet.

        Returns:
            Queries, and keys and values, each (B, L, H, D).
        """
        queries_BLHD, source = self.queries(x_BLC), self.keys_values(x_BLC)
        if rotation is None:
            return queries_BLHD, source
        return rotate(queries_BLHD, rotation), source._replace(keys_BKHD=rotate(source.keys_BKHD, rotation))

    def queries(self, x_BLC: Tensor) -> Tensor:
        """Project tokens to queries.

        Args:
            x_BLC: Tokens.

        Returns:
            Queries, (B, L, H, D).
        """
        return self._split(self.norm_q(self.q(x_BLC)))

    def keys_values(self, x_BKC: Tensor) -> KeysValues:
        """Project tokens to keys and values.

        Args:
            x_BKC: Tokens.

        Returns:
            Keys and values, each (B, K, H, D).
        """
        return KeysValues(self._split(self.norm_k(self.k(x_BKC))), self._split(self.v(x_BKC)))

    def read(self, queries_BLHD: Tensor, source: KeysValues) -> Tensor:
        """Attend and project back.

        Args:
            queries_BLHD: Queries.
            source: What they attend to.

        Returns:
            Tokens, (B, L, C).
        """
        return self.output(attend(queries_BLHD, source))

    def output(self, attended_BLHD: Tensor) -> Tensor:
        """Join the heads and project back.

        Args:
            attended_BLHD: What `attend` gave.

        Returns:
            Tokens, (B, L, C).
        """
        return self.o(attended_BLHD.flatten(-2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads


def attend(queries_BLHD: Tensor, source: KeysValues) -> Tensor:
    """Softmax attention without a mask: callers hand over exactly what may be seen.

    Args:
        queries_BLHD: Queries.
        source: Keys and values.

    Returns:
        One mixture of values per query, (B, L, H, D).
    """
    mixed_BHLD = F.scaled_dot_product_attention(
        queries_BLHD.transpose(1, 2), source.keys_BKHD.transpose(1, 2), source.values_BKHD.transpose(1, 2)
    )
    return mixed_BHLD.transpose(1, 2)
