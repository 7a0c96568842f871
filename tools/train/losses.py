"""What training looks at in pictures: weights round mouth and eyes, edges, crops, and a patch discriminator.

Shapes: N pictures, C channels, H and W pixels; K landmarks in the order of `tools.train.head.mesh.LANDMARK_NAMES`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tools.train.clips import EYE_LANDMARKS, MOUTH_LANDMARKS

__all__ = [
    "PatchDiscriminator",
    "crop",
    "darkness_gain",
    "edge_loss",
    "excess_detail",
    "eye_centre",
    "face_weights",
    "mouth_centre",
    "psnr_db",
]

MIDDLE_BRIGHTNESS, MAX_GAIN = 0.5, 3.0
FREE_DETAIL = 0.04
"""So much more detail than the truth's is none: pictures reach from -1 to 1."""


def mouth_centre(landmarks_NK2: Tensor) -> Tensor:
    """Centre of the mouth in px, (..., 2)."""
    return landmarks_NK2[..., MOUTH_LANDMARKS, :].mean(-2)


def eye_centre(landmarks_NK2: Tensor) -> Tensor:
    """Point between the eyes in px, (..., 2)."""
    return landmarks_NK2[..., EYE_LANDMARKS, :].mean(-2)


def face_weights(landmarks_NK2: Tensor, height: int, width: int, scale: float = 1.0) -> Tensor:
    """Weight of each pixel: 1, up to 9 on the mouth and 6 on the eyes.

    Args:
        landmarks_NK2: In px of the full picture, any leading shape.
        height: Rows of the result.
        width: Columns of the result.
        scale: Pixels of the full picture per pixel of the result.

    Returns:
        float32, (..., height, width).
    """
    device = landmarks_NK2.device
    ys = ((torch.arange(height, device=device) + 0.5) * scale)[:, None]
    xs = ((torch.arange(width, device=device) + 0.5) * scale)[None, :]
    mouth = mouth_centre(landmarks_NK2)[..., None, None, :]
    eyes = eye_centre(landmarks_NK2)[..., None, None, :]
    on_mouth = torch.exp(-(((xs - mouth[..., 0]) / 27) ** 2) - ((ys - mouth[..., 1]) / 21) ** 2)
    on_eyes = torch.exp(-(((xs - eyes[..., 0]) / 44) ** 2) - ((ys - eyes[..., 1]) / 14) ** 2)
    return 1 + 8 * on_mouth + 5 * on_eyes


def darkness_gain(pictures_NCHW: Tensor, weight_NHW: Tensor) -> Tensor:
    """How much more the errors of a picture count because its face is dark, so that all skins are learnt alike.

    The same movement changes the pixels of a dark face less; the gain makes up for it.

    Args:
        pictures_NCHW: In [-1, 1].
        weight_NHW: Result of `face_weights`: where the face is.

    Returns:
        1 for faces as bright as MIDDLE_BRIGHTNESS and brighter, at most MAX_GAIN, (N,).
    """
    on_face = (weight_NHW - 1).clamp(min=0)
    brightness = (pictures_NCHW.mean(1) + 1) / 2
    mean = (brightness * on_face).sum((-2, -1)) / on_face.sum((-2, -1)).clamp(min=1e-6)
    return (MIDDLE_BRIGHTNESS / mean.clamp(min=1e-3)).clamp(1.0, MAX_GAIN)


def edge_loss(made_NCHW: Tensor, real_NCHW: Tensor, weight_N1HW: Tensor) -> Tensor:
    """Weighted L1 of horizontal and vertical differences at full, half and quarter size."""
    total = made_NCHW.new_zeros(())
    error, weight = made_NCHW - real_NCHW, weight_N1HW
    for level in range(3):
        if level:
            error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
        down = ((error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]).mean()
        across = ((error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]).mean()
        total = total + down + across
    return total


def excess_detail(made_NCHW: Tensor, real_NCHW: Tensor) -> Tensor:
    """How much more pixels stand out from their neighbours than in the truth: single bright and dark dots do.

    Args:
        made_NCHW: Pictures in [-1, 1].
        real_NCHW: The truth.

    Returns:
        0 where they do not, (N, C, H, W).
    """

    def detail(pictures_NCHW: Tensor) -> Tensor:
        return pictures_NCHW - F.avg_pool2d(F.pad(pictures_NCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)

    return (detail(made_NCHW).abs() - detail(real_NCHW).abs() - FREE_DETAIL).clamp(min=0)


def psnr_db(made: Tensor, real: Tensor, weight: Tensor | None = None) -> float:
    """PSNR of pictures in [-1, 1], in dB, over all pixels or by weight."""
    error = ((made - real) / 2).square()
    mean = error.mean() if weight is None else (error * weight).sum() / (weight.expand_as(error).sum())
    return -10 * math.log10(float(mean) + 1e-12)


def crop(pictures_NCHW: Tensor, centre_N2: Tensor, size: int) -> Tensor:
    """Cut a square round a point out of each picture, moved inside where it would leave it.

    Args:
        pictures_NCHW: Pictures.
        centre_N2: In px, x first.
        size: Side of the square, px.

    Returns:
        One square per picture, (N, C, size, size).
    """
    count, channels, height, width = pictures_NCHW.shape
    device = pictures_NCHW.device
    left = (centre_N2[:, 0] - size / 2).round().long().clamp(0, width - size)
    top = (centre_N2[:, 1] - size / 2).round().long().clamp(0, height - size)
    span = torch.arange(size, device=device)
    rows = (top[:, None] + span)[:, None, :, None]
    columns = (left[:, None] + span)[:, None, None, :]
    which = torch.arange(count, device=device)[:, None, None, None]
    return pictures_NCHW[which, torch.arange(channels, device=device)[None, :, None, None], rows, columns]


class PatchDiscriminator(nn.Module):
    """Judges 96 x 96 crops patch by patch; also gives its features for feature matching.

    Args:
        in_channels: Of the crops: 3 for each frame.
        widths: Channels of the layers.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...] = (48, 96, 192, 256)) -> None:
        super().__init__()
        layers, channels = [], in_channels
        for i, width in enumerate(widths):
            layers.append(spectral_norm(nn.Conv2d(channels, width, 4, 2 if i < len(widths) - 1 else 1, 1)))
            channels = width
        self.layers = nn.ModuleList(layers)
        self.out = nn.Conv2d(channels, 1, 3, 1, 1)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judge crops.

        Args:
            x_NCHW: Crops in [-1, 1].

        Returns:
            Logits per patch (large: real), and the features of every layer.
        """
        features = []
        for layer in self.layers:
            x_NCHW = F.leaky_relu(layer(x_NCHW), 0.2)
            features.append(x_NCHW)
        return self.out(x_NCHW), features
