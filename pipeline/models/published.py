"""Sizes of the published model: Wan2.2-S2V-14B, distilled to four steps."""

from __future__ import annotations

from pipeline.models.dit_config import DiTConfig

__all__ = ["PUBLISHED_14B"]

PUBLISHED_14B = DiTConfig(
    latent_channels=16,
    patch=2,
    dim=5120,
    ffn_dim=13824,
    gelu="tanh",
    num_layers=40,
    num_heads=40,
    freq_dim=256,
    text_dim=4096,
    text_len=512,
    audio_dim=1024,
    num_audio_layers=25,
    num_audio_tokens=4,
    audio_inject_layers=(0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
    motion_signal_dim=0,
    has_pose_encoder=True,
    has_motion_packer=True,
    latent_frames_per_block=3,
    ring_latent_frames=12,
    reference_position=30,
    reference_distance=30,
)
