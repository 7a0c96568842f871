"""Stage 1: the video VAE, on rendered clips.

Weighted L1 and edges (mouth and eyes count most), losses on the warped and the drawn picture by themselves so that
neither branch goes to sleep, noise on the latents and a penalty on their change over time (the DiT's life gets much
easier), and late a patch discriminator on crops of mouth, eyes and anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.embedded_vae import EmbeddedVAE
from tools.train.critic import Critic, compare_pictures
from tools.train.farm import ClipPool
from tools.train.losses import eye_centre, face_weights, mouth_centre, psnr_db
from tools.train.steps import Ema, GraphedStep, Log, Schedule, adamw

__all__ = ["VaeSettings", "train_vae", "validate_vae"]

SEQUENCE_FRAMES = 12
CROPS_PER_SEQUENCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSettings:
    """Numbers of the stage."""

    seconds: float
    batch: int = 16
    peak_rate: float = 5e-4
    gan_from: float = 0.55
    """Progress at which the discriminator starts to count."""
    latent_noise: float = 0.5
    latent_change_weight: float = 0.03
    max_steps: int = 10_000_000


@dataclass(slots=True)
class _Batch:
    frames: Tensor
    reference: Tensor
    landmarks: Tensor


def draw_sequences(pool: ClipPool, batch: int) -> _Batch:
    """Draw sequences of 12 frames with a reference of the same person, colours jittered and half of them mirrored."""
    device = pool.frames.device
    clip = torch.randint(pool.num_held_out, pool.size, (batch,), device=device)
    last = pool.motion.shape[1] - SEQUENCE_FRAMES
    frame = torch.randint(1, last + 2, (batch, 1), device=device) + torch.arange(SEQUENCE_FRAMES, device=device)
    other = torch.randint(0, pool.motion.shape[1] + 1, (batch,), device=device)
    reference = torch.where(torch.rand(batch, device=device) < 0.25, other, 0)
    frames, still = pool.pictures(clip[:, None], frame), pool.pictures(clip, reference)
    landmarks = pool.landmarks[clip[:, None], frame]
    contrast = 1 + 0.35 * (torch.rand(batch, 1, 1, 1, device=device) - 0.5)
    tint = 1 + 0.16 * (torch.rand(batch, 3, 1, 1, device=device) - 0.5)
    shift = 0.2 * (torch.rand(batch, 1, 1, 1, device=device) - 0.5)
    jitter = torch.rand(batch, 1, 1, 1, device=device) < 0.6
    gain, bias = torch.where(jitter, contrast * tint, 1.0), torch.where(jitter, shift, 0.0)
    frames = (frames * gain[:, None] + bias[:, None]).clamp(-1, 1)
    still = (still * gain + bias).clamp(-1, 1)
    mirror = torch.rand(batch, device=device) < 0.5
    frames = torch.where(mirror[:, None, None, None, None], frames.flip(-1), frames)
    still = torch.where(mirror[:, None, None, None], still.flip(-1), still)
    mirrored = torch.stack([frames.shape[-1] - landmarks[..., 0], landmarks[..., 1]], -1)
    return _Batch(frames, still, torch.where(mirror[:, None, None, None], mirrored, landmarks))


def draw_crop_centres(landmarks_BFK2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Choose frames and points to look at closely: half mouths, a third eyes, the rest anywhere.

    Args:
        landmarks_BFK2: In px.
        height: Of the pictures, px.
        width: Of the pictures, px.

    Returns:
        Frame indices (B, CROPS) and centres in px (B * CROPS, 2).
    """
    batch, frames = landmarks_BFK2.shape[:2]
    device = landmarks_BFK2.device
    chosen = torch.randint(0, frames, (batch, CROPS_PER_SEQUENCE), device=device)
    marks = landmarks_BFK2[torch.arange(batch, device=device)[:, None], chosen].flatten(0, 1)
    kind = torch.rand(len(marks), 1, device=device)
    anywhere = torch.rand(len(marks), 2, device=device) * torch.tensor([width, height], device=device)
    centre = torch.where(kind < 0.5, mouth_centre(marks), torch.where(kind < 0.82, eye_centre(marks), anywhere))
    return chosen, centre + 8 * torch.randn_like(centre)


@torch.no_grad()
def validate_vae(vae: EmbeddedVAE, pool: ClipPool) -> dict[str, float]:
    """PSNR on the held-out people: 48 frames each, streamed through the decoder.

    Args:
        vae: The VAE.
        pool: Clips.

    Returns:
        `psnr_db` over all pixels and `psnr_face_db` over mouth and eyes.
    """
    full, face = [], []
    was_training = vae.training
    vae.eval()
    for k in range(pool.num_held_out):
        index = torch.arange(1, 1 + min(48, pool.motion.shape[1]), device=pool.frames.device)
        clip = torch.full_like(index, k)
        real = pool.pictures(clip, index)
        with torch.autocast(real.device.type, torch.bfloat16):
            latents = vae.encode(real[None])
            portrait = vae.portrait_features(pool.pictures(clip[:1], 0 * index[:1]))
            made = vae.decode(latents.transpose(1, 2), portrait, vae.new_state())[0].clamp(-1, 1)
        weight = face_weights(pool.landmarks[clip, index], *real.shape[-2:])[:, None]
        full.append(psnr_db(made, real))
        face.append(psnr_db(made, real, (weight > 3.5).float()))
    vae.train(was_training)
    return {"psnr_db": sum(full) / len(full), "psnr_face_db": sum(face) / len(face)}


def train_vae(
    vae: EmbeddedVAE, average: EmbeddedVAE, pool: ClipPool, settings: VaeSettings, log: Log
) -> dict[str, float]:
    """Train the VAE for a bounded time.

    Args:
        vae: Trained in place; on the pool's device.
        average: Receives the moving average of the weights, which is what is used afterwards.
        pool: Clips; refilled while training.
        settings: Numbers.
        log: Where progress goes.

    Returns:
        Steps made, and what `validate_vae` says at the end.
    """
    device = pool.frames.device.type
    height, width = pool.frames.shape[2:4]
    parameters = list(vae.parameters())
    optimiser = adamw(parameters, betas=(0.9, 0.98), weight_decay=1e-3)
    critic = Critic(pool.frames.device)
    ema = Ema(vae, average, 0.999)

    def reconstruct(frames: Tensor, reference: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latents = vae.encode(frames)
        noisy = latents + noise * torch.randn_like(latents)
        made, warped, drawn = vae.decoder(noisy, vae.portrait_features(reference), vae.new_state())
        return made, warped, drawn, latents

    def step(
        frames: Tensor, reference: Tensor, landmarks: Tensor, noise: Tensor, chosen: Tensor, centre: Tensor, gan: Tensor
    ) -> dict[str, Tensor]:
        with torch.autocast(device, torch.bfloat16):
            made, warped, drawn, latents = reconstruct(frames, reference, noise)
        picture = compare_pictures(made, frames, landmarks)
        draw = compare_pictures(drawn, frames, landmarks).l1
        warp = F.l1_loss(F.avg_pool2d(warped.flatten(0, 1), 4), F.avg_pool2d(frames.flatten(0, 1), 4))
        change = (latents[:, 1:] - latents[:, :-1]).square().mean()
        verdict = critic(made, frames, chosen, centre)
        loss = picture.l1 + 0.5 * picture.edges + 0.5 * picture.change + 0.25 * warp + 0.2 * draw
        loss = loss + settings.latent_change_weight * change + gan * (0.12 * verdict.matching + 0.012 * verdict.fooled)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return {
            "l1": picture.l1.detach(), "edges": picture.edges.detach(), "warp": warp.detach(), "change":
            change.detach(), "judged": verdict.judged, "matching": verdict.matching.detach(),
        }  # fmt: skip

    def inputs(progress: float) -> dict[str, Tensor]:
        batch = draw_sequences(pool, settings.batch)
        chosen, centre = draw_crop_centres(batch.landmarks, height, width)
        shape = (settings.batch, 1, 1, 1, 1)
        where = pool.frames.device
        noise = torch.where(
            torch.rand(shape, device=where) < 0.7, settings.latent_noise * torch.rand(shape, device=where), 0.0
        )
        ramp = min(max((progress - settings.gan_from) / 0.08, 0.0), 1.0)
        return {
            "frames": batch.frames, "reference": batch.reference, "landmarks": batch.landmarks, "noise": noise,
            "chosen": chosen, "centre": centre, "gan": torch.full((), ramp, device=where),
        }  # fmt: skip

    graphed = GraphedStep(step, inputs(0.0))
    schedule = Schedule(seconds=settings.seconds, peak=settings.peak_rate, max_steps=settings.max_steps)
    for progress in schedule:
        optimiser.param_groups[0]["lr"].fill_(schedule.rate(progress))
        values = graphed(**inputs(progress))
        ema.update()
        if schedule.step % 16 == 0:
            pool.refill(4)
        if schedule.step in (50, 200) or schedule.step % 500 == 0:
            log("vae", step=schedule.step, clips=pool.taken, **values, **validate_vae(average, pool))
    result = {"steps": schedule.step, **validate_vae(average, pool)}
    log("vae done", **result)
    return result
