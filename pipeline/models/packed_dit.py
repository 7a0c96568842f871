"""The transformer in packed layers, for CPUs; applied from outside to a loaded network.

Between the bulk operations everything stays float32, the residual stream included: on a CPU, rounding costs more than
it saves. So the result is a little more exact than that of the plain network in the same dtype.

Shape letters: B batch, T latent frames, N tokens of a latent frame, L tokens, K audio tokens, H heads, D width of a
head, C full width, G projections that are normalised together, P pairs of features that are rotated together, M audio
tokens of all latent frames (T x K), S audio tokens as all heads see them (H x K), V voices.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pipeline.models.attention import Attention, KeysValues, RMSNorm
from pipeline.models.audio_encoder import AudioTokens
from pipeline.models.audio_injector import ADAPTIVE_NORM_EPS, AudioInjector, add_voices
from pipeline.models.dit import Block, DiT
from pipeline.models.motion_packer import PatchEmbedding
from pipeline.models.packed import PackedLinear
from pipeline.models.precision import layer_norm, modulate
from pipeline.models.rope import Rotation

__all__ = ["PackedAttention", "PackedInjector", "pack_dit"]


class PackedAttention(Attention):
    """An attention whose queries, keys and values come from one product and are normalised and rotated together.

    Args:
        plain: The attention; its layers are shared, not copied.
    """

    def __init__(self, plain: Attention) -> None:
        nn.Module.__init__(self)
        self.num_heads = plain.num_heads
        self.q, self.k, self.v, self.o = plain.q, plain.k, plain.v, plain.o
        self.norm_q, self.norm_k = plain.norm_q, plain.norm_k
        self._gains_GC = torch.stack([plain.norm_q.weight, plain.norm_k.weight]).float()
        self._packed_qkv = PackedLinear(plain.q, plain.k, plain.v)
        self._packed_o = PackedLinear(plain.o)

    def project(self, x_BLC: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, KeysValues]:
        """Project tokens that attend to each other; see `Attention.project`."""
        dim = x_BLC.shape[-1]
        qkv = self._packed_qkv(x_BLC)
        raised_BLGC = qkv[..., : 2 * dim].float().unflatten(-1, (2, dim))
        inverse_BLG1 = _inverse_rms(raised_BLGC)
        raised_BLGC *= self._gains_GC
        if rotation is None:
            raised_BLGC *= inverse_BLG1
        else:  # the norm's factor is the same for all features of a token, so it can go with the smaller tensor
            pairs_BLGHP = torch.view_as_complex(raised_BLGC.unflatten(-1, (self.num_heads, -1, 2)))
            pairs_BLGHP *= torch.complex(*rotation)[:, None] * inverse_BLG1[..., None]
        queries, keys = self._split(raised_BLGC.to(x_BLC.dtype)).unbind(2)
        return queries, KeysValues(keys, self._split(qkv[..., 2 * dim :]))

    def output(self, attended_BLHD: Tensor) -> Tensor:
        """Join the heads and project back; see `Attention.output`."""
        tokens_BLC: Tensor = self._packed_o(attended_BLHD.flatten(-2))
        return tokens_BLC


class PackedInjection(NamedTuple):
    """What one injection needs to know of the audio."""

    shift_BT1C: Tensor
    """Shift of the adaptive norm."""
    scale_BT1C: Tensor
    """Scale of the adaptive norm, with the customary 1 in it."""
    keys_TSC: Tensor
    """Keys with the gains of both norms and the attention's scale in them, zero outside their own head."""
    values_TSC: Tensor
    """Values as they leave the attention's output projection, its bias included."""
    masks_VN: Tensor | None
    """Where each of several speakers is heard; None: one is, everywhere."""


class PackedInjector(nn.Module):
    """An audio injector that takes what does not depend on the video out of the steps.

    A latent frame has a handful of audio tokens and hundreds of its own: it is far cheaper to project the values of the
    former back than the mixtures of the latter, and a product with all heads' keys at once than attention head by head.

    Args:
        plain: The injector; its layers are shared, not copied.
    """

    def __init__(self, plain: AudioInjector) -> None:
        super().__init__()
        pairs = zip(plain.injector, plain.injector_adain_layers, strict=True)
        self._listeners = [_Listener(cast(Attention, attention), norm) for attention, norm in pairs]

    def condition(
        self, audio: AudioTokens, dtype: torch.dtype, masks_VN: Tensor | None = None
    ) -> list[PackedInjection]:
        """Compute what the injections need of the audio; see `AudioInjector.condition`."""
        masks_VN = None if masks_VN is None else masks_VN.float()
        local_TKC = audio.local_BTKC.flatten(0, 1).to(dtype)
        global_BT1C = audio.global_BT1C.to(dtype)
        return [listener.condition(local_TKC, global_BT1C, masks_VN) for listener in self._listeners]

    def forward(self, x_BLC: Tensor, ordinal: int, injection: PackedInjection) -> Tensor:
        """Add what the tokens hear; see `AudioInjector.forward`."""
        return self._listeners[ordinal].listen(x_BLC, injection)


class _Listener:
    """One injection."""

    def __init__(self, attention: Attention, norm: nn.Module) -> None:
        self._norm = norm
        self._heads = (attention.num_heads, -1)
        self._dtype = attention.q.weight.dtype
        self._packed_q, self._packed_kv = PackedLinear(attention.q), PackedLinear(attention.k, attention.v)
        head_dim = attention.q.out_features // attention.num_heads
        self._gains_C = attention.norm_q.weight.float() * attention.norm_k.weight.float() * head_dim**-0.5
        self._weight_HDC = attention.o.weight.float().T.unflatten(0, self._heads).contiguous()
        self._bias_C = attention.o.bias.float() / attention.num_heads  # a token's shares sum to 1 in every head
        self._own_head_H1H1 = torch.eye(attention.num_heads)[:, None, :, None]

    def condition(self, local_TKC: Tensor, global_BT1C: Tensor, masks_VN: Tensor | None) -> PackedInjection:
        keys_TKC, values_TKC = self._packed_kv(local_TKC).float().chunk(2, dim=-1)
        keys_TKHD = (keys_TKC * _inverse_rms(keys_TKC) * self._gains_C).unflatten(-1, self._heads)
        keys_THKHD = keys_TKHD.transpose(1, 2)[..., None, :] * self._own_head_H1H1
        values_HMD = values_TKC.flatten(0, 1).unflatten(-1, self._heads).transpose(0, 1)
        values_HMC = torch.matmul(values_HMD, self._weight_HDC) + self._bias_C
        values_THKC = values_HMC.unflatten(1, (len(local_TKC), -1)).transpose(0, 1)
        shift_BT1C, scale_BT1C = self._norm(global_BT1C)
        keys_TSC, values_TSC = keys_THKHD.flatten(3).flatten(1, 2), values_THKC.flatten(1, 2)
        return PackedInjection(shift_BT1C, scale_BT1C, keys_TSC, values_TSC, masks_VN)

    def listen(self, x_BLC: Tensor, injection: PackedInjection) -> Tensor:
        shift_BT1C, scale_BT1C, keys_TSC, values_TSC, masks_VN = injection
        modulated_BLC = modulate(layer_norm(x_BLC, ADAPTIVE_NORM_EPS), shift_BT1C, scale_BT1C)
        queries_TNC = self._packed_q(modulated_BLC.to(self._dtype)).float().view(len(keys_TSC), -1, x_BLC.shape[-1])
        scores_TSN = torch.bmm(keys_TSC, queries_TNC.mT) * _inverse_rms(queries_TNC).mT
        # the softmax of a dimension that is not the last one is eight times as fast where that dimension is short
        shares_TSN = scores_TSN.unflatten(1, self._heads).softmax(2).flatten(1, 2)
        if masks_VN is not None:
            heard_VLC = torch.bmm(shares_TSN.mT, values_TSC).view(-1, *x_BLC.shape[1:])
            return add_voices(x_BLC, heard_VLC, masks_VN)
        return torch.baddbmm(x_BLC.view(queries_TNC.shape), shares_TSN.mT, values_TSC).view(x_BLC.shape)


def _inverse_rms(x: Tensor) -> Tensor:
    """One over the root mean square of the last dimension, which stays, with size 1."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(length.square() / x.shape[-1] + RMSNorm.EPS)


class _RaisedPatchEmbedding(nn.Module):
    """A patch embedding whose tokens start the residual stream in float32.

    Args:
        plain: The embedding.
    """

    def __init__(self, plain: PatchEmbedding) -> None:
        super().__init__()
        self.plain = plain
        self.weight = plain.weight

    def forward(self, latents_BCTHW: Tensor) -> Tensor:
        return self.plain(latents_BCTHW).float()  # type: ignore[no-any-return]


def pack_dit(dit: DiT) -> None:
    """Replace a transformer's bulk layers by packed ones.

    Args:
        dit: The network, on the CPU, its dtype settled; changed in place.
    """
    dit.patch_embedding = _RaisedPatchEmbedding(dit.patch_embedding)  # type: ignore[assignment]
    dit.audio_injector = PackedInjector(dit.audio_injector)  # type: ignore[assignment]
    for block in dit.blocks:
        assert isinstance(block, Block)
        block.self_attn = PackedAttention(block.self_attn)
        widen, _, narrow = cast("tuple[nn.Linear, nn.GELU, nn.Linear]", block.ffn)
        block.ffn = nn.Sequential(PackedLinear(widen, gelu=dit.config.gelu), PackedLinear(narrow))
