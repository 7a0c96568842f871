"""Stage 1: the video VAE, on rendered clips.

Weighted errors and edges (mouth and eyes count most), of the changes between frames as well, so that motion does not
go in steps of a latent frame; losses on the warped and the drawn picture by themselves so that neither branch goes to
sleep; noise on the latents and a penalty on their change over time (the DiT's life gets much easier); and late a patch
discriminator on crops of mouth, eyes and anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.embedded import motion_signal
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.motion import MOTION_CHANNELS
from tools.train.critic import Critic, compare_pictures
from tools.train.losses import eye_centre, face_weights, mouth_centre, psnr_db
from tools.train.steps import Learner
from tools.train.views import ClipView

__all__ = ["VaeSettings", "VaeStage", "draw_crop_centres", "draw_sequences", "validate_vae"]

SEQUENCE_FRAMES = 12
CROPS_PER_SEQUENCE = 3
BLINK_SHARE, BLINK_TRIES = 0.3, 4
"""Share of the sequences that are the one with the widest blink out of so many; blinks are rare otherwise."""
OTHER_REFERENCE_SHARE = 0.25
"""Share of the sequences whose portrait is some other frame of the clip."""
CLEAN_SHARE = 0.4
"""Share of the sequences whose latents get no noise."""
BLINK = MOTION_CHANNELS.index("blink")
MIRRORED = tuple(-1.0 if name in ("yaw", "roll", "gaze_x") else 1.0 for name in MOTION_CHANNELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSettings:
    """Numbers of the stage."""

    seconds: float
    batch: int = 16
    peak_rate: float = 6e-4
    gan_from: float = 0.6
    """Progress at which the discriminator starts to count."""
    latent_noise: float = 0.35
    latent_change_weight: float = 0.02
    max_steps: int = 10_000_000


@dataclass(slots=True)
class _Batch:
    frames: Tensor
    reference: Tensor
    landmarks: Tensor
    motion: Tensor


def draw_sequences(view: ClipView, batch: int) -> _Batch:
    """Draw sequences of 12 frames with a reference of the same person, colours jittered and half of them mirrored."""
    pool = view.pool
    device = pool.frames.device
    clip = torch.randint(pool.num_held_out, pool.size, (batch,), device=device)
    frame = _draw_first_frames(pool.motion[clip, :, BLINK])[:, None] + torch.arange(SEQUENCE_FRAMES, device=device)
    other = torch.randint(0, pool.motion.shape[1] + 1, (batch,), device=device)
    reference = torch.where(torch.rand(batch, device=device) < OTHER_REFERENCE_SHARE, other, 0)
    frames, still = view.pictures(clip[:, None], frame), view.pictures(clip, reference)
    landmarks = view.landmarks(clip[:, None], frame)
    # Head poses count from the reference; the first frame's motion is that of the portrait itself.
    motion = pool.motion[clip[:, None], frame - 1]
    turned = torch.where(reference[:, None] > 0, pool.motion[clip, (reference - 1).clamp(min=0), :3], 0.0)
    motion = torch.cat([motion[..., :3] - turned[:, None], motion[..., 3:]], -1)

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
    motion = torch.where(mirror[:, None, None], motion * motion.new_tensor(MIRRORED), motion)
    mirrored = torch.stack([frames.shape[-1] - landmarks[..., 0], landmarks[..., 1]], -1)
    return _Batch(frames, still, torch.where(mirror[:, None, None, None], mirrored, landmarks), motion)


def _draw_first_frames(blink_BF: Tensor) -> Tensor:
    """Draw where sequences begin, frames counted from 1 (0 is the reference), some of them where eyes close."""
    batch, num_frames = blink_BF.shape
    device = blink_BF.device
    first = torch.randint(1, num_frames - SEQUENCE_FRAMES + 2, (batch, BLINK_TRIES), device=device)
    span = first[..., None] - 1 + torch.arange(SEQUENCE_FRAMES, device=device)
    widest = blink_BF[torch.arange(batch, device=device)[:, None, None], span].amax(-1).argmax(1)
    chosen = torch.where(torch.rand(batch, device=device) < BLINK_SHARE, widest, 0)
    return first[torch.arange(batch, device=device), chosen]


def draw_crop_centres(landmarks_BFK2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Choose inner frames and points to look at closely: half mouths, a third eyes, the rest anywhere.

    Args:
        landmarks_BFK2: In px.
        height: Of the pictures, px.
        width: Of the pictures, px.

    Returns:
        Frame indices (B, CROPS) and centres in px (B * CROPS, 2).
    """
    batch, frames = landmarks_BFK2.shape[:2]
    device = landmarks_BFK2.device
    chosen = torch.randint(1, frames - 1, (batch, CROPS_PER_SEQUENCE), device=device)
    marks = landmarks_BFK2[torch.arange(batch, device=device)[:, None], chosen].flatten(0, 1)
    kind = torch.rand(len(marks), 1, device=device)
    anywhere = torch.rand(len(marks), 2, device=device) * torch.tensor([width, height], device=device)
    centre = torch.where(kind < 0.5, mouth_centre(marks), torch.where(kind < 0.82, eye_centre(marks), anywhere))
    return chosen, centre + 8 * torch.randn_like(centre)


@torch.no_grad()
def validate_vae(vae: EmbeddedVAE, view: ClipView) -> dict[str, float]:
    """PSNR on the held-out people: 48 frames each, streamed through the decoder.

    Args:
        vae: The VAE.
        view: Clips.

    Returns:
        `psnr_db` over all pixels and `psnr_face_db` over mouth and eyes.
    """
    pool = view.pool
    full, face = [], []
    was_training = vae.training
    vae.eval()
    for k in range(pool.num_held_out):
        index = torch.arange(1, 1 + min(48, pool.motion.shape[1]), device=pool.frames.device)
        clip = torch.full_like(index, k)
        real = view.pictures(clip, index)
        with torch.autocast(real.device.type, torch.bfloat16):
            latents = vae.encode(real[None])
            portrait = vae.portrait_features(view.pictures(clip[:1], 0 * index[:1]))
            signal = motion_signal(pool.motion[None, k, : len(index)])
            made = vae.decode(latents.transpose(1, 2), signal, portrait, vae.new_state())[0].clamp(-1, 1)
        weight = face_weights(view.landmarks(clip, index), *real.shape[-2:])[:, None]
        full.append(psnr_db(made, real))
        face.append(psnr_db(made, real, (weight > 3.5).float()))
    vae.train(was_training)
    return {"psnr_db": sum(full) / len(full), "psnr_face_db": sum(face) / len(face)}


class VaeStage:
    """See the module docstring.

    Args:
        vae: Trained in place; on the pool's device.
        average: Receives the moving average of the weights.
        views: Clips, full size first.
        settings: Numbers.
    """

    name = "vae"
    average_decay = 0.999
    log_every = 1000
    refills = True
    is_compiled = True

    def __init__(
        self, vae: EmbeddedVAE, average: EmbeddedVAE, views: Sequence[ClipView], settings: VaeSettings
    ) -> None:
        self.network, self.average = vae.train(), average
        self._views, self._settings = views, settings
        self._device = views[0].pool.frames.device
        self._critic = Critic(self._device)
        own = Learner(vae.parameters(), betas=(0.9, 0.98), weight_decay=1e-3)
        self.learners = (own, self._critic.learner)

    def compute(
        self, frames: Tensor, reference: Tensor, landmarks: Tensor, motion: Tensor, noise: Tensor, chosen: Tensor,
        centre: Tensor, gan: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """See `tools.train.loop.Stage`."""
        vae = self.network
        with torch.autocast(self._device.type, torch.bfloat16):
            latents = vae.encode(frames)
            noisy = latents + noise * torch.randn_like(latents)
            portrait = vae.portrait_features(reference)
            made, warped, drawn = vae.decoder(noisy, motion, portrait, vae.new_state())
        picture = compare_pictures(made, frames, landmarks)
        draw = compare_pictures(drawn, frames, landmarks).l1
        warp = F.l1_loss(F.avg_pool2d(warped.flatten(0, 1), 4), F.avg_pool2d(frames.flatten(0, 1), 4))
        change = (latents[:, 1:] - latents[:, :-1]).square().mean()
        verdict = self._critic(made, frames, chosen, centre)
        loss = picture.l1 + picture.squared + 0.5 * picture.edges + picture.change + picture.activity
        loss = loss + 0.25 * warp + 0.2 * draw
        loss = loss + self._settings.latent_change_weight * change
        loss = loss + gan * (0.12 * verdict.matching + 0.012 * verdict.fooled)
        loss.backward()
        return {
            "l1": picture.l1.detach(), "edges": picture.edges.detach(), "flicker": picture.change.detach(),
            "warp": warp.detach(), "change": change.detach(), "judged": verdict.judged,
        }  # fmt: skip

    def inputs(self, size: int, progress: float) -> dict[str, Tensor]:
        """See `tools.train.loop.Stage`."""
        view, count, device = self._views[size], self._settings.batch, self._device
        batch = draw_sequences(view, count)
        chosen, centre = draw_crop_centres(batch.landmarks, view.height_px, view.width_px)
        shape = (count, 1, 1, 1, 1)
        noise = self._settings.latent_noise * torch.rand(shape, device=device)
        noise = torch.where(torch.rand(shape, device=device) < CLEAN_SHARE, 0.0, noise)
        ramp = min(max((progress - self._settings.gan_from) / 0.08, 0.0), 1.0)
        return {
            "frames": batch.frames, "reference": batch.reference, "landmarks": batch.landmarks,
            "motion": motion_signal(batch.motion), "noise": noise, "chosen": chosen, "centre": centre,
            "gan": torch.full((), ramp, device=device),
        }  # fmt: skip

    def renew(self, places: list[int]) -> None:
        """See `tools.train.loop.Stage`."""

    def validate(self) -> dict[str, float]:
        """See `tools.train.loop.Stage`."""
        return validate_vae(self.average, self._views[0])
