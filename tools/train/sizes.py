"""Sizes of the networks that training makes; they are written into the headers of the weight files."""

from __future__ import annotations

from pipeline.models.dit_config import DiTConfig
from pipeline.models.embedded import MOTION_SIGNAL_DIM
from pipeline.models.embedded_vae import EmbeddedVAEConfig

__all__ = ["DIT", "VAE"]

LATENT_CHANNELS = 16

VAE = EmbeddedVAEConfig(
    latent_channels=LATENT_CHANNELS,
    motion_signal_dim=MOTION_SIGNAL_DIM,
    encoder_widths=(64, 128, 256),
    decoder_widths=(192, 96, 48, 16),
    portrait_widths=(32, 64, 96),
)

DIT = DiTConfig(
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
    motion_signal_dim=MOTION_SIGNAL_DIM,
    has_pose_encoder=False,
    has_motion_packer=False,
    latent_frames_per_block=3,
    ring_latent_frames=9,
    reference_position=30,
    reference_distance=30,
)
