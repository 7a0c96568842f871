"""Stages 2 and 3: the DiT, first by flow matching, then on its own roll-outs.

Both run under the inference protocol: the four noise levels of the sampler, block-causal attention with the ring's
window, the portrait as sink. `DiT.forward_clip` computes a whole clip at one noise level in one masked pass, which
equals streaming block by block with that level's ring; so the on-policy stage is four such passes, each starting from
what the one before it made, and no cache code is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.embedded import motion_signal
from pipeline.models.embedded_vae import EmbeddedVAE, PortraitFeatures
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.critic import Critic, compare_pictures
from tools.train.farm import ClipPool
from tools.train.features import AudioBank
from tools.train.losses import eye_centre, face_weights, mouth_centre, psnr_db
from tools.train.steps import Ema, GraphedStep, Log, Schedule, adamw

__all__ = [
    "DitSettings",
    "LatentPool",
    "PolicySettings",
    "roll_out",
    "train_flow_matching",
    "train_on_policy",
    "validate_dit",
]

LEVEL_SHARES = (0.36, 0.30, 0.30, 0.04)
"""How often each of the sampler's noise levels is trained; the picture is decided in the first three."""
UNIFORM_SHARE = 0.12
"""Share of samples at a level drawn from everywhere between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DitSettings:
    """Numbers of the flow-matching stage."""

    seconds: float
    batch: int = 64
    peak_rate: float = 8e-4
    max_steps: int = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Numbers of the on-policy stage."""

    seconds: float
    batch: int = 32
    decoded: int = 8
    """How many clips of a batch are decoded and judged as pictures."""
    peak_rate: float = 3e-4
    gan_weight: float = 0.01
    max_steps: int = 10_000_000


class LatentPool:
    """Latents of every clip in the pool, kept up to date with it.

    Args:
        pool: The clips.
        vae: The frozen VAE.
    """

    def __init__(self, pool: ClipPool, vae: EmbeddedVAE) -> None:
        self.pool = pool
        self._vae = vae.eval()
        frames, height, width = pool.motion.shape[1], *pool.frames.shape[2:4]
        shape = (len(pool.frames), frames // 4, vae.config.latent_channels, height // 16, width // 16)
        self.latents = torch.empty(shape, dtype=torch.float16, device=pool.frames.device)
        self.reference = torch.empty((shape[0], *shape[2:]), dtype=torch.float16, device=pool.frames.device)
        self._encode(list(range(pool.size)))

    def refill(self, limit: int) -> None:
        """Take new clips from the farm and encode them."""
        self._encode(self.pool.refill(limit))

    @torch.no_grad()
    def _encode(self, places: list[int]) -> None:
        for place in places:
            clip = self.pool.frames[place].movedim(-1, -3).float().div_(127.5).sub_(1)
            with torch.autocast(clip.device.type, torch.bfloat16):
                self.latents[place] = self._vae.encode(clip[None, 1:])[0]
                self.reference[place] = self._vae.encode(clip[None, :1].expand(-1, 4, -1, -1, -1))[0, 0]

    def weights(self, clip: Tensor) -> Tensor:
        """Weight of each latent position, mean 1: mouth and eyes count most.

        Args:
            clip: Places, (B,).

        Returns:
            float32, (B, 1, T, h, w).
        """
        marks = self.pool.landmarks[clip, 1:].unflatten(1, (-1, 4)).mean(2)
        weight = face_weights(marks, self.latents.shape[-2], self.latents.shape[-1], scale=16.0)
        return (weight / weight.mean())[:, None]


def _draw_reference_position(device: torch.device) -> Tensor:
    return torch.randint(24, 48, (), device=device)


@torch.no_grad()
def roll_out(
    dit: DiT, latents: LatentPool, bank: AudioBank, clip: Tensor, levels: NoiseSchedule, *, seed: int = 0
) -> Tensor:
    """Sample whole clips as streaming would, with the true motion and clean audio.

    Args:
        dit: The network.
        latents: For references.
        bank: For audio.
        clip: Places in the pool, (B,).
        levels: The sampler's noise levels.
        seed: Of the noise.

    Returns:
        Latents, float32, (B, C, T, h, w).
    """
    pool = latents.pool
    audio = bank.columns(pool.audio[clip], pool.motion.shape[1], augment=False)
    motion = motion_signal(pool.motion[clip])
    reference = latents.reference[clip].float()
    shape = latents.latents[clip].transpose(1, 2).shape
    generator = torch.Generator(reference.device).manual_seed(seed)
    x = torch.randn(shape, device=reference.device, generator=generator)
    for i, sigma in enumerate(levels.sigmas[:-1]):
        with torch.autocast(x.device.type, torch.bfloat16):
            t = torch.full((len(clip),), levels.timesteps[i], device=x.device)
            v = dit.forward_clip(x, reference, t, audio, motion, torch.tensor(36, device=x.device))
        x = x + (levels.sigmas[i + 1] - sigma) * v.float()
    return x


@torch.no_grad()
def validate_dit(
    dit: DiT, latents: LatentPool, bank: AudioBank, vae: EmbeddedVAE, levels: NoiseSchedule
) -> dict[str, float]:
    """Roll out the held-out people and compare with the truth (the motion is given, so pixels correspond).

    Args:
        dit: The network.
        latents: Clips and true latents.
        bank: Audio.
        vae: Decodes.
        levels: The sampler's noise levels.

    Returns:
        `mse` and `mse_face` of the latents, `psnr_db` and `psnr_face_db` of the pictures.
    """
    pool = latents.pool
    clip = torch.arange(pool.num_held_out, device=pool.frames.device)
    made = roll_out(dit, latents, bank, clip, levels)
    error = (made - latents.latents[clip].transpose(1, 2).float()).square()
    full, face = [], []
    for k in clip[:8].tolist():
        real = pool.pictures(clip[k : k + 1], torch.arange(1, 1 + pool.motion.shape[1], device=clip.device)[None])[0]
        with torch.autocast(made.device.type, torch.bfloat16):
            portrait = vae.portrait_features(pool.pictures(clip[k : k + 1], 0 * clip[:1]))
            picture = vae.decode(made[k : k + 1], portrait, vae.new_state())[0].clamp(-1, 1)
        weight = face_weights(pool.landmarks[k, 1:], *real.shape[-2:])[:, None]
        full.append(psnr_db(picture, real))
        face.append(psnr_db(picture, real, (weight > 3.5).float()))
    weighted = (error * latents.weights(clip)).mean()
    return {
        "mse": float(error.mean()), "mse_face": float(weighted),
        "psnr_db": sum(full) / len(full), "psnr_face_db": sum(face) / len(face),
    }  # fmt: skip


def train_flow_matching(
    dit: DiT,
    average: DiT,
    latents: LatentPool,
    bank: AudioBank,
    vae: EmbeddedVAE,
    levels: NoiseSchedule,
    settings: DitSettings,
    log: Log,
) -> dict[str, float]:
    """Train the DiT to predict noise minus clean at the sampler's noise levels, for a bounded time.

    Args:
        dit: Trained in place.
        average: Receives the moving average.
        latents: Training data; refilled.
        bank: Audio.
        vae: For validation.
        levels: The sampler's noise levels.
        settings: Numbers.
        log: Where progress goes.

    Returns:
        Steps made, and what `validate_dit` says at the end.
    """
    pool, device = latents.pool, latents.latents.device
    parameters = list(dit.parameters())
    optimiser = adamw(parameters, betas=(0.9, 0.95), weight_decay=0.01)
    ema = Ema(dit, average, 0.999)
    sigmas = torch.tensor(levels.sigmas[:-1], device=device)
    shares = torch.tensor(LEVEL_SHARES, device=device)

    def step(
        clean: Tensor, reference: Tensor, sigma: Tensor, audio: Tensor, motion: Tensor, weight: Tensor, position: Tensor
    ) -> dict[str, Tensor]:
        noise = torch.randn_like(clean)
        level = sigma[:, None, None, None, None]
        with torch.autocast(device.type, torch.bfloat16):
            made = dit.forward_clip(
                torch.lerp(clean, noise, level),
                reference + 0.05 * torch.randn_like(reference),
                sigma * 1000,
                audio,
                motion,
                position,
            )
        share = torch.where(level > 0.02, 1.0, 0.02)
        loss = ((made.float() - (noise - clean)).square() * weight * share).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return {"loss": loss.detach()}

    def inputs() -> dict[str, Tensor]:
        clip = torch.randint(pool.num_held_out, pool.size, (settings.batch,), device=device)
        choice = sigmas[torch.multinomial(shares, settings.batch, replacement=True)]
        anywhere = torch.rand(settings.batch, device=device)
        sigma = torch.where(torch.rand(settings.batch, device=device) < UNIFORM_SHARE, anywhere, choice)
        return {
            "clean": latents.latents[clip].transpose(1, 2).float(), "reference": latents.reference[clip].float(),
            "sigma": sigma, "audio": bank.columns(pool.audio[clip], pool.motion.shape[1], augment=True),
            "motion": motion_signal(pool.motion[clip]), "weight": latents.weights(clip),
            "position": _draw_reference_position(device),
        }  # fmt: skip

    graphed = GraphedStep(step, inputs())
    schedule = Schedule(seconds=settings.seconds, peak=settings.peak_rate, max_steps=settings.max_steps)
    for progress in schedule:
        optimiser.param_groups[0]["lr"].fill_(schedule.rate(progress))
        values = graphed(**inputs())
        ema.update()
        if schedule.step % 16 == 0:
            latents.refill(4)
        if schedule.step == 100 or schedule.step % 1000 == 0:
            log(
                "dit",
                step=schedule.step,
                clips=pool.taken,
                **values,
                **validate_dit(average, latents, bank, vae, levels),
            )
    result = {"steps": schedule.step, **validate_dit(average, latents, bank, vae, levels)}
    log("dit done", **result)
    return result


def train_on_policy(
    dit: DiT,
    average: DiT,
    latents: LatentPool,
    bank: AudioBank,
    vae: EmbeddedVAE,
    levels: NoiseSchedule,
    settings: PolicySettings,
    log: Log,
) -> dict[str, float]:
    """Train the DiT on its own roll-outs: clean-latent error of the first three steps, then pictures and a
    discriminator.

    Args:
        dit: Trained in place.
        average: Receives the moving average.
        latents: Training data; refilled.
        bank: Audio.
        vae: Frozen; pictures are decoded through it.
        levels: The sampler's noise levels.
        settings: Numbers.
        log: Where progress goes.

    Returns:
        Steps made, and what `validate_dit` says at the end.
    """
    pool, device = latents.pool, latents.latents.device
    vae.requires_grad_(False)
    parameters = list(dit.parameters())
    optimiser = adamw(parameters, betas=(0.9, 0.95), weight_decay=0.01)
    critic = Critic(device)
    ema = Ema(dit, average, 0.998)
    sigmas, last = levels.sigmas, len(levels.sigmas) - 3

    def pictures_loss(
        clean_guess: Tensor,
        still: Tensor,
        frames: Tensor,
        landmarks: Tensor,
        centre: Tensor,
        chosen: Tensor,
        gan: Tensor,
    ) -> dict[str, Tensor]:
        """Compare one decoded block (and the frames just before it) with the truth."""
        with torch.autocast(device.type, torch.bfloat16):
            portrait: PortraitFeatures = vae.portrait_features(still)
            made = vae.decode(clean_guess, portrait, vae.new_state())
        picture = compare_pictures(made, frames, landmarks)
        verdict = critic(made, frames, chosen, centre)
        adversarial = settings.gan_weight * (12 * verdict.matching + verdict.fooled)
        loss = 1.5 * (picture.l1 + 0.5 * picture.edges) + 2.0 * picture.change + gan * adversarial
        return {
            "loss": loss,
            "l1": picture.l1,
            "edges": picture.edges,
            "change": picture.change,
            "judged": verdict.judged,
        }

    def step(
        clean: Tensor, reference: Tensor, audio: Tensor, motion: Tensor, weight: Tensor, position: Tensor,
        first: Tensor, still: Tensor, frames: Tensor, landmarks: Tensor, centre: Tensor, chosen: Tensor, gan: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        x = torch.randn_like(clean)
        values: dict[str, Tensor] = {}
        optimiser.zero_grad(set_to_none=True)
        for i in range(last + 1):
            with torch.autocast(device.type, torch.bfloat16):
                t = torch.full((len(x),), levels.timesteps[i], device=device)
                v = dit.forward_clip(x, reference, t, audio, motion, position).float()
            guess = x - sigmas[i] * v
            loss = ((guess - clean).square() * weight).mean()
            values[f"x0_{i}"] = loss.detach()
            if i == last:
                span = first[:, None] + torch.arange(4, device=device)
                rows = torch.arange(len(span), device=device)[:, None]
                picture = pictures_loss(
                    guess.transpose(1, 2)[rows, span].transpose(1, 2), still, frames, landmarks, centre, chosen, gan
                )
                loss = loss + picture.pop("loss")
                values |= {name: value.detach() for name, value in picture.items()}
            loss.backward()
            x = (x + (sigmas[i + 1] - sigmas[i]) * v).detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return values

    def inputs(progress: float) -> dict[str, Tensor]:
        clip = torch.randint(pool.num_held_out, pool.size, (settings.batch,), device=device)
        few = clip[: settings.decoded]
        blocks = latents.latents.shape[1] // 3
        first = torch.randint(1, blocks, (len(few),), device=device) * 3 - 1
        frame = 1 + 4 * first[:, None] + torch.arange(16, device=device)
        marks = pool.landmarks[few[:, None], frame]
        chosen = torch.randint(4, 16, (len(few), 3), device=device)
        near = marks[torch.arange(len(few), device=device)[:, None], chosen].flatten(0, 1)
        on_mouth = torch.rand(len(near), 1, device=device) < 0.65
        centre = torch.where(on_mouth, mouth_centre(near), eye_centre(near))
        return {
            "clean": latents.latents[clip].transpose(1, 2).float(),
            "reference": latents.reference[clip].float() + 0.03 * torch.randn_like(latents.reference[clip].float()),
            "audio": bank.columns(pool.audio[clip], pool.motion.shape[1], augment=True),
            "motion": motion_signal(pool.motion[clip]), "weight": latents.weights(clip),
            "position": _draw_reference_position(device), "first": first,
            "still": pool.pictures(few, 0 * few), "frames": pool.pictures(few[:, None], frame), "landmarks": marks,
            "centre": centre + 6 * torch.randn_like(centre), "chosen": chosen,
            "gan": torch.full((), min(max((progress - 0.15) / 0.1, 0.0), 1.0), device=device),
        }  # fmt: skip

    graphed = GraphedStep(step, inputs(0.0))
    schedule = Schedule(seconds=settings.seconds, peak=settings.peak_rate, max_steps=settings.max_steps, warm_up=100)
    for progress in schedule:
        optimiser.param_groups[0]["lr"].fill_(schedule.rate(progress))
        values = graphed(**inputs(progress))
        ema.update()
        if schedule.step % 8 == 0:
            latents.refill(4)
        if schedule.step == 50 or schedule.step % 500 == 0:
            log(
                "policy",
                step=schedule.step,
                clips=pool.taken,
                **values,
                **validate_dit(average, latents, bank, vae, levels),
            )
    result = {"steps": schedule.step, **validate_dit(average, latents, bank, vae, levels)}
    log("policy done", **result)
    return result
