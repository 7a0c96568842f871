"""Stage 2: the DiT by flow matching, under the inference protocol.

The four noise levels of the sampler, block-causal attention with the ring's window, the portrait as sink.
`DiT.forward_clip` computes a whole clip at one noise level in one masked pass, which equals streaming block by block
with that level's ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.dit_stage import DitStage
from tools.train.features import AudioBank
from tools.train.latents import LatentPool

__all__ = ["FlowSettings", "FlowStage"]

LEVEL_SHARES = (0.36, 0.30, 0.30, 0.04)
"""How often each of the sampler's noise levels is trained; the picture is decided in the first three."""
UNIFORM_SHARE = 0.12
"""Share of samples at a level drawn from everywhere between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """Numbers of the stage."""

    seconds: float
    batch: int = 64
    peak_rate: float = 9e-4
    max_steps: int = 10_000_000


class FlowStage(DitStage):
    """Trains the DiT to predict noise minus clean at the sampler's noise levels.

    Args:
        dit: Trained in place.
        average: Receives the moving average of the weights.
        latents: Training data, full size first.
        bank: Audio.
        vae: For validation.
        levels: The sampler's noise levels.
        settings: Numbers.
    """

    name = "dit"
    average_decay = 0.999
    log_every = 1000
    refills = True
    is_compiled = True

    def __init__(
        self,
        dit: DiT,
        average: DiT,
        latents: Sequence[LatentPool],
        bank: AudioBank,
        vae: EmbeddedVAE,
        levels: NoiseSchedule,
        settings: FlowSettings,
    ) -> None:
        super().__init__(dit, average, latents, bank, vae, levels)
        self._settings = settings
        self._sigmas = torch.tensor(levels.sigmas[:-1], device=self._device)
        self._shares = torch.tensor(LEVEL_SHARES, device=self._device)

    def compute(
        self, clean: Tensor, reference: Tensor, sigma: Tensor, audio: Tensor, motion: Tensor, weight: Tensor,
        position: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """See `tools.train.loop.Stage`."""
        noise = torch.randn_like(clean)
        level = sigma[:, None, None, None, None]
        with torch.autocast(self._device.type, torch.bfloat16):
            made = self.network.forward_clip(
                torch.lerp(clean, noise, level),
                reference + 0.05 * torch.randn_like(reference),
                sigma * 1000,
                audio,
                motion,
                position,
            )
        share = torch.where(level > 0.02, 1.0, 0.02)
        loss = ((made.float() - (noise - clean)).square() * weight * share).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def inputs(self, size: int, progress: float) -> dict[str, Tensor]:
        """See `tools.train.loop.Stage`."""
        latents, batch, device = self._latents[size], self._settings.batch, self._device
        pool = latents.pool
        clip = torch.randint(pool.num_held_out, pool.size, (batch,), device=device)
        choice = self._sigmas[torch.multinomial(self._shares, batch, replacement=True)]
        anywhere = torch.rand(batch, device=device)
        sigma = torch.where(torch.rand(batch, device=device) < UNIFORM_SHARE, anywhere, choice)
        return self.clip_inputs(latents, clip) | {"sigma": sigma}
