"""Stage 3: the DiT on its own roll-outs, judged as latents and as pictures.

A roll-out is one masked pass per noise level, each starting from what the one before it made (`DiT.forward_clip` equals
streaming), so no cache code is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.critic import Critic, compare_pictures
from tools.train.dit_stage import DitStage
from tools.train.features import AudioBank
from tools.train.latents import LatentPool
from tools.train.losses import eye_centre, mouth_centre

__all__ = ["PolicySettings", "PolicyStage"]

CROPS_PER_CLIP = 3
DECODED_LATENTS = 4
"""The latent frame before a block, for the decoder's context and the border, and the block's three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Numbers of the stage."""

    seconds: float
    batch: int = 32
    decoded: int = 8
    """How many clips of a batch are decoded and judged as pictures."""
    peak_rate: float = 3e-4
    gan_weight: float = 0.01
    max_steps: int = 10_000_000


class PolicyStage(DitStage):
    """Clean-latent error of the first three steps, then pictures and a discriminator.

    Args:
        dit: Trained in place.
        average: Receives the moving average of the weights.
        latents: Training data, full size first.
        bank: Audio.
        vae: Frozen; pictures are decoded through it.
        levels: The sampler's noise levels.
        settings: Numbers.
    """

    name = "policy"
    average_decay = 0.998
    log_every = 500
    refills = True
    is_compiled = False

    def __init__(
        self,
        dit: DiT,
        average: DiT,
        latents: Sequence[LatentPool],
        bank: AudioBank,
        vae: EmbeddedVAE,
        levels: NoiseSchedule,
        settings: PolicySettings,
    ) -> None:
        super().__init__(dit, average, latents, bank, vae, levels)
        self._settings = settings
        vae.requires_grad_(False)
        self._critic = Critic(self._device)
        self.learners = (*self.learners, self._critic.learner)

    def compute(
        self, clean: Tensor, reference: Tensor, audio: Tensor, motion: Tensor, weight: Tensor, position: Tensor,
        first: Tensor, still: Tensor, frames: Tensor, landmarks: Tensor, centre: Tensor, chosen: Tensor, gan: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """See `tools.train.loop.Stage`."""
        sigmas, last = self._levels.sigmas, len(self._levels.sigmas) - 3
        x = torch.randn_like(clean)
        values: dict[str, Tensor] = {}
        for i in range(last + 1):
            with torch.autocast(self._device.type, torch.bfloat16):
                t = torch.full((len(x),), self._levels.timesteps[i], device=self._device)
                v = self.network.forward_clip(x, reference, t, audio, motion, position).float()
            guess = x - sigmas[i] * v
            loss = ((guess - clean).square() * weight).mean()
            values[f"x0_{i}"] = loss.detach()
            if i == last:
                span = first[:, None] + torch.arange(DECODED_LATENTS, device=self._device)
                rows = torch.arange(len(span), device=self._device)[:, None]
                block = guess.transpose(1, 2)[rows, span].transpose(1, 2)
                pictures_loss, seen = self._judge(
                    block, motion[rows, span], still, frames, landmarks, centre, chosen, gan
                )
                loss = loss + pictures_loss
                values |= seen
            loss.backward()
            x = (x + (sigmas[i + 1] - sigmas[i]) * v).detach()
        return values

    def _judge(
        self, block: Tensor, motion: Tensor, still: Tensor, frames: Tensor, landmarks: Tensor, centre: Tensor,
        chosen: Tensor, gan: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Compare one decoded block (and the frames just before it) with the truth."""
        vae = self._vae
        with torch.autocast(self._device.type, torch.bfloat16):
            made = vae.decode(block, motion, vae.portrait_features(still), vae.new_state())
        picture = compare_pictures(made, frames, landmarks)
        verdict = self._critic(made, frames, chosen, centre)
        adversarial = self._settings.gan_weight * (12 * verdict.matching + verdict.fooled)
        loss = 1.5 * (picture.l1 + picture.squared + 0.5 * picture.edges) + 2.0 * (picture.change + picture.activity)
        loss = loss + gan * adversarial
        return loss, {
            "l1": picture.l1.detach(), "edges": picture.edges.detach(), "flicker": picture.change.detach(),
            "judged": verdict.judged,
        }  # fmt: skip

    def inputs(self, size: int, progress: float) -> dict[str, Tensor]:
        """See `tools.train.loop.Stage`."""
        latents, settings, device = self._latents[size], self._settings, self._device
        pool, view = latents.pool, latents.view
        clip = torch.randint(pool.num_held_out, pool.size, (settings.batch,), device=device)
        few = clip[: settings.decoded]
        blocks = latents.latents.shape[1] // 3
        first = torch.randint(1, blocks, (len(few),), device=device) * 3 - 1
        frame = 1 + 4 * first[:, None] + torch.arange(4 * DECODED_LATENTS, device=device)
        marks = view.landmarks(few[:, None], frame)
        chosen = torch.randint(4, 4 * DECODED_LATENTS - 1, (len(few), CROPS_PER_CLIP), device=device)
        near = marks[torch.arange(len(few), device=device)[:, None], chosen].flatten(0, 1)
        on_mouth = torch.rand(len(near), 1, device=device) < 0.65
        centre = torch.where(on_mouth, mouth_centre(near), eye_centre(near))
        shared = self.clip_inputs(latents, clip)
        return shared | {
            "reference": shared["reference"] + 0.03 * torch.randn_like(shared["reference"]), "first": first,
            "still": view.pictures(few, 0 * few), "frames": view.pictures(few[:, None], frame), "landmarks": marks,
            "centre": centre + 6 * torch.randn_like(centre), "chosen": chosen,
            "gan": torch.full((), min(max((progress - 0.15) / 0.1, 0.0), 1.0), device=device),
        }  # fmt: skip
