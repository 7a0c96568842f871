"""Past latents as a few tokens of the sink: the nearer the past, the finer the patches.

The newest latent frame gives one token per patch; the two before it share patches of two frames and twice the side;
the sixteen before those, patches of four frames and four times the side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.rope import Rotation, make_rotation

__all__ = ["MotionPacker", "PatchEmbedding"]


class PatchEmbedding(nn.Conv3d):
    """A linear map of every patch of latents to one token.

    It holds the parameters of a convolution whose stride is its kernel, and runs as one matrix product.

    Args:
        latent_channels: Channels of the latents.
        dim: Width of a token.
        patch: Size of a patch: (latent frames, rows, columns).
    """

    def __init__(self, latent_channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(latent_channels, dim, kernel_size=patch, stride=patch)

    def forward(self, latents_BCTHW: Tensor) -> Tensor:
        """Embed latents.

        Args:
            latents_BCTHW: Latents; each side a multiple of the patch.

        Returns:
            Tokens in (frame, row, column) order, (B, L, dim).
        """
        batch, channels, *sides = latents_BCTHW.shape
        cells = [part for side, step in zip(sides, self.kernel_size, strict=True) for part in (side // step, step)]
        patches = latents_BCTHW.reshape(batch, channels, *cells).permute(0, 2, 4, 6, 1, 3, 5, 7)
        flat = patches.reshape(batch, -1, self.weight[0].numel()).to(self.weight.dtype)
        return F.linear(flat, self.weight.flatten(1), self.bias)


class _Bucket(NamedTuple):
    """One of the packer's resolutions."""

    num_latent_frames: int
    patch_latent_frames: int
    scale: int
    """Side of a patch, in patches of the newest frame."""
    positions: tuple[int, ...]
    """Temporal positions of its tokens: fixed, before the first latent frame."""


_BUCKETS = (
    _Bucket(1, 1, 1, (-1,)),
    _Bucket(2, 2, 2, (-3,)),
    _Bucket(16, 4, 4, (-19, -14, -9, -4)),
)


class MotionPacker(nn.Module):
    """Turns past latents into sink tokens, newest first.

    Args:
        latent_channels: Channels of the latents.
        dim: Width of a token.
        patch: Latent positions per token of the newest frame, in each direction.
    """

    NUM_LATENT_FRAMES = sum(bucket.num_latent_frames for bucket in _BUCKETS)

    def __init__(self, latent_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj, self.proj_2x, self.proj_4x = (
            PatchEmbedding(
                latent_channels,
                dim,
                (bucket.patch_latent_frames, patch * bucket.scale, patch * bucket.scale),
            )
            for bucket in _BUCKETS
        )

    def forward(self, motion_BCTHW: Tensor) -> Tensor:
        """Pack past latents.

        Args:
            motion_BCTHW: Past latents, oldest first, any number: the last 19 count, and zeros stand for missing ones.

        Returns:
            Tokens, (B, 1.5 N, dim): newest frame, two frames, sixteen frames.
        """
        motion = motion_BCTHW[:, :, -self.NUM_LATENT_FRAMES :]
        motion = F.pad(motion, (0, 0, 0, 0, self.NUM_LATENT_FRAMES - motion.shape[2], 0))
        oldest, middle, newest = motion.split([bucket.num_latent_frames for bucket in reversed(_BUCKETS)], dim=2)
        return torch.cat([self.proj(newest), self.proj_2x(middle), self.proj_4x(oldest)], dim=1)

    @staticmethod
    def rotation(token_rows: int, token_columns: int, *, head_dim: int, device: torch.device) -> Rotation:
        """Compute the positions of the packed tokens, which never change.

        Args:
            token_rows: Rows of tokens of a latent frame.
            token_columns: Columns of tokens of a latent frame.
            head_dim: Width of a head.
            device: Where the factors are needed.

        Returns:
            Factors in the order of the tokens.
        """
        parts = [
            make_rotation(
                bucket.positions,
                _spread(token_rows, token_rows // bucket.scale),
                _spread(token_columns, token_columns // bucket.scale),
                head_dim=head_dim,
                device=device,
            )
            for bucket in _BUCKETS
        ]
        join: Callable[[tuple[Tensor, ...]], Tensor] = torch.cat
        return Rotation(*(join(factors) for factors in zip(*parts, strict=True)))


def _spread(grid: int, count: int) -> list[int]:
    """Spread `count` positions evenly from the first to the last of a grid, rounding down."""
    if count == 1:
        return [0]
    return [step * (grid - 1) // (count - 1) for step in range(count)]
