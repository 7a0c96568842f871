"""Sizes of the speech-to-video transformer: every number that differs between the published and the embedded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

__all__ = ["COARSEST_MOTION_PATCH", "COLUMNS_PER_LATENT_FRAME", "DiTConfig"]

COLUMNS_PER_LATENT_FRAME = 4
"""Audio feature columns per latent frame, one per frame; the audio encoder halves their rate twice."""

COARSEST_MOTION_PATCH = 4
"""Side, in tokens, of the largest patch of the motion packer; it divides the token grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig:
    """Sizes and parts of one speech-to-video transformer.

    Raises:
        ConfigError: Numbers that contradict each other.
    """

    latent_channels: int
    """Channels of the VAE's latents."""
    patch: int
    """Latent positions per token, in each direction."""
    dim: int
    """Width of the residual stream."""
    ffn_dim: int
    """Width of the feed-forward layers."""
    gelu: Literal["tanh", "none"]
    """Approximation of the GELU: the published model uses tanh; exact ("none") is four times as fast on CPUs."""
    num_layers: int
    """Number of blocks."""
    num_heads: int
    """Attention heads; the head width has to be even."""
    freq_dim: int
    """Width of the sinusoidal embedding of the timestep."""
    text_dim: int | None
    """Width of the text encoder's rows; None: the model knows no text."""
    text_len: int
    """Rows to which a text is padded; 0 without text."""
    audio_dim: int
    """Width of an audio feature column."""
    num_audio_layers: int
    """Feature layers per column, mixed by learned weights; 1: nothing to mix."""
    num_audio_tokens: int
    """Audio tokens per latent frame, without the learned padding token."""
    audio_inject_layers: tuple[int, ...]
    """Blocks that are followed by an audio injection, ascending."""
    motion_signal_dim: int
    """Numbers per latent frame that describe pose, blink, gaze and brow; 0: the model knows no motion signal."""
    has_pose_encoder: bool
    """Whether latents of a pose video can be added to the noisy tokens."""
    has_motion_packer: bool
    """Whether past latents join the sink; without it the sink is the reference portrait alone."""
    latent_frames_per_block: int
    """Latent frames denoised together."""
    ring_latent_frames: int
    """Latent frames in the ring, the current block included; a multiple of the block."""
    reference_position: int
    """Temporal position of the reference in the prefill, and the lowest it has while frames are made."""
    reference_distance: int
    """How far ahead of a block's first latent frame the reference is moved (delta)."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.head_dim % 2 or self.dim % 4:
            rule = f"it has to be a multiple of 4 and give {self.num_heads} heads of even width"
            raise ConfigError("dim", self.dim, rule)
        if self.ring_latent_frames < self.latent_frames_per_block or (
            self.ring_latent_frames % self.latent_frames_per_block
        ):
            rule = f"it has to be a multiple of the block, {self.latent_frames_per_block} latent frames"
            raise ConfigError("ring_latent_frames", self.ring_latent_frames, rule)
        layers = self.audio_inject_layers
        if sorted(set(layers)) != list(layers) or not all(0 <= layer < self.num_layers for layer in layers):
            rule = f"it has to ascend within the {self.num_layers} blocks"
            raise ConfigError("audio_inject_layers", layers, rule)
        if (self.text_dim is None) != (self.text_len == 0):
            raise ConfigError("text_len", self.text_len, f"text_dim is {self.text_dim}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads

    @property
    def columns_per_block(self) -> int:
        """Audio feature columns that drive a block."""
        return COLUMNS_PER_LATENT_FRAME * self.latent_frames_per_block

    def sink_tokens(self, token_rows: int, token_columns: int) -> int:
        """Count the tokens of the sink.

        Args:
            token_rows: Rows of tokens of a latent frame.
            token_columns: Columns of tokens of a latent frame.

        Returns:
            N for the reference, and 1.5 N for packed motion (N + N/4 + 4 N/16).
        """
        tokens_per_latent_frame = token_rows * token_columns
        if not self.has_motion_packer:
            return tokens_per_latent_frame
        return 2 * tokens_per_latent_frame + tokens_per_latent_frame // 2
