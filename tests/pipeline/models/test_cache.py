"""The cache: one buffer per step and layer, no growth, no holes."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.attention import KeysValues
from pipeline.models.cache import KVCache
from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B
from pipeline.models.rope import make_rotation, rotate

pytestmark = pytest.mark.numerics

CONFIG: DiTConfig = dataclasses.replace(
    PUBLISHED_14B,
    dim=16,
    num_heads=2,
    num_layers=2,
    audio_inject_layers=(0,),
    has_motion_packer=False,
    ring_latent_frames=9,
)
ROWS, COLUMNS, N = 2, 3, 6
CPU = torch.device("cpu")
Draw = Callable[[str, tuple[int, ...]], Tensor]


@pytest.fixture
def cache() -> KVCache:
    """Two steps, two layers, a sink of six tokens and a ring of three blocks."""
    return KVCache(
        CONFIG, token_rows=ROWS, token_columns=COLUMNS, num_steps=2, batch=1, dtype=torch.float32, device=CPU
    )


def pair(draw: Draw, name: str, tokens: int) -> KeysValues:
    return KeysValues(draw(f"{name}.k", (1, tokens, 2, 8)), draw(f"{name}.v", (1, tokens, 2, 8)))


def write(cache: KVCache, draw: Draw, first: int, *, step: int = 0, layer: int = 0) -> KeysValues:
    slot = cache.open_block(step, first)
    return cache.extend(step, layer, slot, pair(draw, f"block{first}", 3 * N))


def test_attention_reads_the_sink_and_the_filled_part_of_the_ring(cache: KVCache, draw: Draw) -> None:
    sink = pair(draw, "sink", N)
    cache.set_sink([sink, sink], None)
    cache.place_reference(30)
    seen = [write(cache, draw, first) for first in (0, 3, 6, 9)]
    assert [part.keys_BKHD.shape[1] for part in seen] == [N + 3 * N, N + 6 * N, N + 9 * N, N + 9 * N]
    rotation = make_rotation([30], range(ROWS), range(COLUMNS), head_dim=8, device=CPU)
    assert torch.equal(seen[0].keys_BKHD[:, :N], rotate(sink.keys_BKHD, rotation))
    assert torch.equal(seen[0].values_BKHD[:, :N], sink.values_BKHD)


def test_a_new_block_takes_the_place_of_the_oldest(cache: KVCache, draw: Draw) -> None:
    for first in (0, 3, 6):
        write(cache, draw, first)
    keys, values = write(cache, draw, 9)
    for place, first in enumerate((9, 3, 6)):
        span = slice(N + 3 * N * place, N + 3 * N * (place + 1))
        assert torch.equal(keys[:, span], pair(draw, f"block{first}", 3 * N).keys_BKHD)
        assert torch.equal(values[:, span], pair(draw, f"block{first}", 3 * N).values_BKHD)


def test_nothing_is_copied_or_grown(cache: KVCache, draw: Draw) -> None:
    """What attention reads is always a view of the same memory."""
    seen = [write(cache, draw, first) for first in range(0, 30, 3)]
    assert len({part.keys_BKHD.data_ptr() for part in seen}) == 1
    assert len({part.values_BKHD.data_ptr() for part in seen}) == 1
    assert cache.num_bytes == 4 * (2 * 2 * 2 * (N + 9 * N) * 16 + 2 * N * 16)


def test_steps_and_layers_have_rings_of_their_own(cache: KVCache, draw: Draw) -> None:
    write(cache, draw, 0)
    for step, layer in [(0, 1), (1, 0), (1, 1)]:
        slot = cache.open_block(step, 0)
        zeros = KeysValues(torch.zeros(1, 3 * N, 2, 8), torch.zeros(1, 3 * N, 2, 8))
        assert not cache.extend(step, layer, slot, zeros).keys_BKHD[:, N:].any()
    slot = cache.open_block(0, 3)
    kept = cache.extend(0, 0, slot, pair(draw, "next", 3 * N)).keys_BKHD[:, N : 4 * N]
    assert torch.equal(kept, pair(draw, "block0", 3 * N).keys_BKHD)


def test_the_reference_moves_in_all_steps_and_layers(cache: KVCache, draw: Draw) -> None:
    sink = pair(draw, "sink", N)
    cache.set_sink([sink, sink], None)
    for position in (30, 1_000_000):
        cache.place_reference(position)
        rotation = make_rotation([position], range(ROWS), range(COLUMNS), head_dim=8, device=CPU)
        for step in range(2):
            for layer in range(2):
                keys = write(cache, draw, 0, step=step, layer=layer).keys_BKHD
                assert torch.equal(keys[:, :N], rotate(sink.keys_BKHD, rotation))


def test_a_new_sink_is_placed_again_even_at_the_same_position(cache: KVCache, draw: Draw) -> None:
    old, new = pair(draw, "old", N), pair(draw, "new", N)
    rotation = make_rotation([30], range(ROWS), range(COLUMNS), head_dim=8, device=CPU)
    for sink in (old, new):
        cache.set_sink([sink, sink], None)
        cache.place_reference(30)
        assert torch.equal(write(cache, draw, 0).keys_BKHD[:, :N], rotate(sink.keys_BKHD, rotation))


def test_a_skipped_step_receives_the_block_of_another(cache: KVCache, draw: Draw) -> None:
    for layer in range(2):
        write(cache, draw, 0, layer=layer)
    cache.copy_block(0, 1, 0)
    for layer in range(2):
        slot = cache.open_block(1, 3)
        seen = cache.extend(1, layer, slot, pair(draw, "next", 3 * N))
        assert torch.equal(seen.keys_BKHD[:, N : 4 * N], pair(draw, "block0", 3 * N).keys_BKHD)
        assert torch.equal(seen.values_BKHD[:, N : 4 * N], pair(draw, "block0", 3 * N).values_BKHD)


def test_a_hole_in_the_ring_is_refused(cache: KVCache, draw: Draw) -> None:
    with pytest.raises(ValueError, match="latent frame 3 has place 3 in ring 0, but only 0 are filled"):
        cache.open_block(0, 3)
    write(cache, draw, 0)
    with pytest.raises(ValueError, match="latent frame 6"):
        cache.open_block(0, 6)


def test_a_block_off_the_grid_is_refused(cache: KVCache) -> None:
    with pytest.raises(ValueError, match="first_latent_frame is 4, but it has to be a multiple of 3"):
        cache.open_block(0, 4)


def test_a_cleared_ring_starts_again(cache: KVCache, draw: Draw) -> None:
    for first in (0, 3, 6, 9):
        write(cache, draw, first)
    cache.clear_rings()
    assert write(cache, draw, 0).keys_BKHD.shape[1] == N + 3 * N
    assert cache.num_steps == 2
    assert cache.batch == 1
