"""The speech-to-video transformer: noisy latents of one block, sound and memory in, flow velocity out.

One class serves the published 14B model and the embedded one (`DiTConfig`). It holds weights only: whatever belongs to
a stream is an argument. A block of a stream is made so:

    cache = dit.new_cache(...)                            once per stream
    dit.prefill(reference, cache, ...)                    once per portrait
    modulation = dit.modulate(timesteps, motion_signal)   once per block; once for all if there is no motion signal
    conditioning = dit.condition(dit.encode_audio(columns), modulation, first_latent_frame)
    dit.denoise(latents, step, conditioning, cache)       once per step

`forward_clip` is the same computation for a whole clip at one noise level, with gradients: it trains the model.

Shape letters: B batch, T latent frames, C width or channels, L tokens, N tokens of a latent frame, E sink tokens,
V voices, S steps, Y layers, G blocks, F modulation rows (T with a motion signal, else 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.attention import Attention, KeysValues, attend
from pipeline.models.audio_encoder import AudioEncoder, AudioTokens
from pipeline.models.audio_injector import AudioInjector, Injection
from pipeline.models.cache import KVCache
from pipeline.models.clip_attention import attend_clip
from pipeline.models.dit_config import COARSEST_MOTION_PATCH, DiTConfig
from pipeline.models.motion_packer import MotionPacker, PatchEmbedding
from pipeline.models.precision import LAYER_NORM_EPS, Float32Linear, for_bulk, layer_norm, modulate
from pipeline.models.rope import Rotation, make_rotation, rotate

__all__ = ["Block", "Conditioning", "DiT", "Modulation"]

_MAX_PERIOD = 10_000.0
_ROWS_PER_BLOCK = 6
_ROWS_OF_HEAD = 2
_NOISY, _REFERENCE, _MOTION = range(3)

Rows = Sequence[Tensor]
"""Modulation of one block, each (B, F, 1, C): shift, scale, gate of the attention, then of the feed-forward layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """How the timestep (and the motion signal) bend the network, for all steps. Scales have the customary 1 in them."""

    blocks_SY6BF1C: Tensor
    """Six rows per step and layer, float32."""
    head_S2BF1C: Tensor
    """Shift and scale before the head, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """All that a block's steps share and that does not depend on its latents."""

    first_latent_frame: int
    """Index of the block's first latent frame in the stream."""
    reference_position: int
    """Temporal position of the reference."""
    modulation: Modulation
    """Rows of all steps."""
    injections: Sequence[Injection]
    """Keys, values and adaptive norms of the audio, one per injection."""
    pose_C: Tensor
    """What is added to every noisy token: kind of token, and pose; (C,) or (B, L, C)."""


class Block(nn.Module):
    """One transformer block, in two halves: what comes before the attention and what comes after.

    Between the halves the caller decides what may be seen.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, _ROWS_PER_BLOCK, config.dim) / config.dim**0.5)
        self.self_attn = Attention(config.dim, config.num_heads)
        if config.text_dim is not None:
            self.norm3 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
            self.cross_attn = Attention(config.dim, config.num_heads)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(config.gelu), nn.Linear(config.ffn_dim, config.dim)
        )

    def project(self, x_BLC: Tensor, rows: Rows, rotation: Rotation | None = None) -> tuple[Tensor, KeysValues]:
        """Form queries, keys and values.

        Args:
            x_BLC: Tokens, in the compute dtype.
            rows: Modulation of this block.
            rotation: Positions of the tokens; None: nothing is rotated yet.

        Returns:
            Queries, and keys and values, each (B, L, H, D).
        """
        normed_BLC = for_bulk(modulate(layer_norm(x_BLC), rows[0], rows[1]), self.self_attn.q.weight)
        return self.self_attn.project(normed_BLC, rotation)

    def finish(self, x_BLC: Tensor, attended_BLHD: Tensor, rows: Rows, text: KeysValues | None) -> Tensor:
        """Add what was seen, then the text, then the feed-forward layer.

        Args:
            x_BLC: Tokens, in the compute dtype.
            attended_BLHD: Result of the attention.
            rows: Modulation of this block.
            text: Keys and values of the text, for models that know one.

        Returns:
            Tokens for the next block, in the compute dtype. Between the first gate and here they are float32.
        """
        y_BLC = _add_gated(x_BLC, self.self_attn.output(attended_BLHD), rows[2])
        if text is not None:
            y_BLC = y_BLC + self._read_text(y_BLC, text)
        normed_BLC = for_bulk(modulate(layer_norm(y_BLC), rows[3], rows[4]), self.self_attn.q.weight)
        return _add_gated(y_BLC, self.ffn(normed_BLC), rows[5]).to(x_BLC.dtype)

    def _read_text(self, x_BLC: Tensor, text: KeysValues) -> Tensor:
        """Attend to the text. The published weights ran with bfloat16 on both sides of this norm, so it always has."""
        rounded_BLC = x_BLC.bfloat16().float()
        weight, bias = self.norm3.weight.float(), self.norm3.bias.float()
        normed_BLC = F.layer_norm(rounded_BLC, self.norm3.normalized_shape, weight, bias, self.norm3.eps).bfloat16()
        return self.cross_attn.read(self.cross_attn.queries(for_bulk(normed_BLC, self.cross_attn.q.weight)), text)


def _add_gated(x_BLC: Tensor, update_BLC: Tensor, gate_BF1C: Tensor) -> Tensor:
    """Add an update, each latent frame scaled by its gate; float32."""
    num_rows = gate_BF1C.shape[1]
    x, update = x_BLC.unflatten(1, (num_rows, -1)), update_BLC.unflatten(1, (num_rows, -1))
    return torch.addcmul(x, update, gate_BF1C).flatten(1, 2)


class _Head(nn.Module):
    """Last norm and linear layer, in float32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, _ROWS_OF_HEAD, config.dim) / config.dim**0.5)
        self.head = Float32Linear(config.dim, config.patch**2 * config.latent_channels)

    def forward(self, x_BLC: Tensor, rows: Rows) -> Tensor:
        return self.head(modulate(layer_norm(x_BLC), rows[0], rows[1])).to(x_BLC.dtype)  # type: ignore[no-any-return]


class DiT(nn.Module):
    """The network.

    Args:
        config: Sizes and parts.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        patch = (1, config.patch, config.patch)
        self.patch_embedding = PatchEmbedding(config.latent_channels, dim, patch)
        self.trainable_cond_mask = nn.Embedding(3 if config.has_motion_packer else 2, dim)
        if config.has_pose_encoder:
            self.cond_encoder = PatchEmbedding(config.latent_channels, dim, patch)
        if config.has_motion_packer:
            self.frame_packer = MotionPacker(config.latent_channels, dim, config.patch)
        if config.text_dim is not None:
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text_dim, dim), nn.GELU(config.gelu), nn.Linear(dim, dim)
            )
        self.time_embedding = _mlp(config.freq_dim, dim)
        if config.motion_signal_dim:
            self.motion_embedding = _mlp(config.motion_signal_dim, dim)
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, _ROWS_PER_BLOCK * dim))
        self.casual_audio_encoder = AudioEncoder(config)
        self.audio_injector = AudioInjector(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = _Head(config)
        self._initialise()

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype: that of the weights that do the bulk of the work."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    def new_cache(self, *, latent_height: int, latent_width: int, num_steps: int, batch: int = 1) -> KVCache:
        """Allocate the memory of a stream.

        Args:
            latent_height: Rows of a latent frame.
            latent_width: Columns of a latent frame.
            num_steps: Denoising steps.
            batch: Streams in step.

        Returns:
            An empty cache; the sink has to be filled by `prefill`.

        Raises:
            ValueError: The latents do not make whole tokens.
        """
        token_rows, token_columns = self._grid(latent_height, latent_width)
        return KVCache(
            self.config,
            token_rows=token_rows,
            token_columns=token_columns,
            num_steps=num_steps,
            batch=batch,
            dtype=self.dtype,
            device=self.device,
        )

    def encode_audio(self, columns_BSAT: Tensor) -> AudioTokens:
        """Encode audio feature columns, every block by itself.

        Args:
            columns_BSAT: (B, num_audio_layers, audio_dim, T), one column per frame, T of one or more blocks.

        Returns:
            Tokens of T / 4 latent frames, float32.

        Raises:
            ValueError: The columns do not make whole blocks, or there is another number of feature layers.
        """
        return self.casual_audio_encoder(columns_BSAT)  # type: ignore[no-any-return]

    def encode_text(self, text_BLC: Tensor) -> list[KeysValues]:
        """Compute the keys and values of a text, once per prompt.

        Args:
            text_BLC: Rows of the text encoder without padding, (B, at most text_len, text_dim).

        Returns:
            Keys and values, one entry per layer. Padding rows take part: the model was trained so.

        Raises:
            ValueError: The model knows no text, or the text is too long.
        """
        if self.config.text_dim is None:
            raise ValueError("a text was given, but this model knows no text")
        num_rows = text_BLC.shape[1]
        if num_rows > self.config.text_len:
            raise ValueError(f"the text has {num_rows} rows, but the model takes at most {self.config.text_len}")
        padded_BLC = F.pad(text_BLC, (0, 0, 0, self.config.text_len - num_rows)).to(self.dtype)
        context_BLC = self.text_embedding(padded_BLC)
        return [block.cross_attn.keys_values(context_BLC) for block in self._blocks()]

    def prefill(
        self,
        reference_BCHW: Tensor,
        cache: KVCache,
        *,
        motion_BCTHW: Tensor | None = None,
        text: Sequence[KeysValues] | None = None,
    ) -> None:
        """Fill the sink of a cache; its rings are kept, so a reference can be replaced in mid-stream.

        Args:
            reference_BCHW: Latent of the portrait.
            cache: Memory of the stream.
            motion_BCTHW: Past latents, for models with a motion packer.
            text: Result of `encode_text`, for models that know a text.

        Raises:
            ValueError: A part that the model needs is missing, or one that it does not know was given.
        """
        cache.set_sink(self._run_sink(reference_BCHW, motion_BCTHW, text), self._motion_rotation(reference_BCHW))
        cache.text = text

    def modulate(self, timesteps: Sequence[float], motion_signal_BTM: Tensor | None = None) -> Modulation:
        """Compute the modulation rows of a block, for all steps.

        Args:
            timesteps: Noise levels, 0 to 1000, one per step.
            motion_signal_BTM: Motion signal of the block's latent frames, (B, T, motion_signal_dim), for models that
                know one. For the others the result depends on the timesteps alone and serves every block.

        Returns:
            The rows.

        Raises:
            ValueError: The motion signal is missing or not known.
        """
        steps_S = torch.tensor(timesteps, dtype=torch.float64, device=self.device)
        embedding_SBFC = self._embed_time_and_motion(steps_S[:, None, None], motion_signal_BTM)
        rows_S6BF1C = self._project_time(embedding_SBFC)
        own_Y6C = torch.cat([block.modulation for block in self._blocks()])
        blocks_SY6BF1C = rows_S6BF1C[:, None] + own_Y6C[:, :, None, None, None]
        blocks_SY6BF1C[:, :, 1::3] += 1
        return Modulation(blocks_SY6BF1C=blocks_SY6BF1C, head_S2BF1C=self._head_rows(embedding_SBFC))

    def condition(
        self,
        audio: AudioTokens,
        modulation: Modulation,
        first_latent_frame: int,
        *,
        reference_distance: int | None = None,
        pose_BCTHW: Tensor | None = None,
        masks_VN: Tensor | None = None,
    ) -> Conditioning:
        """Compute all that the steps of a block share.

        Args:
            audio: Result of `encode_audio` for the block; with masks, its batch is the speakers of one stream.
            modulation: Result of `modulate` for the block.
            first_latent_frame: Index of the block's first latent frame in the stream.
            reference_distance: How far ahead of it the reference is moved; None: as the model's sizes say.
            pose_BCTHW: Latents of a pose video, for models with a pose encoder.
            masks_VN: Where each of several speakers is heard, 1 or 0 for every token of a latent frame.

        Returns:
            The conditioning.

        Raises:
            ValueError: The pose is not known to the model, or there are not as many masks as speakers.
        """
        if masks_VN is not None and len(masks_VN) != len(audio.local_BTKC):
            raise ValueError(f"{len(masks_VN)} masks were given for {len(audio.local_BTKC)} speakers")
        return Conditioning(
            first_latent_frame=first_latent_frame,
            reference_position=self._reference_position(first_latent_frame, reference_distance),
            modulation=modulation,
            injections=self.audio_injector.condition(audio, self.dtype, masks_VN),
            pose_C=self._noisy_offset(pose_BCTHW),
        )

    def denoise(self, latents_BCTHW: Tensor, step: int, conditioning: Conditioning, cache: KVCache) -> Tensor:
        """Run the network once on a block, and write its keys and values into the step's ring.

        Args:
            latents_BCTHW: Noisy latents of the block, in the compute dtype.
            step: Index of the step: which modulation, and which ring.
            conditioning: Result of `condition`.
            cache: Memory of the stream.

        Returns:
            Velocity (noise minus clean latents), shaped as the latents, in the compute dtype.

        Raises:
            ValueError: The block does not fit the ring.
        """
        first = conditioning.first_latent_frame
        num_latent_frames = latents_BCTHW.shape[2]
        slot = cache.open_block(step, first)
        cache.place_reference(conditioning.reference_position)
        rotation = self._rotation(range(first, first + num_latent_frames), cache.token_rows, cache.token_columns)
        x_BLC = self.patch_embedding(latents_BCTHW) + conditioning.pose_C
        injections = dict(zip(self.config.audio_inject_layers, enumerate(conditioning.injections), strict=True))
        for layer, block in enumerate(self._blocks()):
            rows = conditioning.modulation.blocks_SY6BF1C[step, layer].unbind()
            queries, own = block.project(x_BLC, rows, rotation)
            attended = attend(queries, cache.extend(step, layer, slot, own))
            x_BLC = block.finish(x_BLC, attended, rows, None if cache.text is None else cache.text[layer])
            if layer in injections:
                x_BLC = self.audio_injector(x_BLC, *injections[layer])
        velocity_BLC = self.head(x_BLC, conditioning.modulation.head_S2BF1C[step].unbind())
        return self._unpatch(velocity_BLC, latents_BCTHW)

    def forward_clip(
        self,
        latents_BCTHW: Tensor,
        reference_BCHW: Tensor,
        timestep_B: Tensor,
        audio: Tensor | AudioTokens,
        motion_signal_BTM: Tensor | None = None,
        reference_position: Tensor | int | None = None,
        *,
        motion_BCTHW: Tensor | None = None,
        text: Sequence[KeysValues] | None = None,
    ) -> Tensor:
        """Run the network on a whole clip, as streaming it block by block at one noise level would.

        Works with gradients and under autocast. Blocks that are on the same place of different clips, and blocks of
        one clip whose ring is full, are computed together.

        Args:
            latents_BCTHW: Noisy latents; T a multiple of the block.
            reference_BCHW: Latents of the portraits.
            timestep_B: Noise level of each clip, 0 to 1000.
            audio: Feature columns (B, num_audio_layers, audio_dim, 4T), or their tokens from `encode_audio`.
            motion_signal_BTM: Motion signal of each latent frame, for models that know one.
            reference_position: Temporal position of the reference for all blocks, or one for each (G,); None: ahead
                of each block, as in streaming from latent frame 0 on.
            motion_BCTHW: Past latents, for models with a motion packer.
            text: Result of `encode_text`, for models that know a text.

        Returns:
            Velocity, shaped as the latents.

        Raises:
            ValueError: A part that the model needs is missing, or one that it does not know was given.
        """
        config = self.config
        num_latent_frames = latents_BCTHW.shape[2]
        firsts = range(0, num_latent_frames, config.latent_frames_per_block)
        if num_latent_frames % config.latent_frames_per_block:
            raise ValueError(f"{num_latent_frames} latent frames are no multiple of {config.latent_frames_per_block}")
        tokens = audio if isinstance(audio, AudioTokens) else self.encode_audio(audio)
        injections = self.audio_injector.condition(tokens, self.dtype)
        sink = self._run_sink(reference_BCHW, motion_BCTHW, text)
        sink = self._place_sink(sink, self._positions(reference_position, firsts), reference_BCHW)
        embedding_BFC = self._embed_time_and_motion(timestep_B[:, None], motion_signal_BTM)
        time_6BF1C = self._project_time(embedding_BFC)
        rotation = self._rotation(range(num_latent_frames), *self._grid(*latents_BCTHW.shape[-2:]))
        x_BLC = self.patch_embedding(latents_BCTHW) + self._noisy_offset(None)
        by_block = (len(firsts), -1)
        ordinals = {layer: ordinal for ordinal, layer in enumerate(config.audio_inject_layers)}
        for layer, block in enumerate(self._blocks()):
            rows = _own_rows(time_6BF1C, block.modulation)
            queries, (keys, values) = block.project(x_BLC, rows)
            attended = attend_clip(
                rotate(queries, rotation).unflatten(1, by_block),
                KeysValues(rotate(keys, rotation).unflatten(1, by_block), values.unflatten(1, by_block)),
                sink[layer],
                ring_blocks=config.ring_latent_frames // config.latent_frames_per_block,
            )
            x_BLC = block.finish(x_BLC, attended.flatten(1, 2), rows, None if text is None else text[layer])
            if layer in ordinals:
                x_BLC = self.audio_injector(x_BLC, ordinals[layer], injections[ordinals[layer]])
        return self._unpatch(self.head(x_BLC, self._head_rows(embedding_BFC).unbind()), latents_BCTHW)

    # -- pieces

    def _initialise(self) -> None:
        """Set weights for training: every block starts close to the identity, and the velocity at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, PatchEmbedding):
                nn.init.xavier_uniform_(module.weight.flatten(1))
        nn.init.normal_(self.trainable_cond_mask.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def _blocks(self) -> list[Block]:
        """The blocks, typed."""
        return list(self.blocks)  # type: ignore[arg-type]

    def _grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a latent frame."""
        multiple = self.config.patch * (COARSEST_MOTION_PATCH if self.config.has_motion_packer else 1)
        if latent_height % multiple or latent_width % multiple:
            raise ValueError(
                f"latent frames are {latent_height}x{latent_width}, but both have to be multiples of {multiple}"
            )
        return latent_height // self.config.patch, latent_width // self.config.patch

    def _rotation(self, frames: Sequence[int] | Tensor, token_rows: int, token_columns: int) -> Rotation:
        """Positions of whole latent frames."""
        return make_rotation(
            frames, range(token_rows), range(token_columns), head_dim=self.config.head_dim, device=self.device
        )

    def _motion_rotation(self, latents: Tensor) -> Rotation | None:
        """Positions of the packed motion, for models with a motion packer."""
        if not self.config.has_motion_packer:
            return None
        grid = self._grid(*latents.shape[-2:])
        return self.frame_packer.rotation(*grid, head_dim=self.config.head_dim, device=self.device)

    def _reference_position(self, first_latent_frame: int, distance: int | None = None) -> int:
        """Temporal position of the reference while a block is made."""
        ahead = self.config.reference_distance if distance is None else distance
        return max(self.config.reference_position, first_latent_frame + ahead)

    def _positions(self, given: Tensor | int | None, firsts: Sequence[int]) -> Sequence[int] | Tensor:
        """Temporal position of the reference for each block of a clip."""
        if given is None:
            return [self._reference_position(first) for first in firsts]
        if isinstance(given, int):
            return [given] * len(firsts)
        return given.expand(len(firsts))

    def _noisy_offset(self, pose_BCTHW: Tensor | None) -> Tensor:
        """What is added to noisy tokens. A model with a pose encoder adds its bias even without a pose."""
        kind_C = self.trainable_cond_mask.weight[_NOISY]
        if pose_BCTHW is not None:
            if not self.config.has_pose_encoder:
                raise ValueError("a pose was given, but this model has no pose encoder")
            return self.cond_encoder(pose_BCTHW) + kind_C  # type: ignore[no-any-return]
        if self.config.has_pose_encoder:
            assert self.cond_encoder.bias is not None
            return kind_C + self.cond_encoder.bias
        return kind_C

    def _embed_time(self, timestep: Tensor) -> Tensor:
        """Embed timesteps (...): (..., C), float32."""
        half = self.config.freq_dim // 2
        frequencies = _MAX_PERIOD ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
        angles = timestep.double()[..., None] * frequencies
        return self.time_embedding(torch.cat([angles.cos(), angles.sin()], dim=-1))  # type: ignore[no-any-return]

    def _embed_time_and_motion(self, timestep: Tensor, motion_signal_BTM: Tensor | None) -> Tensor:
        """Embed timesteps (..., 1), and add the motion signal of every latent frame: (..., F, C), float32."""
        expected = self.config.motion_signal_dim
        given = 0 if motion_signal_BTM is None else motion_signal_BTM.shape[-1]
        if given != expected:
            raise ValueError(f"the motion signal has {given} numbers per latent frame, but the model takes {expected}")
        embedding = self._embed_time(timestep)
        if motion_signal_BTM is None:
            return embedding
        return embedding + self.motion_embedding(motion_signal_BTM)  # type: ignore[no-any-return]

    def _project_time(self, embedding: Tensor) -> Tensor:
        """Turn embedded timesteps (..., B, F, C) into six rows for all blocks: (..., 6, B, F, 1, C), float32."""
        rows: Tensor = self.time_projection(embedding).unflatten(-1, (_ROWS_PER_BLOCK, 1, -1))
        return rows.movedim(-3, -5)

    def _head_rows(self, embedding: Tensor) -> Tensor:
        """Shift and scale before the head, from embedded timesteps (..., B, F, C): (..., 2, B, F, 1, C), float32."""
        shift, scale = (embedding[..., None, :] + row for row in self.head.modulation[0])
        return torch.stack([shift, scale + 1], dim=-5)

    def _run_sink(
        self, reference_BCHW: Tensor, motion_BCTHW: Tensor | None, text: Sequence[KeysValues] | None
    ) -> list[KeysValues]:
        """Compute keys (normalised, not rotated) and values of the sink: (B, E, H, D) per layer.

        Sink tokens see only each other, at timestep 0, and are never told of audio.
        """
        if (motion_BCTHW is not None) != self.config.has_motion_packer:
            raise ValueError(
                f"motion latents given: {motion_BCTHW is not None}, motion packer: {self.config.has_motion_packer}"
            )
        if (text is not None) != (self.config.text_dim is not None):
            raise ValueError(f"text given: {text is not None}, model knows text: {self.config.text_dim is not None}")
        rotation = self._sink_rotation(reference_BCHW)
        kinds = self.trainable_cond_mask.weight
        x_BEC = self.patch_embedding(reference_BCHW[:, :, None]) + kinds[_REFERENCE]
        if motion_BCTHW is not None:
            x_BEC = torch.cat([x_BEC, self.frame_packer(motion_BCTHW) + kinds[_MOTION]], dim=1)
        time_6BF1C = self._project_time(self._embed_time(torch.zeros(1, 1, device=x_BEC.device)))
        layers = []
        for layer, block in enumerate(self._blocks()):
            rows = _own_rows(time_6BF1C, block.modulation)
            queries, source = block.project(x_BEC, rows)
            layers.append(source)
            if layer == self.config.num_layers - 1:
                break  # nobody reads what would follow
            rotated = KeysValues(rotate(source.keys_BKHD, rotation), source.values_BKHD)
            attended = attend(rotate(queries, rotation), rotated)
            x_BEC = block.finish(x_BEC, attended, rows, None if text is None else text[layer])
        return layers

    def _sink_rotation(self, reference_BCHW: Tensor) -> Rotation:
        """Positions of the sink's tokens in the prefill."""
        grid = self._grid(*reference_BCHW.shape[-2:])
        reference = self._rotation([self.config.reference_position], *grid)
        motion = self._motion_rotation(reference_BCHW)
        if motion is None:
            return reference
        return Rotation(*(torch.cat(factors) for factors in zip(reference, motion, strict=True)))

    def _place_sink(
        self, layers: Sequence[KeysValues], positions: Sequence[int] | Tensor, reference_BCHW: Tensor
    ) -> list[KeysValues]:
        """Rotate the sink's keys as each block of a clip sees them: (B, G, E, H, D) per layer."""
        rows, columns = self._grid(*reference_BCHW.shape[-2:])
        size = rows * columns
        rotation = Rotation(*(f.unflatten(0, (-1, size)) for f in self._rotation(positions, rows, columns)))
        motion = self._motion_rotation(reference_BCHW)
        placed = []
        for keys_BEHD, values_BEHD in layers:
            keys_BGEHD = rotate(keys_BEHD[:, None, :size], rotation)
            if motion is not None:
                motion_BEHD = rotate(keys_BEHD[:, size:], motion)
                keys_BGEHD = torch.cat([keys_BGEHD, motion_BEHD[:, None].expand(-1, len(positions), -1, -1, -1)], dim=2)
            placed.append(KeysValues(keys_BGEHD, values_BEHD[:, None].expand(-1, len(positions), -1, -1, -1)))
        return placed

    def _unpatch(self, velocity_BLC: Tensor, latents_BCTHW: Tensor) -> Tensor:
        """Lay tokens out as latents; the channel varies fastest within a token."""
        batch, channels, num_latent_frames, height, width = latents_BCTHW.shape
        patch = self.config.patch
        cells = (batch, num_latent_frames, height // patch, width // patch, patch, patch, channels)
        return velocity_BLC.view(cells).permute(0, 6, 1, 2, 4, 3, 5).reshape(latents_BCTHW.shape)


def _own_rows(time_6BF1C: Tensor, modulation_16C: Tensor) -> Rows:
    """Add a block's own modulation to that of the timestep, and 1 to its scales."""
    rows = (time_6BF1C + modulation_16C[0][:, None, None, None]).unbind()
    return tuple(row + 1 if ordinal % 3 == 1 else row for ordinal, row in enumerate(rows))


def _mlp(in_dim: int, dim: int) -> nn.Sequential:
    """Two linear layers in float32."""
    return nn.Sequential(Float32Linear(in_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
