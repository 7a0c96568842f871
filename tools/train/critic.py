"""The discriminator's part of a training step, shared by all stages that train on pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.train.losses import PatchDiscriminator, crop, darkness_gain, edge_loss, face_weights
from tools.train.steps import Learner

__all__ = ["Critic", "PictureLosses", "Verdict", "compare_pictures"]

CROP_PX = 96
JUDGED_FRAMES = 3
"""In a row, so that it sees how things move: judged frame by frame, they may move in steps."""
RATE = 2e-4
ACTIVITY_PX = 8
"""Side of the squares in which the amount of change is compared."""


@dataclass(frozen=True, slots=True)
class PictureLosses:
    """How far made frames are from real ones; scalars."""

    l1: Tensor
    squared: Tensor
    edges: Tensor
    change: Tensor
    """Of the differences between one frame and the next, in which flicker and seams at block borders show."""
    activity: Tensor
    """Of how much each square changes from one frame to the next, wherever in it: what moves too little within a latent
    frame and jumps at its border is off twice."""


def compare_pictures(made_BFCHW: Tensor, real_BFCHW: Tensor, landmarks_BFK2: Tensor) -> PictureLosses:
    """Compare frames, mouth and eyes weighted most, and dark faces more than bright ones.

    Args:
        made_BFCHW: float32 in about [-1, 1].
        real_BFCHW: The truth.
        landmarks_BFK2: Of the real frames, px.

    Returns:
        The losses.
    """
    return PictureLosses(*_compare(made_BFCHW, real_BFCHW, landmarks_BFK2))


def _compare(made_BFCHW: Tensor, real_BFCHW: Tensor, landmarks_BFK2: Tensor) -> tuple[Tensor, ...]:
    """The arithmetic of `compare_pictures`, in one piece for the compiler."""
    weight = face_weights(landmarks_BFK2, *real_BFCHW.shape[-2:])
    gain = darkness_gain(real_BFCHW[:, 0], weight[:, 0])
    weight = (weight / weight.mean() * gain[:, None, None, None])[:, :, None]
    error = made_BFCHW - real_BFCHW
    change = ((error[:, 1:] - error[:, :-1]).abs() * weight[:, 1:]).mean()
    edges = edge_loss(made_BFCHW.flatten(0, 1), real_BFCHW.flatten(0, 1), weight.flatten(0, 1))
    made_activity, real_activity = _activity(made_BFCHW), _activity(real_BFCHW)
    seen = F.avg_pool2d(weight[:, 1:, 0], ACTIVITY_PX)
    activity = ((made_activity - real_activity).abs() * seen).mean()
    return (error.abs() * weight).mean(), (error.square() * weight).mean(), edges, change, activity


def _activity(pictures_BFCHW: Tensor) -> Tensor:
    """Mean change of each square from one frame to the next, (B, F - 1, rows, columns)."""
    return F.avg_pool2d((pictures_BFCHW[:, 1:] - pictures_BFCHW[:, :-1]).abs().mean(2), ACTIVITY_PX)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the discriminator says; scalars. The first is its own loss, the others belong to the generator's."""

    judged: Tensor
    matching: Tensor
    """L1 of the discriminator's features."""
    fooled: Tensor
    """To be minimised: how little the made crops are taken for real ones."""


class Critic:
    """A patch discriminator that learns while it judges three frames in a row; safe inside a CUDA graph.

    Args:
        device: Where it lives.
    """

    def __init__(self, device: torch.device) -> None:
        self.judge = PatchDiscriminator(3 * JUDGED_FRAMES).to(device)
        self.learner = Learner(self.judge.parameters(), betas=(0.5, 0.9), weight_decay=0.0)
        self.learner.set_rate(RATE)
        self._device = device.type

    def __call__(self, made_BFCHW: Tensor, real_BFCHW: Tensor, chosen_BN: Tensor, centre_M2: Tensor) -> Verdict:
        """Ask the discriminator about crops, and add its own gradients to its learner.

        Args:
            made_BFCHW: Frames with gradient.
            real_BFCHW: The truth.
            chosen_BN: Which frames of each item to crop, each with the one before and the one after it.
            centre_M2: Where, in px, (B * N, 2).

        Returns:
            The verdict; its last two parts carry gradients to `made_BFCHW` alone, and matter once backward is called.
        """
        rows = torch.arange(len(made_BFCHW), device=made_BFCHW.device)[:, None, None]
        near = chosen_BN[..., None] + torch.arange(JUDGED_FRAMES, device=rows.device) - JUDGED_FRAMES // 2
        made = crop(made_BFCHW[rows, near].flatten(2, 3).flatten(0, 1), centre_M2, CROP_PX)
        real = crop(real_BFCHW[rows, near].flatten(2, 3).flatten(0, 1), centre_M2, CROP_PX)
        with torch.autocast(self._device, torch.bfloat16):
            fake, true = self.judge(made.detach())[0], self.judge(real)[0]
        judged = F.relu(1 + fake.float()).mean() + F.relu(1 - true.float()).mean()
        judged.backward()
        self.judge.requires_grad_(False)
        with torch.autocast(self._device, torch.bfloat16):
            fake, fake_features = self.judge(made)
            true_features = self.judge(real)[1]
        self.judge.requires_grad_(True)
        pairs = zip(fake_features, true_features, strict=True)
        matching = torch.stack([F.l1_loss(a.float(), b.float()) for a, b in pairs]).sum()
        return Verdict(judged.detach(), matching, -fake.float().mean())
