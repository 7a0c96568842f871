"""From noise to the clean latents of one block: the Euler steps of the schedule, each on its own ring.

Shape letters: B batch, C channels, T latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.geometry import BLOCKS_PER_CLIP, VideoGeometry
from pipeline.models.cache import KVCache
from pipeline.models.dit import Conditioning, DiT
from pipeline.schedule import Schedule

__all__ = ["Noise", "sample_block"]


class Noise:
    """The noise of a stream, drawn clip by clip: clip r comes from a generator seeded with `seed + r`.

    The values depend on the seed, the device and the dtype only, not on what was drawn before.

    Args:
        geometry: Sizes of the latents.
        seed: Seed of the stream.
        device: Where the noise is drawn; generators of different kinds of devices differ.
        dtype: In which it is drawn.
    """

    def __init__(
        self,
        geometry: VideoGeometry,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._block_shape = geometry.block_shape
        self._seed = seed
        self._device = torch.device(device)
        self._dtype = dtype
        self._next_block = 0
        self._clip_CTHW = torch.empty(0)

    def next_block(self) -> Tensor:
        """Give the noise of the next block.

        Returns:
            Standard normal noise, (1, C, T, H, W).
        """
        clip, place = divmod(self._next_block, BLOCKS_PER_CLIP)
        channels, num_latent_frames, height, width = self._block_shape
        if place == 0:
            generator = torch.Generator(self._device).manual_seed(self._seed + clip)
            shape = (channels, BLOCKS_PER_CLIP * num_latent_frames, height, width)
            self._clip_CTHW = torch.randn(shape, generator=generator, device=self._device, dtype=self._dtype)
        self._next_block += 1
        return self._clip_CTHW[None, :, place * num_latent_frames : (place + 1) * num_latent_frames]


def sample_block(
    dit: DiT,
    noise_BCTHW: Tensor,
    schedule: Schedule,
    conditioning: Conditioning,
    cache: KVCache,
    *,
    max_steps: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Denoise one block.

    Late streams may stop early: the result is then the estimate of the clean latents after the last step that ran, and
    the rings of the skipped steps receive its keys and values, the nearest there are to those they would hold.

    Args:
        dit: The network.
        noise_BCTHW: Where the block starts.
        schedule: Noise levels; as many steps as the cache has rings.
        conditioning: Of this block.
        cache: Memory of the stream; moves on by one block.
        max_steps: Steps that may run; None: all.
        on_step: Called after every step that ran.

    Returns:
        Clean latents, shaped as the noise, in the compute dtype.

    Raises:
        ValueError: `max_steps` is less than 1, or the cache has another number of rings than the schedule has steps.
    """
    if cache.num_steps != schedule.num_steps:
        raise ValueError(f"the cache has {cache.num_steps} rings, but the schedule has {schedule.num_steps} steps")
    num_steps = schedule.num_steps if max_steps is None else min(max_steps, schedule.num_steps)
    if num_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, but at least one step has to run")
    latents_BCTHW = noise_BCTHW.to(dit.device, dit.dtype)
    for step in range(num_steps):
        is_last = step == num_steps - 1
        sigma, next_sigma = schedule.sigmas[step], 0.0 if is_last else schedule.sigmas[step + 1]
        velocity_BCTHW = dit.denoise(latents_BCTHW, step, conditioning, cache)
        moved_BCTHW = latents_BCTHW.float() + (next_sigma - sigma) * velocity_BCTHW
        latents_BCTHW = moved_BCTHW.to(dit.dtype)
        if on_step is not None:
            on_step()
    for step in range(num_steps, schedule.num_steps):
        cache.copy_block(num_steps - 1, step, conditioning.first_latent_frame)
    return latents_BCTHW
