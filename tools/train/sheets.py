"""Sheets of frames to look at: what the farm renders, and what the networks make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.embedded import motion_signal
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import Schedule
from tools.train.farm import ClipPool
from tools.train.features import AudioBank
from tools.train.latents import LatentPool, roll_out

__all__ = ["save_clip_sheet", "save_roll_out_sheet"]

SHOWN_FRAMES = (3, 14, 26, 38, 50, 62)


def _bytes(pictures_NCHW: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return ((pictures_NCHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def save_clip_sheet(pool: ClipPool, path: Path, people: int = 5) -> None:
    """Save the reference and a few frames of the first people of the pool.

    Args:
        pool: Clips.
        path: A picture file.
        people: Rows.
    """
    rows = []
    frames = [f for f in SHOWN_FRAMES if f < pool.motion.shape[1]]
    for k in range(min(people, pool.size)):
        shown = pool.frames[k, [0, *frames]].cpu().numpy()
        rows.append(np.concatenate(list(shown), 1))
    Image.fromarray(np.concatenate(rows, 0)).save(path)


@torch.no_grad()
def save_roll_out_sheet(
    dit: DiT, latents: LatentPool, bank: AudioBank, vae: EmbeddedVAE, levels: Schedule, path: Path, people: int = 3
) -> None:
    """Save truth, VAE reconstruction and roll-out of held-out people, three rows each.

    Args:
        dit: The DiT.
        latents: Latents and clips.
        bank: Audio.
        vae: The VAE.
        levels: Noise levels.
        path: A picture file.
        people: Groups of rows.
    """
    pool, view = latents.pool, latents.view
    clip = torch.arange(min(people, pool.num_held_out), device=pool.frames.device)
    made = roll_out(dit, latents, bank, clip, levels)
    shown = [f for f in SHOWN_FRAMES if f < pool.motion.shape[1]]
    rows = []
    for k in clip.tolist():
        here = clip[k : k + 1]
        portrait, signal = vae.portrait_features(view.pictures(here, 0 * here)), motion_signal(pool.motion[here])
        truth = latents.latents[here].transpose(1, 2).float()
        streams = [vae.decode(z, signal, portrait, vae.new_state())[0][shown] for z in (truth, made[here])]
        real = view.pictures(here.expand(len(shown)), torch.tensor(shown, device=clip.device) + 1)
        rows += [np.concatenate(list(_bytes(pictures)), 1) for pictures in (real, *streams)]
    Image.fromarray(np.concatenate(rows, 0)).save(path)
