"""How heavy a window may be on this machine: found by measuring, lighter and lighter until the pace holds.

What is given up, the least visible first: the cores kept free for the rest of the server, where they make it faster,
then denoising steps, then picture size (with all steps again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.worker.model import WarmTimes

__all__ = ["Leeway", "Load", "choose_precision", "lighter_loads", "settle"]

BF16_GAIN = 1.3
"""How many times as fast bf16 has to be: where both are near, chance would choose the pictures anew at every start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a window is made with."""

    num_threads: int
    num_steps: int
    height_px: int
    width_px: int

    def __str__(self) -> str:
        """Say it in words, for the log and the page."""
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        return f"{threads}, {self.num_steps} steps, {self.width_px}x{self.height_px} px"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leeway:
    """How far a load may be changed."""

    most_threads: int
    """Threads that may be used at most."""
    fewest_steps: int
    """Steps that have to stay."""
    smaller_px: Sequence[tuple[int, int]]
    """Smaller pictures, height and width, the largest first."""


def choose_precision(timed: Mapping[str, WarmTimes], *, limit_s: float) -> str:
    """Choose the arithmetic: bf16 where it is clearly faster, or faster and fp32 is too slow; fp32 otherwise.

    Args:
        timed: What a window takes in "fp32", in "bf16", or in both.
        limit_s: What a window may take.

    Returns:
        One of them.
    """
    if len(timed) == 1:
        return next(iter(timed))
    gain = 1 if timed["fp32"].window_s > limit_s else BF16_GAIN
    return "bf16" if timed["fp32"].window_s > gain * timed["bf16"].window_s else "fp32"


def lighter_loads(load: Load, leeway: Leeway) -> Iterator[Load]:
    """List what to give up in turn on a machine that is too slow.

    Args:
        load: What was too much; its threads stay.
        leeway: What there is to give up.

    Yields:
        The next lighter load.
    """
    for height_px, width_px in [(load.height_px, load.width_px), *leeway.smaller_px]:
        for num_steps in range(load.num_steps, leeway.fewest_steps - 1, -1):
            lighter = replace(load, num_steps=num_steps, height_px=height_px, width_px=width_px)
            if lighter != load:
                yield lighter


def settle(
    load: Load, times: WarmTimes, leeway: Leeway, measure: Callable[[Load], WarmTimes], *, limit_s: float
) -> tuple[Load, WarmTimes]:
    """Find the heaviest load that holds the pace.

    Args:
        load: The first choice.
        times: What it takes.
        leeway: What else there is.
        measure: Times the windows of a load.
        limit_s: What a window may take.

    Returns:
        The first load within the limit, and its times; the lightest one where none is. It is not always the last one
        that was measured.
    """
    if times.window_s > limit_s and leeway.most_threads > load.num_threads:
        wider = replace(load, num_threads=leeway.most_threads)
        wider_times = measure(wider)
        # More threads are slower where the cores are hyper-threads, or busy.
        if wider_times.window_s < times.window_s:
            load, times = wider, wider_times
    for lighter in lighter_loads(load, leeway):
        if times.window_s <= limit_s:
            break
        load, times = lighter, measure(lighter)
    return load, times
