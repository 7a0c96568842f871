"""The embedded avatar's configuration: the published architecture at a size that two CPU cores run live."""

from __future__ import annotations

from torch import Tensor

from pipeline.geometry import VAE_TEMPORAL_STRIDE, VideoGeometry
from pipeline.models.dit_config import DiTConfig
from pipeline.models.embedded_vae import SPATIAL_STRIDE, EmbeddedVAEConfig

__all__ = ["EMBEDDED_DIT", "EMBEDDED_GEOMETRY", "EMBEDDED_VAE", "MOTION_SCALE", "NUM_STEPS", "motion_signal"]

NUM_STEPS = 4
LATENT_CHANNELS = 8
MOTION_SCALE = (8.0, 15.0, 20.0, 1.0, 4.0, 6.0, 2.0)
"""Brings the motion planner's channels (`pipeline.motion.MOTION_CHANNELS`) to about unit size for the network."""

EMBEDDED_VAE = EmbeddedVAEConfig(
    latent_channels=LATENT_CHANNELS,
    encoder_widths=(64, 128, 256),
    decoder_widths=(192, 96, 48, 16),
    portrait_widths=(32, 64, 96),
)

EMBEDDED_DIT = DiTConfig(
    latent_channels=LATENT_CHANNELS,
    patch=2,
    dim=256,
    ffn_dim=1024,
    gelu="none",
    num_layers=8,
    num_heads=4,
    freq_dim=256,
    text_dim=None,
    text_len=0,
    audio_dim=160,
    num_audio_layers=1,
    num_audio_tokens=4,
    audio_inject_layers=(0, 2, 4, 6),
    motion_signal_dim=4 * len(MOTION_SCALE),
    has_pose_encoder=False,
    has_motion_packer=False,
    latent_frames_per_block=3,
    ring_latent_frames=9,
    reference_position=30,
    reference_distance=30,
)

EMBEDDED_GEOMETRY = VideoGeometry(
    height_px=384, width_px=256, vae_spatial_stride=SPATIAL_STRIDE, latent_channels=LATENT_CHANNELS, patch=2
)


def motion_signal(motion_BFM: Tensor) -> Tensor:
    """Bring planned motion into the network's form.

    Args:
        motion_BFM: (B, F, 7) in the planner's units, F a multiple of 4.

    Returns:
        (B, F / 4, 28), scaled.
    """
    scaled = motion_BFM * motion_BFM.new_tensor(MOTION_SCALE)
    return scaled.unflatten(1, (-1, VAE_TEMPORAL_STRIDE)).flatten(2)  # type: ignore[no-any-return]
