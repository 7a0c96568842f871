"""A render farm without rendering: clips are numbers, and the test says when they are ready."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tools.train.farm import FILLED, FREE, ClipShape


class FakeFarm:
    """Slots that the test fills; everything in a clip is its number.

    Args:
        shape: Size of the clips.
        num_slots: How many there are.
    """

    def __init__(self, shape: ClipShape, num_slots: int) -> None:
        self.arrays: dict[str, NDArray[np.generic]] = {
            name: np.zeros((num_slots, *part), dtype) for name, (part, dtype) in shape.arrays.items()
        }
        self.num_made = 0

    def make(self, slot: int) -> None:
        """Fill a slot with the next clip."""
        for name in ("frames", "motion", "visemes", "landmarks", "audio"):
            self.arrays[name][slot] = self.num_made
        self.arrays["state"][slot] = FILLED
        self.num_made += 1

    def filled(self) -> NDArray[np.int64]:
        """Look for slots that hold a clip not yet taken."""
        return np.flatnonzero(self.arrays["state"] == FILLED)

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self.arrays["state"][slot] = FREE
