"""What the engine asks of a video VAE. Every VAE here is causal: decoding block by block equals decoding at once.

Shape letters: B batch, C channels, T latent frames, F frames, H and W pixels, h and w latent rows and columns.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

__all__ = ["VideoVAE"]

Portrait = TypeVar("Portrait")
State = TypeVar("State")


class VideoVAE(Protocol[Portrait, State]):
    """Portraits to latents, and latents to frames.

    `Portrait` is what the decoder keeps of a portrait, constant until the portrait changes; `State` is the causal
    context of one stream.
    """

    def encode_portrait(self, image_BCHW: Tensor) -> tuple[Tensor, Portrait]:
        """Encode a still picture.

        Args:
            image_BCHW: RGB, -1 to 1.

        Returns:
            The reference latent, (B, C, 1, h, w), and what the decoder keeps of the picture.
        """

    def new_state(self) -> State:
        """Make the state of a stream that has not begun."""

    def decode(self, latents_BCThw: Tensor, portrait: Portrait, state: State) -> Tensor:
        """Decode the next latent frames of a stream; any number at a time gives the same frames.

        Args:
            latents_BCThw: Clean latents, (B, C, T, h, w).
            portrait: Result of `encode_portrait`.
            state: Context of the stream, updated in place.

        Returns:
            RGB frames, about -1 to 1, float32, (B, F, 3, H, W).
        """
