"""The sampler: seeded noise, Euler steps, and stopping early."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.geometry import VideoGeometry
from pipeline.models.cache import KVCache
from pipeline.models.dit import Conditioning, DiT
from pipeline.models.sampler import Noise, sample_block
from pipeline.schedule import Schedule, make_schedule

pytestmark = pytest.mark.numerics

GEOMETRY = VideoGeometry(height_px=128, width_px=128, vae_spatial_stride=16, latent_channels=8, patch=2)
SCHEDULE = make_schedule(4)
Draw = Callable[[str, tuple[int, ...]], Tensor]


@dataclasses.dataclass
class Run:
    """One stream of the tiny embedded model."""

    dit: DiT
    draw: Draw
    cache: KVCache

    @classmethod
    def start(cls, dit: DiT, draw: Draw) -> "Run":
        cache = dit.new_cache(
            latent_height=GEOMETRY.latent_height, latent_width=GEOMETRY.latent_width, num_steps=SCHEDULE.num_steps
        )
        dit.prefill(draw("reference", (1, 8, 8, 8)), cache)
        return cls(dit, draw, cache)

    def conditioning(self, block: int, schedule: Schedule = SCHEDULE) -> Conditioning:
        audio = self.dit.encode_audio(self.draw(f"columns{block}", (1, 1, 16, 12)))
        modulation = self.dit.modulate(schedule.timesteps, self.draw(f"motion{block}", (1, 3, 28)))
        return self.dit.condition(audio, modulation, 3 * block)

    def block(self, block: int, noise: Tensor, **options: int) -> Tensor:
        return sample_block(self.dit, noise, SCHEDULE, self.conditioning(block), self.cache, **options)  # type: ignore[arg-type]


def test_noise_is_drawn_per_clip_of_four_blocks_from_consecutive_seeds() -> None:
    """Block b of clip r has latent frames 3b..3b+2 of a draw of 12 seeded with seed + r."""
    noise = Noise(GEOMETRY, seed=7)
    blocks = [noise.next_block() for _ in range(5)]
    for clip, numbers in enumerate([range(4), range(4, 5)]):
        drawn = torch.randn(8, 12, 8, 8, generator=torch.Generator().manual_seed(7 + clip))
        for place, number in enumerate(numbers):
            assert torch.equal(blocks[number][0], drawn[:, 3 * place : 3 * place + 3])


def test_other_seeds_give_other_noise() -> None:
    assert not torch.equal(Noise(GEOMETRY, seed=7).next_block(), Noise(GEOMETRY, seed=8).next_block())


def test_the_same_seed_gives_the_same_latents_bit_for_bit(tiny_embedded: DiT, draw: Draw) -> None:
    runs = []
    for _ in range(2):
        run, noise = Run.start(tiny_embedded, draw), Noise(GEOMETRY, seed=3)
        runs.append(torch.cat([run.block(block, noise.next_block()) for block in range(5)]))
    assert torch.equal(*runs)


def test_the_steps_are_euler_steps_on_rings_of_their_own(tiny_embedded: DiT, draw: Draw) -> None:
    """The same blocks with one cache per step, which cannot mix, and the steps written out."""
    run, noise = Run.start(tiny_embedded, draw), Noise(GEOMETRY, seed=3)
    rings = [Run.start(tiny_embedded, draw).cache for _ in range(4)]
    for block in range(5):
        start = noise.next_block()
        latents, conditioning = start, run.conditioning(block)
        for step, ring in enumerate(rings):
            velocity = tiny_embedded.denoise(latents, step, conditioning, ring)
            latents = latents + (SCHEDULE.sigmas[step + 1] - SCHEDULE.sigmas[step]) * velocity
        assert torch.allclose(run.block(block, start), latents, atol=1e-5)


def test_a_late_block_is_the_clean_estimate_of_the_last_step_that_ran(tiny_embedded: DiT, draw: Draw) -> None:
    start = Noise(GEOMETRY, seed=3).next_block()
    run = Run.start(tiny_embedded, draw)
    velocity = tiny_embedded.denoise(start, 0, run.conditioning(0), Run.start(tiny_embedded, draw).cache)
    expected = start - SCHEDULE.sigmas[0] * velocity
    assert torch.allclose(run.block(0, start, max_steps=1), expected, atol=1e-6)


def test_a_stream_goes_on_after_late_blocks(tiny_embedded: DiT, draw: Draw) -> None:
    """The skipped steps' rings hold the late blocks too: the next full block runs, and differs from one that had no
    late blocks before it.
    """
    outcomes = []
    for max_steps in (2, 4):
        run, noise = Run.start(tiny_embedded, draw), Noise(GEOMETRY, seed=3)
        for block in range(4):
            run.block(block, noise.next_block(), max_steps=max_steps)
        outcomes.append(run.block(4, noise.next_block()))
    assert torch.isfinite(outcomes[0]).all()
    assert not torch.equal(*outcomes)


def test_every_step_that_ran_is_reported(tiny_embedded: DiT, draw: Draw) -> None:
    run, noise = Run.start(tiny_embedded, draw), Noise(GEOMETRY, seed=3)
    counts = []
    for block, max_steps in enumerate([4, 2, 9]):
        ended: list[None] = []
        sample_block(
            tiny_embedded,
            noise.next_block(),
            SCHEDULE,
            run.conditioning(block),
            run.cache,
            max_steps=max_steps,
            on_step=lambda ended=ended: ended.append(None),
        )
        counts.append(len(ended))
    assert counts == [4, 2, 4]


def test_the_latents_have_the_dtype_of_the_network(tiny_embedded: DiT, draw: Draw) -> None:
    dit = DiT(tiny_embedded.config).to(torch.bfloat16).requires_grad_(False)
    run = Run.start(dit, lambda name, shape: draw(name, shape).bfloat16())
    assert run.block(0, Noise(GEOMETRY, seed=3).next_block()).dtype == torch.bfloat16


def test_less_than_one_step_is_refused(tiny_embedded: DiT, draw: Draw) -> None:
    run = Run.start(tiny_embedded, draw)
    with pytest.raises(ValueError, match="max_steps is 0, but at least one step has to run"):
        run.block(0, Noise(GEOMETRY, seed=3).next_block(), max_steps=0)


def test_a_cache_for_another_number_of_steps_is_refused(tiny_embedded: DiT, draw: Draw) -> None:
    run, schedule = Run.start(tiny_embedded, draw), make_schedule(3)
    noise = Noise(GEOMETRY, seed=3).next_block()
    with pytest.raises(ValueError, match="the cache has 4 rings, but the schedule has 3 steps"):
        sample_block(tiny_embedded, noise, schedule, run.conditioning(0, schedule), run.cache)
