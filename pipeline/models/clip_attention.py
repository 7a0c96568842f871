"""Attention over a whole clip at once that sees exactly what streaming sees.

A block attends to the sink, to itself, and to the blocks before it as far as the ring reaches. The blocks whose ring is
full all see the same number of keys, so they are one unmasked attention with the blocks as batch; the few before them
are one attention each. No mask is ever formed.

Shape letters: B batch, G blocks, L tokens of a block, K keys, H heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.attention import KeysValues, attend

__all__ = ["attend_clip"]


def attend_clip(queries_BGLHD: Tensor, video: KeysValues, sink: KeysValues, *, ring_blocks: int) -> Tensor:
    """Attend, for every block of a clip.

    Args:
        queries_BGLHD: Queries.
        video: Keys and values of the clip's tokens, (B, G, L, H, D).
        sink: Keys and values of the sink as each block sees them, (B, G, K, H, D).
        ring_blocks: Blocks in the ring, the current one included.

    Returns:
        One mixture of values per query, (B, G, L, H, D).
    """
    num_blocks = queries_BGLHD.shape[1]
    first_full = min(ring_blocks - 1, num_blocks)
    parts = []
    for block in range(first_full):
        source = KeysValues(
            *(
                torch.cat([of_sink[:, block], of_video[:, : block + 1].flatten(1, 2)], dim=1)
                for of_sink, of_video in zip(sink, video, strict=True)
            )
        )
        parts.append(attend(queries_BGLHD[:, block], source)[:, None])
    if first_full < num_blocks:
        source = KeysValues(
            *(
                _windows(of_sink[:, first_full:], of_video, ring_blocks)
                for of_sink, of_video in zip(sink, video, strict=True)
            )
        )
        attended = attend(queries_BGLHD[:, first_full:].flatten(0, 1), source)
        parts.append(attended.unflatten(0, (-1, num_blocks - first_full)))
    return torch.cat(parts, dim=1)


def _windows(sink_BGKHD: Tensor, video_BGLHD: Tensor, ring_blocks: int) -> Tensor:
    """Put the sink and the `ring_blocks` blocks up to each block side by side: (B * G, K + ring, H, D)."""
    num_windows = sink_BGKHD.shape[1]
    shifted = [video_BGLHD[:, first : first + num_windows] for first in range(ring_blocks)]
    return torch.cat([sink_BGKHD, *shifted], dim=2).flatten(0, 1)
