"""Figures about moving faces, as pure functions of curves and pictures. Times are in frames of 40 ms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "block_jump_ratio",
    "border_ratio",
    "change_by_place",
    "closure_opening",
    "closure_rate",
    "correlation",
    "lag_correlations",
    "motion_ratio",
    "peak_lag",
    "picture_similarity",
    "psnr_db",
    "quantiles",
]

Array = NDArray[np.float32] | NDArray[np.float64]


def correlation(a: Array, b: Array) -> float:
    """Pearson's correlation of two curves of one length; 0 where one of them is flat."""
    if len(a) < 2 or np.std(a) < 1e-9 or np.std(b) < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def lag_correlations(motion: Array, target: Array, max_lag: int = 8) -> dict[int, float]:
    """Correlate a motion with what it should follow, for each lag.

    Args:
        motion: Measured curve, (num_frames,).
        target: Wanted curve, (num_frames,).
        max_lag: Largest lag either way, less than `num_frames`.

    Returns:
        Correlation by lag. A motion that comes late has its peak at a positive lag.
    """
    count = len(target)
    return {
        lag: correlation(motion[max(0, lag) : count + min(0, lag)], target[max(0, -lag) : count - max(0, lag)])
        for lag in range(-max_lag, max_lag + 1)
    }


def peak_lag(curve: dict[int, float]) -> int:
    """Return the lag of the largest correlation; of equals, the one nearest to 0."""
    return max(curve, key=lambda lag: (curve[lag], -abs(lag)))


def closure_rate(opening: Array, closures: Sequence[tuple[int, int]], *, part: float = 0.15) -> float:
    """Share of labelled closures in which the lips meet.

    Args:
        opening: Lip opening, (num_frames,).
        closures: First and last frame of each closure; one frame of tolerance is given on both sides.
        part: Closed means at most this part of the way from the smallest opening (2nd percentile) to a wide one (95th).

    Returns:
        0 to 1, and nan without closures.
    """
    if not closures:
        return float("nan")
    return float(np.mean([smallest <= part for smallest in _smallest_openings(opening, closures)]))


def closure_opening(opening: Array, closures: Sequence[tuple[int, int]]) -> float:
    """Mean of the smallest openings in labelled closures: 0 closed, 1 wide open; same tolerance, nan without any."""
    return float(np.mean(_smallest_openings(opening, closures))) if closures else float("nan")


def _smallest_openings(opening: Array, closures: Sequence[tuple[int, int]]) -> list[float]:
    low, high = np.quantile(opening, [0.02, 0.95])
    reach = max(float(high - low), 1e-12)
    return [float(opening[max(0, first - 1) : last + 2].min() - low) / reach for first, last in closures]


def motion_ratio(opening: Array, is_silent: NDArray[np.bool_], averaged_frames: int = 1) -> float:
    """Mouth motion in silence, relative to that in speech (mean absolute change per frame).

    Args:
        opening: Lip opening, (num_frames,).
        is_silent: Whether each frame is in silence, (num_frames,); a change counts where all of its frames agree.
        averaged_frames: Openings are averaged over so many frames first. Lips move for longer than a frame, the
            tracker's noise differs from frame to frame: averaging takes more of the noise than of the motion.

    Returns:
        The ratio; nan if there is no silence or no speech.
    """
    change = np.abs(np.diff(np.convolve(opening, np.full(averaged_frames, 1 / averaged_frames), "valid")))
    near = np.lib.stride_tricks.sliding_window_view(is_silent, averaged_frames + 1)
    silent, spoken = near.all(1), ~near.any(1)
    if not silent.any() or not spoken.any():
        return float("nan")
    return float(change[silent].mean() / max(float(change[spoken].mean()), 1e-12))


def border_ratio(differences: Array, frames_per_part: int, is_counted: NDArray[np.bool_] | None = None) -> float:
    """Change of the picture across the borders of parts (blocks, latent frames), relative to that inside them.

    Args:
        differences: Mean absolute difference of frame `i + 1` and frame `i`, (num_frames - 1,).
        frames_per_part: Frames per part; frame 0 begins one.
        is_counted: Which differences count, (num_frames - 1,); all if None.

    Returns:
        The ratio of the means; 1 means that borders cannot be seen.
    """
    counted = np.ones(len(differences), bool) if is_counted is None else is_counted
    is_border = (np.arange(len(differences)) + 1) % frames_per_part == 0
    return float(np.mean(differences[counted & is_border]) / np.mean(differences[counted & ~is_border]))


def change_by_place(differences: Array, frames_per_part: int) -> list[float]:
    """Change of the picture at each place of a part, relative to the mean; the first is that across the border.

    Args:
        differences: Mean absolute difference of frame `i + 1` and frame `i`, (num_frames - 1,).
        frames_per_part: Frames per part; frame 0 begins one.

    Returns:
        As many numbers as a part has frames, about 1 each in even motion.
    """
    place = (np.arange(len(differences)) + 1) % frames_per_part
    return [float(differences[place == k].mean() / differences.mean()) for k in range(frames_per_part)]


def block_jump_ratio(jumps: Array, frames_per_block: int) -> float:
    """Jumps of the picture at block borders, relative to those inside blocks. Steady motion makes no jump.

    Args:
        jumps: What the change from frame `i + 1` to frame `i + 2` has beyond the mean of the changes before and after
            it, (num_frames - 3,).
        frames_per_block: Frames per block; frame 0 begins one.

    Returns:
        The ratio of the means; 1 means that borders cannot be seen. A jump echoes in both neighbours, which are left
        out.
    """
    place = (np.arange(len(jumps)) + 2) % frames_per_block
    return float(np.mean(jumps[place == 0]) / np.mean(jumps[(place > 1) & (place < frames_per_block - 1)]))


def psnr_db(picture: NDArray[np.uint8], truth: NDArray[np.uint8], weight: Array | None = None) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures.

    Args:
        picture: (..., height_px, width_px, 3).
        truth: Of the same shape.
        weight: Weight of each pixel, (..., height_px, width_px); all count the same if None.

    Returns:
        Decibels; infinite for equal pictures.
    """
    squared = ((picture.astype(np.float64) - truth.astype(np.float64)) ** 2).mean(-1)
    error = float(np.average(squared, weights=weight))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def picture_similarity(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Compare two aligned pictures of faces, whatever their brightness and contrast: 1 is the same, 0 unrelated."""
    return correlation(a.reshape(-1), b.reshape(-1))


def quantiles(values: Sequence[float] | Array) -> dict[str, float]:
    """Summarise: median, 99th percentile and mean."""
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99), "mean": float(np.mean(values))}
