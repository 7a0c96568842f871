"""Attention over a clip: equal to one masked attention over all tokens."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.attention import KeysValues
from pipeline.models.clip_attention import attend_clip

pytestmark = pytest.mark.numerics

BATCH, LENGTH, SINK, HEADS, WIDTH = 2, 6, 4, 2, 8
Draw = Callable[[str, tuple[int, ...]], Tensor]


def masked(queries: Tensor, video: KeysValues, sink: KeysValues, ring_blocks: int) -> Tensor:
    """Every block's own sink and all video tokens as keys of one attention, with the rule as a mask."""
    num_blocks = queries.shape[1]
    keys, values = (
        torch.cat([of_sink.flatten(1, 2), of_video.flatten(1, 2)], dim=1)
        for of_sink, of_video in zip(sink, video, strict=True)
    )
    block_of_query = torch.arange(num_blocks).repeat_interleave(LENGTH)[:, None]
    sink_of_block = torch.arange(num_blocks).repeat_interleave(SINK)[None]
    age = block_of_query - torch.arange(num_blocks).repeat_interleave(LENGTH)[None]
    mask = torch.cat([block_of_query == sink_of_block, (age >= 0) & (age < ring_blocks)], dim=1)
    mixed = F.scaled_dot_product_attention(
        queries.flatten(1, 2).transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    return mixed.transpose(1, 2).unflatten(1, (num_blocks, LENGTH))


@pytest.mark.parametrize(("num_blocks", "ring_blocks"), [(1, 1), (1, 4), (3, 3), (5, 1), (6, 3), (3, 4)])
def test_it_equals_one_masked_attention(draw: Draw, num_blocks: int, ring_blocks: int) -> None:
    def tokens(name: str, length: int) -> Tensor:
        return draw(name, (BATCH, num_blocks, length, HEADS, WIDTH))

    queries = tokens("q", LENGTH)
    video = KeysValues(tokens("k", LENGTH), tokens("v", LENGTH))
    sink = KeysValues(tokens("sink k", SINK), tokens("sink v", SINK))
    actual = attend_clip(queries, video, sink, ring_blocks=ring_blocks)
    assert torch.allclose(actual, masked(queries, video, sink, ring_blocks), atol=1e-5)
