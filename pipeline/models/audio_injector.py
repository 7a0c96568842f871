"""Audio enters the video: after some blocks, the tokens of each latent frame attend to its audio tokens.

An adaptive layer norm, shifted and scaled by the global audio vector, stands before the attention. Neither depends on
the latents or the timestep, so both are computed once per block (`condition`) and used by all its steps.

Several speakers in one picture have audio tokens of their own each. The tokens of the picture then listen to every
speaker separately, and keep what they hear of those whose mask they are under.

Shape letters: B batch, V voices of one stream (in place of the batch), T latent frames, N tokens of a latent frame,
L tokens of all of them, K audio tokens, C width.
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

__all__ = ["ADAPTIVE_NORM_EPS", "AudioInjector", "Injection", "add_voices"]

ADAPTIVE_NORM_EPS = 1e-5


class Injection(NamedTuple):
    """What one injection needs to know of the audio."""

    source: KeysValues
    """Keys and values of the audio tokens; batch and latent frames are one dimension."""
    shift_BT1C: Tensor
    """Shift of the adaptive norm."""
    scale_BT1C: Tensor
    """Scale of the adaptive norm, with the customary 1 in it."""
    masks_VN: Tensor | None = None
    """Where each of several speakers is heard: 1 or 0 for every token of a latent frame; None: one is, everywhere."""


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

    def condition(self, audio: AudioTokens, dtype: torch.dtype, masks_VN: Tensor | None = None) -> list[Injection]:
        """Compute what the injections need of the audio.

        Args:
            audio: Tokens of T latent frames; with masks, of the speakers of one stream in place of the batch.
            dtype: Compute dtype.
            masks_VN: Where each of several speakers is heard, 1 or 0; None: one speaker per stream.

        Returns:
            One entry per injection, in the order of the blocks.
        """
        masks_VN = None if masks_VN is None else masks_VN.to(audio.local_BTKC.device, dtype)
        local_BKC = audio.local_BTKC.flatten(0, 1).to(dtype)
        global_BT1C = audio.global_BT1C.to(dtype)
        injections = []
        for ordinal, norm in enumerate(self.injector_adain_layers):
            shift_BT1C, scale_BT1C = norm(global_BT1C)
            source = self._attention(ordinal).keys_values(local_BKC)
            injections.append(Injection(source, shift_BT1C, scale_BT1C, masks_VN))
        return injections

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
        heard_BLC = attention.read(queries, injection.source).view(-1, *x_BLC.shape[1:])
        if injection.masks_VN is not None:
            return add_voices(x_BLC, heard_BLC, injection.masks_VN)
        return x_BLC + heard_BLC

    def _attention(self, ordinal: int) -> Attention:
        attention = self.injector[ordinal]
        assert isinstance(attention, Attention)
        return attention


def add_voices(x_1LC: Tensor, heard_VLC: Tensor, masks_VN: Tensor) -> Tensor:
    """Add what the tokens of one stream hear of several speakers, each under its mask.

    Args:
        x_1LC: Tokens of T latent frames.
        heard_VLC: What they would hear if each speaker were alone.
        masks_VN: 1 or 0, the same for all latent frames.

    Returns:
        The tokens, (1, L, C).
    """
    assert len(x_1LC) == 1, "several speakers belong to one stream"
    masked_VTNC: Tensor = heard_VLC.unflatten(1, (-1, masks_VN.shape[1])) * masks_VN[:, None, :, None]
    return x_1LC + masked_VTNC.sum(0).flatten(0, 1)
