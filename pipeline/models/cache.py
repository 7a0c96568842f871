"""What a stream remembers: keys and values of the sink and of the last latent frames.

One buffer holds, for every step and layer, [sink | ring] one after the other, so that attention reads a prefix of it:
nothing is concatenated and nothing grows. Every step has a ring of its own, with keys and values at that step's noise
level. The sink is the same for all steps; it is copied into each step's buffer, because a copy per prefill (and, of the
reference's keys, per block) costs far less than gathering two places in every attention, and the memory is small
beside the rings.

The sink's keys are kept unrotated where their position changes: the reference moves along ahead of the video
(`place_reference`). Ring keys are stored rotated.

Shape letters: S steps, Y layers, B batch, K keys, N tokens of a latent frame, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pipeline.models.attention import KeysValues
from pipeline.models.dit_config import DiTConfig
from pipeline.models.rope import Rotation, make_rotation, rotate

__all__ = ["KVCache", "RingSlot"]


class RingSlot(NamedTuple):
    """Where a block's keys go, and how far its attention reads: indices of tokens in the buffer."""

    start: int
    """First token of the block."""
    stop: int
    """End of the block."""
    attended: int
    """End of what may be read."""


class KVCache:
    """Keys and values of one stream, or of several in step (batch). Updated in place.

    Args:
        config: Sizes of the model.
        token_rows: Rows of tokens of a latent frame.
        token_columns: Columns of tokens of a latent frame.
        num_steps: Denoising steps, and so rings.
        batch: Streams in step.
        dtype: Compute dtype of the model.
        device: Where the model is.
    """

    def __init__(
        self,
        config: DiTConfig,
        *,
        token_rows: int,
        token_columns: int,
        num_steps: int,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.token_rows = token_rows
        self.token_columns = token_columns
        self.text: Sequence[KeysValues] | None = None
        """Keys and values of the text, one entry per layer; None where the model knows no text."""
        self._tokens_per_latent_frame = token_rows * token_columns
        self._sink_tokens = config.sink_tokens(token_rows, token_columns)
        num_tokens = self._sink_tokens + config.ring_latent_frames * self._tokens_per_latent_frame
        heads = (config.num_heads, config.head_dim)
        shape = (num_steps, config.num_layers, batch, num_tokens, *heads)
        self._keys_SYBKHD = torch.zeros(shape, dtype=dtype, device=device)
        self._values_SYBKHD = torch.zeros(shape, dtype=dtype, device=device)
        reference_shape = (config.num_layers, batch, self._tokens_per_latent_frame, *heads)
        self._reference_keys_YBNHD = torch.zeros(reference_shape, dtype=dtype, device=device)
        self._reference_position: int | None = None
        self._filled_latent_frames = [0] * num_steps

    @property
    def num_steps(self) -> int:
        """Number of rings."""
        return len(self._filled_latent_frames)

    @property
    def batch(self) -> int:
        """Streams in step."""
        return self._keys_SYBKHD.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(
            part.numel() * part.element_size()
            for part in (self._keys_SYBKHD, self._values_SYBKHD, self._reference_keys_YBNHD)
        )

    def set_sink(self, layers: Sequence[KeysValues], motion_rotation: Rotation | None) -> None:
        """Store the sink, for all steps. The rings are kept.

        Args:
            layers: Keys (normalised, not rotated) and values of the sink's tokens, one entry per layer.
            motion_rotation: Positions of the tokens after the reference's; None if there are none.
        """
        size = self._tokens_per_latent_frame
        for layer, (keys_BKHD, values_BKHD) in enumerate(layers):
            self._values_SYBKHD[:, layer, :, : self._sink_tokens] = values_BKHD
            self._reference_keys_YBNHD[layer] = keys_BKHD[:, :size]
            if motion_rotation is not None:
                self._keys_SYBKHD[:, layer, :, size : self._sink_tokens] = rotate(keys_BKHD[:, size:], motion_rotation)
        self._reference_position = None

    def place_reference(self, position: int) -> None:
        """Move the reference to a temporal position, for all steps.

        Args:
            position: Temporal position, in latent frames.
        """
        if position == self._reference_position:
            return
        rotation = make_rotation(
            [position],
            range(self.token_rows),
            range(self.token_columns),
            head_dim=self.config.head_dim,
            device=self._keys_SYBKHD.device,
        )
        rotated = rotate(self._reference_keys_YBNHD, rotation)
        self._keys_SYBKHD[:, :, :, : self._tokens_per_latent_frame] = rotated
        self._reference_position = position

    def open_block(self, step: int, first_latent_frame: int) -> RingSlot:
        """Find the place of a block in a ring.

        Args:
            step: Which ring.
            first_latent_frame: Index of the block's first latent frame in the stream.

        Returns:
            Its slot.

        Raises:
            ValueError: The block would leave a hole in the ring, or is not on the grid of blocks.
        """
        config = self.config
        if first_latent_frame % config.latent_frames_per_block:
            raise ValueError(
                f"first_latent_frame is {first_latent_frame}, but it has to be a multiple of "
                f"{config.latent_frames_per_block}"
            )
        slot = first_latent_frame % config.ring_latent_frames
        filled = self._filled_latent_frames[step]
        if slot > filled:
            raise ValueError(
                f"latent frame {first_latent_frame} has place {slot} in ring {step}, but only {filled} are filled"
            )
        filled = max(filled, slot + config.latent_frames_per_block)
        self._filled_latent_frames[step] = filled
        start, stop, attended = (
            self._sink_tokens + latent_frames * self._tokens_per_latent_frame
            for latent_frames in (slot, slot + config.latent_frames_per_block, filled)
        )
        return RingSlot(start, stop, attended)

    def extend(self, step: int, layer: int, slot: RingSlot, block: KeysValues) -> KeysValues:
        """Write a block's keys and values, and give all that the block may attend to.

        Args:
            step: Which ring.
            layer: Which layer.
            slot: The block's place, from `open_block`.
            block: Its rotated keys and its values.

        Returns:
            Views of the sink and the ring's filled part.
        """
        keys_BKHD, values_BKHD = self._keys_SYBKHD[step, layer], self._values_SYBKHD[step, layer]
        keys_BKHD[:, slot.start : slot.stop] = block.keys_BKHD
        values_BKHD[:, slot.start : slot.stop] = block.values_BKHD
        return KeysValues(keys_BKHD[:, : slot.attended], values_BKHD[:, : slot.attended])

    def copy_block(self, from_step: int, to_step: int, first_latent_frame: int) -> None:
        """Give a ring another ring's block: for steps that were skipped, so that their past has no stale block.

        Args:
            from_step: Ring of the last step that ran.
            to_step: Ring of the skipped step.
            first_latent_frame: Index of the block's first latent frame in the stream.

        Raises:
            ValueError: As in `open_block`.
        """
        slot = self.open_block(to_step, first_latent_frame)
        for buffer in (self._keys_SYBKHD, self._values_SYBKHD):
            buffer[to_step, :, :, slot.start : slot.stop] = buffer[from_step, :, :, slot.start : slot.stop]

    def clear_rings(self) -> None:
        """Forget the video, for a new stream; the sink stays."""
        self._filled_latent_frames = [0] * self.num_steps
