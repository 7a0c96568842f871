"""What a live stream gives up when it is late: steps first, then windows. Pure.

A stream is on time when a window is begun as soon as its right context is there. Its lateness is how long the oldest
complete window has been waiting. In order:

1. The load (compute time of a window times the live streams that share the worker) nears the pace of 480 ms, or the
   oldest window has waited for a quarter of that: one denoising step less, down to `MIN_STEPS`.
2. The oldest window has waited for a whole window: the windows that waited so long are dropped. Their frames would be
   late anyway, and what follows is on time again.
3. For `CALM_WINDOWS` windows in a row there was no waiting to speak of, and one step more would leave the load well
   below the pace: one step more, up to the model's own number.

So the delay never grows by more than a window, and the steps do not flicker.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pipeline.geometry import WINDOW_S

__all__ = ["CALM_WINDOWS", "MIN_STEPS", "LateState", "Load", "after_window", "num_windows_to_skip", "start"]

MIN_STEPS = 2
"""The policy never goes below so many steps."""

CALM_WINDOWS = 12
"""Windows in a row that have to be calm before a step is given back."""

_THREAT_LOAD = 0.92
_CALM_LOAD = 0.80
_THREAT_LATENESS = 0.25
_CALM_LATENESS = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class LateState:
    """What the policy remembers of a stream."""

    max_steps: int
    """Steps that the next window may take."""
    num_calm_windows: int
    """Calm windows in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one window cost."""

    window_s: float
    """Compute time of the window."""
    step_s: float
    """Compute time of one of its steps."""
    num_live_streams: int
    """Live streams that share the worker, 1 or more."""


def start(num_steps: int) -> LateState:
    """Begin with all steps.

    Args:
        num_steps: The model's number of steps.

    Returns:
        The state of a new stream.
    """
    return LateState(max_steps=num_steps, num_calm_windows=0)


def num_windows_to_skip(*, lateness_s: float, num_complete: int) -> int:
    """Decide how many of the oldest windows are dropped before the next one is begun.

    Args:
        lateness_s: How long the oldest complete window has been waiting.
        num_complete: Complete windows that wait.

    Returns:
        The number, less than `num_complete`: the newest complete window is always made.
    """
    if num_complete == 0:
        return 0
    return max(0, min(int(lateness_s / WINDOW_S), num_complete - 1))


def after_window(state: LateState, *, lateness_s: float, load: Load, num_steps: int) -> LateState:
    """Decide on the steps of the next window.

    Args:
        state: The state so far.
        lateness_s: How long the window just made had been waiting when it was begun.
        load: What it cost.
        num_steps: The model's number of steps.

    Returns:
        The new state.
    """
    load_s = load.window_s * load.num_live_streams
    if load_s > _THREAT_LOAD * WINDOW_S or lateness_s > _THREAT_LATENESS * WINDOW_S:
        return LateState(max_steps=max(min(MIN_STEPS, num_steps), state.max_steps - 1), num_calm_windows=0)
    with_one_more_s = load_s + load.step_s * load.num_live_streams
    if with_one_more_s > _CALM_LOAD * WINDOW_S or lateness_s > _CALM_LATENESS * WINDOW_S:
        return dataclasses.replace(state, num_calm_windows=0)
    num_calm_windows = state.num_calm_windows + 1
    if num_calm_windows < CALM_WINDOWS or state.max_steps == num_steps:
        return dataclasses.replace(state, num_calm_windows=num_calm_windows)
    return LateState(max_steps=state.max_steps + 1, num_calm_windows=0)
