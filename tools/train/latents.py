"""Latents of the pool's clips, roll-outs from noise, and what they are worth on held-out people."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.geometry import VAE_TEMPORAL_STRIDE
from pipeline.models.dit import DiT
from pipeline.models.embedded import motion_signal
from pipeline.models.embedded_vae import SPATIAL_STRIDE, EmbeddedVAE
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.features import AudioBank
from tools.train.losses import darkness_gain, face_weights, psnr_db
from tools.train.speech.visemes import VISEMES
from tools.train.views import ClipView

__all__ = ["LatentPool", "draw_reference_position", "roll_out", "validate_dit"]

CLOSURE = VISEMES.index("PP")
CLOSURE_WEIGHT = 3.0
"""How much more a latent frame counts in which the lips close for p, b or m: closures are short and rare, and a network
that smooths them over loses little otherwise.
"""
VALIDATED_PICTURES = 8


class LatentPool:
    """Latents of every clip of a view, and what else the transformer learns from.

    Args:
        view: The clips.
        vae: The frozen VAE.
    """

    def __init__(self, view: ClipView, vae: EmbeddedVAE) -> None:
        self.view, self.pool = view, view.pool
        self._vae = vae.eval()
        capacity, device = len(self.pool.frames), self.pool.frames.device
        num_latent_frames = self.pool.motion.shape[1] // VAE_TEMPORAL_STRIDE
        cells = (vae.config.latent_channels, view.height_px // SPATIAL_STRIDE, view.width_px // SPATIAL_STRIDE)
        self.latents = torch.empty((capacity, num_latent_frames, *cells), dtype=torch.float16, device=device)
        self.reference = torch.empty((capacity, *cells), dtype=torch.float16, device=device)
        self._gain = torch.ones(capacity, device=device)
        self.encode(list(range(self.pool.size)))

    @torch.no_grad()
    def encode(self, places: list[int]) -> None:
        """Renew the latents of clips that came into the pool.

        Args:
            places: Where they are.
        """
        device = self.pool.frames.device
        frame = torch.arange(self.pool.motion.shape[1] + 1, device=device)
        for place in places:
            clip = self.view.pictures(torch.full_like(frame, place), frame)
            with torch.autocast(device.type, torch.bfloat16):
                self.latents[place] = self._vae.encode(clip[None, 1:])[0]
                still = clip[None, :1].expand(-1, VAE_TEMPORAL_STRIDE, -1, -1, -1)
                self.reference[place] = self._vae.encode(still)[0, 0]
            face = face_weights(self.view.landmarks(frame[:1] + place, frame[:1]), *clip.shape[-2:])
            self._gain[place] = darkness_gain(clip[:1], face)[0]

    def weights(self, clip: Tensor) -> Tensor:
        """Weight of each latent position: mouth and eyes count most, more with closed lips, more in dark faces.

        Args:
            clip: Places, (B,).

        Returns:
            float32, mean 1 for bright faces, (B, 1, T, h, w).
        """
        marks = self.pool.landmarks[clip, 1:].unflatten(1, (-1, VAE_TEMPORAL_STRIDE)).mean(2)
        scale = SPATIAL_STRIDE / self.view.scale
        weight = face_weights(marks, self.latents.shape[-2], self.latents.shape[-1], scale=scale)
        closed = self.pool.visemes[clip, :, CLOSURE].unflatten(1, (-1, VAE_TEMPORAL_STRIDE)).amax(2)
        weight = weight * (1 + CLOSURE_WEIGHT * closed)[..., None, None]
        return (weight / weight.mean() * self._gain[clip, None, None, None])[:, None]  # type: ignore[no-any-return]


def draw_reference_position(device: torch.device) -> Tensor:
    """Draw where the portrait stands in time: streams see it at a changing distance."""
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
        `mse` and `mse_face` of the latents, `psnr_db` and `psnr_face_db` of the pictures; `movement`, how much frames
        change within a latent frame, relative to the truth, and `border`, how much more they change across its borders.
    """
    pool, view = latents.pool, latents.view
    clip = torch.arange(pool.num_held_out, device=pool.frames.device)
    made = roll_out(dit, latents, bank, clip, levels)
    error = (made - latents.latents[clip].transpose(1, 2).float()).square()
    full, face, changes = [], [], []
    for k in clip[:VALIDATED_PICTURES].tolist():
        here, frame = clip[k : k + 1], torch.arange(1, 1 + pool.motion.shape[1], device=clip.device)
        real = view.pictures(here, frame)
        with torch.autocast(made.device.type, torch.bfloat16):
            portrait = vae.portrait_features(view.pictures(here, 0 * here))
            signal = motion_signal(pool.motion[here])
            picture = vae.decode(made[here], signal, portrait, vae.new_state())[0].clamp(-1, 1)
        weight = face_weights(view.landmarks(here, frame), *real.shape[-2:])[:, None]
        changes.append(torch.stack([(x[1:] - x[:-1]).abs().mean((1, 2, 3)) for x in (picture, real)]))
        full.append(psnr_db(picture, real))
        face.append(psnr_db(picture, real, (weight > 3.5).float()))
    weighted = (error * latents.weights(clip)).mean()
    change = torch.stack(changes).mean(0)
    across = torch.arange(1, 1 + change.shape[1], device=change.device) % VAE_TEMPORAL_STRIDE == 0
    within = change[:, ~across].mean(1)
    return {
        "mse": float(error.mean()), "mse_face": float(weighted),
        "psnr_db": sum(full) / len(full), "psnr_face_db": sum(face) / len(face),
        "movement": float(within[0] / within[1]), "border": float(change[0, across].mean() / within[0]),
    }  # fmt: skip
