"""Audio enters the video: after some blocks, the tokens of each latent frame attend to its audio tokens.

An adaptive layer norm, shifted and scaled by the global audio vector, stands before the attention. Neither depends on
the latents or the timestep, so both are computed once per block (`condition`) and used by all its steps.

Shape letters: B batch, T latent frames, N tokens of a latent frame, K audio tokens, C width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.attention import Attention, KeysValues
from pipeline.models.audio_encoder import AudioTokens
from pipeline.models.dit_config import DiTConfig
from pipeline.models.precision import for_bulk, layer_norm, modulate

__all__ = ["ADAPTIVE_NORM_EPS", "AudioInjector", "Injection"]

ADAPTIVE_NORM_EPS = 1e-5


class Injection(NamedTuple):
    """What one injection needs to know of the audio."""

    source: KeysValues
    """Keys and values of the audio tokens; batch and latent frames are one dimension."""
    shift_BT1C: Tensor
    """Shift of the adaptive norm."""
    scale_BT1C: Tensor
    """Scale of the adaptive norm, with the customary 1 in it."""


class _AdaptiveNorm(nn.Module):
    """The linear layer behind an adaptive layer norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, global_BT1C: Tensor) -> tuple[Tensor, Tensor]:
        """Give shift and scale, in this order."""
        shift_BT1C, scale_BT1C = self.linear(F.silu(global_BT1C)).chunk(2, dim=-1)
        return shift_BT1C, 1 + scale_BT1C


class AudioInjector(nn.Module):
    """One cross-attention and one adaptive norm for every block that is followed by an injection.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.injector = nn.ModuleList(Attention(config.dim, config.num_heads) for _ in config.audio_inject_layers)
        self.injector_adain_layers = nn.ModuleList(_AdaptiveNorm(config.dim) for _ in config.audio_inject_layers)

    def condition(self, audio: AudioTokens, dtype: torch.dtype) -> list[Injection]:
        """Compute what the injections need of the audio.

        Args:
            audio: Tokens of T latent frames.
            dtype: Compute dtype.

        Returns:
            One entry per injection, in the order of the blocks.
        """
        local_BKC = audio.local_BTKC.flatten(0, 1).to(dtype)
        global_BT1C = audio.global_BT1C.to(dtype)
        return [
            Injection(self._attention(ordinal).keys_values(local_BKC), *norm(global_BT1C))
            for ordinal, norm in enumerate(self.injector_adain_layers)
        ]

    def forward(self, x_BLC: Tensor, ordinal: int, injection: Injection) -> Tensor:
        """Add what the tokens hear.

        Args:
            x_BLC: Tokens of T latent frames.
            ordinal: Which injection this is, in the order of the blocks.
            injection: Its entry from `condition`.

        Returns:
            The tokens, (B, L, C).
        """
        attention = self._attention(ordinal)
        normed_BLC = layer_norm(x_BLC.float(), ADAPTIVE_NORM_EPS)
        modulated_BLC = modulate(normed_BLC, injection.shift_BT1C, injection.scale_BT1C)
        listening_BLC = for_bulk(modulated_BLC, attention.q.weight)
        num_latent_frames = injection.shift_BT1C.shape[:2].numel()
        queries = attention.queries(listening_BLC.reshape(num_latent_frames, -1, x_BLC.shape[-1]))
        return x_BLC + attention.read(queries, injection.source).view(x_BLC.shape)

    def _attention(self, ordinal: int) -> Attention:
        attention = self.injector[ordinal]
        assert isinstance(attention, Attention)
        return attention
