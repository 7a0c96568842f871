"""The embedded avatar: the published architecture at a size that two CPU cores run live, and what is fixed about it.

Sizes of the networks travel with their weights (`pipeline.weights.embedded_files`).
"""

from __future__ import annotations

from torch import Tensor

from pipeline.geometry import VAE_TEMPORAL_STRIDE, VideoGeometry
from pipeline.models.dit_config import DiTConfig
from pipeline.models.embedded_vae import SPATIAL_STRIDE

__all__ = ["MOTION_SCALE", "MOTION_SIGNAL_DIM", "embedded_geometry", "motion_signal"]

MOTION_SCALE = (8.0, 15.0, 20.0, 1.0, 4.0, 6.0, 2.0)
"""Brings the motion planner's channels (`pipeline.motion.MOTION_CHANNELS`) to about unit size for the networks."""
MOTION_SIGNAL_DIM = VAE_TEMPORAL_STRIDE * len(MOTION_SCALE)


def embedded_geometry(config: DiTConfig, *, height_px: int, width_px: int) -> VideoGeometry:
    """Work out the sizes of latents and tokens for a picture size.

    Args:
        config: Of the transformer.
        height_px: Of the frames.
        width_px: Of the frames.

    Returns:
        The geometry.
    """
    return VideoGeometry(
        height_px=height_px,
        width_px=width_px,
        vae_spatial_stride=SPATIAL_STRIDE,
        latent_channels=config.latent_channels,
        patch=config.patch,
    )


def motion_signal(motion_BFM: Tensor) -> Tensor:
    """Bring planned motion into the networks' form.

    Args:
        motion_BFM: (B, F, 7) in the planner's units, F a multiple of 4.

    Returns:
        (B, F / 4, 28), scaled.
    """
    scaled = motion_BFM * motion_BFM.new_tensor(MOTION_SCALE)
    return scaled.unflatten(1, (-1, VAE_TEMPORAL_STRIDE)).flatten(2)  # type: ignore[no-any-return]
