"""Stage 4: the decoder once more, on latents that the DiT made.

The DiT's latents are not the encoder's: softer, and off by something else in every latent frame, so that pictures
change too little within a latent frame and too much at its border. Because the motion is given, generated frames and
rendered ones still correspond pixel by pixel, and the decoder can learn to draw sharp frames and steady borders from
what it will really be given.

The discriminator lends its features here, but need not be fooled: that puts bright and dark dots where little is drawn
otherwise, at nostrils and between teeth. For the same reason the drawn picture counts by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.embedded import motion_signal
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.critic import Critic, compare_pictures
from tools.train.features import AudioBank
from tools.train.latents import LatentPool, roll_out
from tools.train.roll_out_stage import RollOutStage
from tools.train.steps import Learner
from tools.train.vae_stage import draw_crop_centres

__all__ = ["DecoderSettings", "DecoderStage"]

SPAN_LATENTS = 4
ROLLED_OUT_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSettings:
    """Numbers of the stage."""

    seconds: float
    batch: int = 16
    fresh_clips: int = 1400
    """How many clips are rolled out before the stage, at each picture size and in each replica."""
    peak_rate: float = 3e-4
    generated_share: float = 0.8
    """The rest are the encoder's own latents."""
    max_steps: int = 10_000_000


class DecoderStage(RollOutStage):
    """Trains the decoder; the encoder stays as it is.

    Args:
        vae: Its decoder is trained in place.
        average: Receives the moving average of the weights.
        dit: Makes the latents.
        latents: Clips and true latents, full size first.
        bank: Audio.
        levels: The sampler's noise levels.
        settings: Numbers.
    """

    name = "decoder"
    average_decay = 0.998
    log_every = 500

    def __init__(
        self,
        vae: EmbeddedVAE,
        average: EmbeddedVAE,
        dit: DiT,
        latents: Sequence[LatentPool],
        bank: AudioBank,
        levels: NoiseSchedule,
        settings: DecoderSettings,
    ) -> None:
        super().__init__(vae, average, dit, latents, bank, levels)
        vae.decoder.requires_grad_(True)
        self._settings = settings
        pool, self._device = latents[0].pool, latents[0].latents.device
        self._critic = Critic(self._device)
        own = Learner(vae.decoder.parameters(), betas=(0.9, 0.98), weight_decay=1e-3)
        self.learners = (own, self._critic.learner)
        count = min(settings.fresh_clips, pool.size - pool.num_held_out)
        self._clips = pool.num_held_out + torch.randperm(pool.size - pool.num_held_out, device=self._device)[:count]
        self._made = [self._roll_out(part) for part in latents]

    def _roll_out(self, latents: LatentPool) -> Tensor:
        parts = self._clips.split(ROLLED_OUT_AT_ONCE)
        made = [roll_out(self._dit, latents, self._bank, part, self._levels, seed=i) for i, part in enumerate(parts)]
        return torch.cat(made).transpose(1, 2).half()

    def compute(
        self, z: Tensor, motion: Tensor, still: Tensor, frames: Tensor, landmarks: Tensor, chosen: Tensor,
        centre: Tensor, gan: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """See `tools.train.loop.Stage`."""
        vae = self.network
        with torch.autocast(self._device.type, torch.bfloat16):
            made, _, drawn = vae.decoder(z, motion, vae.portrait_features(still), vae.new_state())
        picture, drawing = compare_pictures(made, frames, landmarks), compare_pictures(drawn, frames, landmarks)
        verdict = self._critic(made, frames, chosen, centre)
        loss = picture.l1 + picture.squared + 0.5 * picture.edges + 2.0 * (picture.change + picture.activity)
        loss = loss + 0.2 * (drawing.l1 + 0.5 * drawing.edges) + 0.12 * gan * verdict.matching
        loss.backward()
        return {
            "l1": picture.l1.detach(), "edges": picture.edges.detach(), "flicker": picture.change.detach(),
            "judged": verdict.judged,
        }  # fmt: skip

    def inputs(self, size: int, progress: float) -> dict[str, Tensor]:
        """See `tools.train.loop.Stage`."""
        latents, settings, device = self._latents[size], self._settings, self._device
        pool, view = latents.pool, latents.view
        row = torch.randint(0, len(self._clips), (settings.batch,), device=device)
        clip = self._clips[row]
        last = latents.latents.shape[1] - SPAN_LATENTS
        first = torch.randint(0, last + 1, (settings.batch, 1), device=device)
        span = first + torch.arange(SPAN_LATENTS, device=device)
        generated = torch.rand(settings.batch, 1, 1, 1, 1, device=device) < settings.generated_share
        z = torch.where(generated, self._made[size][row[:, None], span], latents.latents[clip[:, None], span]).float()
        frame = 1 + 4 * first + torch.arange(4 * SPAN_LATENTS, device=device)
        marks = view.landmarks(clip[:, None], frame)
        chosen, centre = draw_crop_centres(marks, view.height_px, view.width_px)
        return {
            "z": z, "motion": motion_signal(pool.motion[clip])[torch.arange(len(clip), device=device)[:, None], span],
            "still": view.pictures(clip, 0 * clip), "frames": view.pictures(clip[:, None], frame),
            "landmarks": marks, "chosen": chosen, "centre": centre,
            "gan": torch.full((), min(progress / 0.2, 1.0), device=device),
        }  # fmt: skip
