"""How heavy a window may be on this machine: found by measuring, lighter and lighter until the pace holds.

What is given up, the least visible first: the cores kept free for the rest of the server, then denoising steps, then
picture size (with all steps again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.worker.model import WarmTimes

__all__ = ["Load", "lighter_loads", "settle"]


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


def lighter_loads(
    load: Load, *, most_threads: int, fewest_steps: int, smaller_px: Sequence[tuple[int, int]]
) -> Iterator[Load]:
    """List what to try in turn on a machine that is too slow.

    Args:
        load: What was too much.
        most_threads: Threads that may be used at most.
        fewest_steps: Steps that have to stay.
        smaller_px: Smaller pictures, height and width, the largest first.

    Yields:
        The next lighter load.
    """
    full = replace(load, num_threads=max(load.num_threads, most_threads))
    if full != load:
        yield full
    sizes = [(load.height_px, load.width_px), *smaller_px]
    for height_px, width_px in sizes:
        for num_steps in range(load.num_steps, fewest_steps - 1, -1):
            lighter = replace(full, num_steps=num_steps, height_px=height_px, width_px=width_px)
            if lighter != full:
                yield lighter


def settle(
    load: Load, times: WarmTimes, lighter: Iterator[Load], measure: Callable[[Load], WarmTimes], *, limit_s: float
) -> tuple[Load, WarmTimes]:
    """Find the heaviest load that holds the pace.

    Args:
        load: The first choice.
        times: What it takes.
        lighter: What else there is.
        measure: Sets a load up and times its windows.
        limit_s: What a window may take.

    Returns:
        The first load within the limit, and its times; the last one where none is.
    """
    for candidate in lighter:
        if times.window_s <= limit_s:
            break
        load, times = candidate, measure(candidate)
    return load, times
