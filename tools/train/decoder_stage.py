"""Stage 4: the decoder once more, on latents that the DiT made.

The DiT's latents are not the encoder's: softer, and with a seam at every block border. Because the motion is given,
generated frames and rendered ones still correspond pixel by pixel, so the decoder can learn to draw sharp frames, and
steady borders, from what it will really be given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.critic import Critic, compare_pictures
from tools.train.dit_stage import LatentPool, roll_out, validate_dit
from tools.train.features import AudioBank
from tools.train.steps import Ema, GraphedStep, Log, Schedule, adamw
from tools.train.vae_stage import draw_crop_centres

__all__ = ["DecoderSettings", "train_decoder"]

CONTEXT_LATENTS, TRAINED_LATENTS = 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSettings:
    """Numbers of the stage."""

    seconds: float
    batch: int = 16
    fresh_clips: int = 768
    """How many clips are rolled out before the stage."""
    peak_rate: float = 2.5e-4
    generated_share: float = 0.8
    """The rest are the encoder's own latents."""
    max_steps: int = 10_000_000


def train_decoder(
    vae: EmbeddedVAE,
    average: EmbeddedVAE,
    dit: DiT,
    latents: LatentPool,
    bank: AudioBank,
    levels: NoiseSchedule,
    settings: DecoderSettings,
    log: Log,
) -> dict[str, float]:
    """Fine-tune the decoder for a bounded time; the encoder stays as it is.

    Args:
        vae: Its decoder is trained in place.
        average: Receives the moving average.
        dit: Makes the latents.
        latents: Clips and true latents.
        bank: Audio.
        levels: The sampler's noise levels.
        settings: Numbers.
        log: Where progress goes.

    Returns:
        Steps made, and what `validate_dit` says at the end.
    """
    pool, device = latents.pool, latents.latents.device
    height, width = pool.frames.shape[2:4]
    vae.load_state_dict(average.state_dict())
    vae.eval().requires_grad_(False)
    vae.decoder.requires_grad_(True)
    ema = Ema(vae.decoder, average.decoder, 0.998)
    parameters = list(vae.decoder.parameters())
    optimiser = adamw(parameters, betas=(0.9, 0.98), weight_decay=1e-3)
    critic = Critic(device)
    count = min(settings.fresh_clips, pool.size - pool.num_held_out)
    clips = pool.num_held_out + torch.randperm(pool.size - pool.num_held_out, device=device)[:count]
    made = torch.cat([roll_out(dit, latents, bank, part, levels, seed=i) for i, part in enumerate(clips.split(32))])
    made = made.transpose(1, 2).half()
    log("decoder data", clips=count, mse=(made.float() - latents.latents[clips].float()).square().mean())

    def step(
        z: Tensor, still: Tensor, frames: Tensor, landmarks: Tensor, chosen: Tensor, centre: Tensor, gan: Tensor
    ) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            pictures = vae.decode(z.transpose(1, 2), vae.portrait_features(still), vae.new_state())
        picture = compare_pictures(pictures, frames, landmarks)
        verdict = critic(pictures, frames, chosen, centre)
        loss = (
            picture.l1 + 0.5 * picture.edges + picture.change + gan * (0.15 * verdict.matching + 0.015 * verdict.fooled)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return {
            "l1": picture.l1.detach(), "edges": picture.edges.detach(), "change": picture.change.detach(),
            "judged": verdict.judged,
        }  # fmt: skip

    def inputs(progress: float) -> dict[str, Tensor]:
        row = torch.randint(0, count, (settings.batch,), device=device)
        clip = clips[row]
        span_latents = CONTEXT_LATENTS + TRAINED_LATENTS
        first = torch.randint(0, latents.latents.shape[1] - span_latents + 1, (settings.batch, 1), device=device)
        span = first + torch.arange(span_latents, device=device)
        generated = torch.rand(settings.batch, 1, 1, 1, 1, device=device) < settings.generated_share
        z = torch.where(generated, made[row[:, None], span], latents.latents[clip[:, None], span]).float()
        frame = 1 + 4 * first + torch.arange(4 * span_latents, device=device)
        marks = pool.landmarks[clip[:, None], frame]
        chosen, centre = draw_crop_centres(marks, height, width)
        return {
            "z": z, "still": pool.pictures(clip, 0 * clip), "frames": pool.pictures(clip[:, None], frame),
            "landmarks": marks, "chosen": chosen, "centre": centre,
            "gan": torch.full((), min(progress / 0.2, 1.0), device=device),
        }  # fmt: skip

    graphed = GraphedStep(step, inputs(0.0))
    schedule = Schedule(seconds=settings.seconds, peak=settings.peak_rate, max_steps=settings.max_steps, warm_up=100)
    for progress in schedule:
        optimiser.param_groups[0]["lr"].fill_(schedule.rate(progress))
        values = graphed(**inputs(progress))
        ema.update()
        if schedule.step % 500 == 0:
            log("decoder", step=schedule.step, **values)
    result = {"steps": schedule.step, **validate_dit(dit, latents, bank, average, levels)}
    log("decoder done", **result)
    return result
