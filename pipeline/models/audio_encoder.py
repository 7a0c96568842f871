"""Audio feature columns of a block -> a few tokens per latent frame.

Each block is encoded in isolation: its first column is repeated once in front, four latent frames come out, and the
first is dropped. A latent frame hears its own columns and the earlier ones of its block, never later ones. Everything
runs in float32. (The misspelt parameter name `casual_audio_encoder` is the published one.)

Shape letters: B batch, S feature layers, A width of a column, T columns or latent frames, K audio tokens, C width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.dit_config import DiTConfig
from pipeline.models.precision import Float32Conv1d, Float32Linear, layer_norm

__all__ = ["AudioEncoder", "AudioTokens"]


class AudioTokens(NamedTuple):
    """What a block hears, as the transformer takes it."""

    local_BTKC: Tensor
    """Tokens to attend to: `num_audio_tokens` and one learned padding token per latent frame."""
    global_BT1C: Tensor
    """One vector per latent frame, for the adaptive norm before the attention."""


class _CausalConv1d(nn.Module):
    """A convolution of width 3 over time that repeats the first column to its left and looks at none to its right."""

    WIDTH = 3

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = Float32Conv1d(in_channels, out_channels, self.WIDTH, stride=stride)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCT, (self.WIDTH - 1, 0), mode="replicate"))  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    """The convolutions: a local path with several tokens per latent frame, and a global one with one vector.

    Both share the two convolutions that halve the rate.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, quarter = config.dim, config.dim // 4
        self.num_tokens = config.num_audio_tokens
        self.conv1_local = _CausalConv1d(config.audio_dim, quarter * self.num_tokens)
        self.conv1_global = _CausalConv1d(config.audio_dim, quarter)
        self.conv2 = _CausalConv1d(quarter, dim // 2, stride=2)
        self.conv3 = _CausalConv1d(dim // 2, dim, stride=2)
        self.final_linear = Float32Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, columns_BCT: Tensor) -> AudioTokens:
        grouped = self.conv1_local(columns_BCT).unflatten(1, (self.num_tokens, -1))
        local_BTKC = self._halve_twice(grouped.flatten(0, 1)).unflatten(0, (-1, self.num_tokens)).transpose(1, 2)
        padding_BTKC = self.padding_tokens.float().expand(*local_BTKC.shape[:2], 1, -1)
        global_BTC = self.final_linear(self._halve_twice(self.conv1_global(columns_BCT)))
        return AudioTokens(torch.cat([local_BTKC, padding_BTKC], dim=2), global_BTC[:, :, None])

    def _halve_twice(self, x_BCT: Tensor) -> Tensor:
        """Normalise, then two convolutions with stride 2: (B, C / 4, 4T - 3) -> (B, T, C)."""
        x_BCT = self.conv2(_normed(x_BCT).transpose(1, 2))
        x_BCT = self.conv3(_normed(x_BCT).transpose(1, 2))
        return _normed(x_BCT)


def _normed(x_BCT: Tensor) -> Tensor:
    """Layer norm and SiLU, channels last: (B, T, C)."""
    return F.silu(layer_norm(x_BCT.transpose(1, 2)))


class AudioEncoder(nn.Module):
    """Mixes the feature layers and encodes every block by itself.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.columns_per_block = config.columns_per_block
        if config.num_audio_layers > 1:
            self.weights = nn.Parameter(torch.ones(1, config.num_audio_layers, 1, 1))
        self.num_layers = config.num_audio_layers
        self.encoder = _Encoder(config)

    def forward(self, columns_BSAT: Tensor) -> AudioTokens:
        """Encode the columns of one or more blocks.

        Args:
            columns_BSAT: Feature columns, one per frame; T a multiple of the columns of a block.

        Returns:
            Tokens of T / 4 latent frames, float32.

        Raises:
            ValueError: The columns do not make whole blocks, or there is another number of feature layers.
        """
        num_layers, num_columns = columns_BSAT.shape[1], columns_BSAT.shape[-1]
        if num_layers != self.num_layers or num_columns == 0 or num_columns % self.columns_per_block:
            raise ValueError(
                f"{num_layers} layers x {num_columns} audio columns were given, but the model takes {self.num_layers} "
                f"layers and {self.columns_per_block} columns per block"
            )
        blocks_BCT = self._mix(columns_BSAT).unflatten(-1, (-1, self.columns_per_block)).transpose(1, 2).flatten(0, 1)
        tokens = self.encoder(torch.cat([blocks_BCT[..., :1], blocks_BCT], dim=-1))
        batch = columns_BSAT.shape[0]
        return AudioTokens(*(part[:, 1:].unflatten(0, (batch, -1)).flatten(1, 2) for part in tokens))

    def _mix(self, columns_BSAT: Tensor) -> Tensor:
        """Weigh the feature layers: (B, A, T), float32."""
        if self.num_layers == 1:
            return columns_BSAT[:, 0].float()
        shares = F.silu(self.weights)
        return (columns_BSAT * shares.to(columns_BSAT.dtype)).float().sum(1) / shares.float().sum()
