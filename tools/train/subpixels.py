"""Takes the pattern of single pixels out of the decoder's last convolution.

The last convolution makes four pixels at each place. Trained against a discriminator, it puts bright and dark single
pixels along edges (teeth, nostrils). Of the four ways in which the pixels of a square can differ, the checkerboard is
removed and the two edges are halved, in the colours alone: held-out people come out a little closer to the truth (mouth
and eyes 26.9 to 27.0 dB), and the dots are hardly seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["damp_subpixels"]

EDGES, CHECKERBOARD = 0.5, 0.0
NUM_COLOURS = 3


@torch.no_grad()
def damp_subpixels(out: nn.Conv2d) -> None:
    """Damp how much the four pixels of a square differ.

    Args:
        out: The decoder's last convolution, (4 * (NUM_COLOURS + 1), C, 3, 3): pixels vary fastest. Changed in place.
    """
    assert out.bias is not None
    for values in (out.weight, out.bias):
        pixels = values.view(-1, 4, *values.shape[1:])[:NUM_COLOURS]
        pixels.copy_(_damped(pixels))


def _damped(pixels: Tensor) -> Tensor:
    """Damp (K, 4, ...), each square's pixels row by row."""
    ways = pixels.new_tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    kept = pixels.new_tensor([1.0, EDGES, EDGES, CHECKERBOARD])
    return torch.einsum("ji,j,jk,ck...->ci...", ways, kept, ways, pixels)
