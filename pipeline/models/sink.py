"""Whom a stream shows and what it was told: what its sink is made of, and when that is made anew.

The sink of the published model holds the reference, the past and (through them) the text. It is computed before the
first block; once more before the fifth, with the first latent frame that the stream itself made in place of the
portrait, so that what follows looks like what was before; and whenever the portrait or the text changes.

Shape letters: B batch, C channels, T latent frames, h and w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.geometry import BLOCKS_PER_CLIP
from pipeline.models.attention import KeysValues
from pipeline.models.cache import KVCache
from pipeline.models.dit import DiT
from pipeline.models.wan_vae import StillPortrait

__all__ = ["StreamSink"]


class StreamSink:
    """Keeps the sink of one stream up to date.

    For every block of the stream, in this order:

        sink.before_block()
        latents = sample_block(...)
        sink.after_block(latents)

    Changes in between take effect at the next `before_block`, all of them in one prefill.

    Args:
        dit: The network.
        cache: Memory of the stream.
        portrait: What the stream starts from.
        text: Result of `DiT.encode_text`, for models that know a text.
        refreshes: Whether the stream's own first latent frame takes the portrait's place after four blocks, as in the
            published pipeline with one step per device. The one on a single device leaves the portrait.
    """

    def __init__(
        self,
        dit: DiT,
        cache: KVCache,
        *,
        portrait: StillPortrait,
        text: Sequence[KeysValues] | None,
        refreshes: bool = True,
    ) -> None:
        self._dit = dit
        self._cache = cache
        self._motion_BCThw = portrait.motion_BCThw
        self._reference_BCThw = portrait.reference_BCThw
        self._text = text
        self._refreshes = refreshes
        self._own_first_BCThw: Tensor | None = None
        self._num_blocks = 0
        self._is_stale = True

    def set_portrait(self, portrait: StillPortrait) -> None:
        """Show another portrait from the next block on.

        It stays the reference for good: the latent frames that follow still carry the one before, through the rings,
        so none of them may take its place.

        Args:
            portrait: The portrait.
        """
        self._motion_BCThw, self._reference_BCThw = portrait.motion_BCThw, portrait.reference_BCThw
        self._refreshes = False
        self._own_first_BCThw = None
        self._is_stale = True

    def set_text(self, text: Sequence[KeysValues]) -> None:
        """Follow another text from the next block on; whom the video is of does not change.

        Args:
            text: Result of `DiT.encode_text`.
        """
        self._text = text
        self._is_stale = True

    def before_block(self) -> bool:
        """Bring the sink up to date. The rings are kept.

        Returns:
            Whether it was computed anew, which takes about as long as a step.
        """
        if self._num_blocks == BLOCKS_PER_CLIP and self._own_first_BCThw is not None:
            self._reference_BCThw = self._own_first_BCThw
            self._own_first_BCThw = None
            self._is_stale = True
        if not self._is_stale:
            return False
        reference_BChw = self._reference_BCThw[:, :, 0]
        self._dit.prefill(reference_BChw, self._cache, motion_BCTHW=self._motion_BCThw, text=self._text)
        self._is_stale = False
        return True

    def after_block(self, latents_BCThw: Tensor) -> None:
        """Take note of a block that was made; the first one is the source of the later reference.

        Args:
            latents_BCThw: Clean latents of the block.
        """
        if self._num_blocks == 0 and self._refreshes:
            self._own_first_BCThw = latents_BCThw[:, :, :1].clone()
        self._num_blocks += 1
