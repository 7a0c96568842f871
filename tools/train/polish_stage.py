"""Stage 5: the decoder's last layers alone, without a discriminator, against dots.

What trained against a discriminator leaves single bright and dark pixels, at nostrils above all: the maps before the
last layers have outliers there, and the layers make dots of them. These layers have so few weights that they learn the
better from few people and on any machine, while the whole decoder would learn the people by heart. Frames in which the
dots are most come most often, and detail finer than the truth's costs by itself.
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
from tools.train.features import AudioBank
from tools.train.latents import LatentPool, roll_out
from tools.train.losses import darkness_gain, edge_loss, excess_detail, face_weights
from tools.train.roll_out_stage import RollOutStage
from tools.train.steps import Learner

__all__ = ["PolishSettings", "PolishStage"]

FRAME_STRIDE = 3
"""One frame of so many is kept of each clip; the first differs from clip to clip."""
DOT = 0.1
"""Detail beyond the truth's that makes a pixel a dot; pictures reach from -1 to 1."""
MOST_DOTS = 60
"""Frames with more dots than this come no more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishSettings:
    """Numbers of the stage."""

    seconds: float
    batch: int = 3
    people: int = 512
    """How many clips are rolled out before the stage, at each picture size and in each replica."""
    peak_rate: float = 4e-4
    squared_weight: float = 4.0
    drawn_weight: float = 0.2
    detail_weight: float = 4.0
    max_steps: int = 10_000_000


@dataclass(slots=True)
class _Frames:
    """What the last layers start from, and the truth; one entry per frame."""

    maps: Tensor
    """float16, (N, C4, H / 4, W / 4)."""
    warped: Tensor
    """float16, (N, 3, H, W)."""
    clip: Tensor
    frame: Tensor
    share: Tensor
    """How often each is drawn, relative to the others."""


class PolishStage(RollOutStage):
    """Trains the decoder's last layers; see the module docstring.

    Args:
        vae: Its last layers are trained in place.
        average: Receives the moving average of the weights.
        dit: Makes the latents.
        latents: Clips, full size first.
        bank: Audio.
        levels: The sampler's noise levels.
        settings: Numbers.
    """

    name = "polish"
    average_decay = 0.99
    log_every = 200

    def __init__(
        self,
        vae: EmbeddedVAE,
        average: EmbeddedVAE,
        dit: DiT,
        latents: Sequence[LatentPool],
        bank: AudioBank,
        levels: NoiseSchedule,
        settings: PolishSettings,
    ) -> None:
        super().__init__(vae, average, dit, latents, bank, levels)
        decoder = vae.decoder
        last = (decoder.up2, decoder.join2, decoder.refine2, decoder.out)
        for layer in last:
            layer.requires_grad_(True)
        self._settings = settings
        parameters = [parameter for layer in last for parameter in layer.parameters()]
        self.learners = (Learner(parameters, betas=(0.9, 0.98), weight_decay=0.0),)
        self._frames = [self._collect(part) for part in latents]

    @torch.no_grad()
    def _collect(self, latents: LatentPool) -> _Frames:
        """Roll clips out and keep some of their frames."""
        pool, view, vae = latents.pool, latents.view, self.network
        device = latents.latents.device
        num_frames = pool.motion.shape[1]
        parts: list[tuple[Tensor, ...]] = []
        for clip in range(pool.num_held_out, min(pool.size, pool.num_held_out + self._settings.people)):
            here = torch.tensor([clip], device=device)
            z = roll_out(self._dit, latents, self._bank, here, self._levels, seed=clip)
            chosen = torch.arange(clip % FRAME_STRIDE, num_frames, FRAME_STRIDE, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                portrait = vae.portrait_features(view.pictures(here, 0 * here))
                maps, warped = vae.decoder.warp(
                    z.transpose(1, 2), motion_signal(pool.motion[here]), portrait, vae.new_state()
                )
                made = vae.decoder.draw(maps[chosen], warped[:, chosen])[0][0]
            places, frames = here.expand(len(chosen)), chosen + 1
            weight = face_weights(view.landmarks(places, frames), *made.shape[-2:])
            dots = excess_detail(made, view.pictures(places, frames)).amax(1) > DOT
            count = (dots & (weight > 1.5)).sum((1, 2)).clamp(max=MOST_DOTS)
            parts.append((maps[chosen].half(), warped[0, chosen].half(), places, frames, 1.0 + count))
        return _Frames(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def compute(self, maps: Tensor, warped: Tensor, frames: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """See `tools.train.loop.Stage`."""
        settings = self._settings
        made, drawn = (part[0] for part in self.network.decoder.draw(maps, warped[None]))
        weight = face_weights(landmarks, *frames.shape[-2:])
        gain = darkness_gain(frames, weight)
        weight = (weight / weight.mean() * gain[:, None, None])[:, None]
        error = made - frames
        l1, squared = (error.abs() * weight).mean(), (error.square() * weight).mean()
        edges = edge_loss(made, frames, weight)
        drawing = ((drawn - frames).abs() * weight).mean() + 0.5 * edge_loss(drawn, frames, weight)
        detail = ((excess_detail(made, frames) + 0.5 * excess_detail(drawn, frames)) * weight).mean()
        loss = l1 + settings.squared_weight * squared + 0.5 * edges
        loss = loss + settings.drawn_weight * drawing + settings.detail_weight * detail
        loss.backward()
        return {"l1": l1.detach(), "edges": edges.detach(), "detail": detail.detach()}

    def inputs(self, size: int, progress: float) -> dict[str, Tensor]:
        """See `tools.train.loop.Stage`."""
        kept, view = self._frames[size], self._latents[size].view
        row = torch.multinomial(kept.share, self._settings.batch, replacement=True)
        clip, frame = kept.clip[row], kept.frame[row]
        return {
            "maps": kept.maps[row].float(), "warped": kept.warped[row].float(),
            "frames": view.pictures(clip, frame), "landmarks": view.landmarks(clip, frame),
        }  # fmt: skip
