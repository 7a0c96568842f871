"""Noise levels of the few-step sampler.

The model was distilled for one schedule: flow matching with the noise levels shifted twice by 3 (the lowest level is
shifted before the levels are spaced, and all of them are shifted after). The last step therefore starts at sigma
0.0089 and is nearly a clean-up. A schedule with another number of steps comes from the same construction.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError

__all__ = ["EMBEDDED_STEPS", "MAX_STEPS", "MIN_STEPS", "NUM_TRAIN_TIMESTEPS", "Schedule", "make_schedule"]

NUM_TRAIN_TIMESTEPS = 1000
MIN_STEPS = 3
MAX_STEPS = 8
EMBEDDED_STEPS = 4
"""What the embedded avatar learnt; it makes no more."""

_SHIFT = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Noise levels of one block, highest first."""

    sigmas: tuple[float, ...]
    """Share of noise before each step, and 0 after the last: num_steps + 1 values from 1 down to 0."""

    @property
    def num_steps(self) -> int:
        """Number of denoising steps."""
        return len(self.sigmas) - 1

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the network is told at each step: 1000 times its sigma."""
        return tuple(NUM_TRAIN_TIMESTEPS * sigma for sigma in self.sigmas[:-1])


def make_schedule(num_steps: int) -> Schedule:
    """Compute the schedule.

    Args:
        num_steps: Denoising steps per block, 3 to 8.

    Returns:
        The schedule.

    Raises:
        ConfigError: The number of steps is out of range.
    """
    if not MIN_STEPS <= num_steps <= MAX_STEPS:
        raise ConfigError("num_steps", num_steps, f"it has to be {MIN_STEPS} to {MAX_STEPS}")
    lowest = _shift(1 / NUM_TRAIN_TIMESTEPS)
    levels = (1 + (lowest - 1) * step / (num_steps - 1) for step in range(num_steps))
    return Schedule(sigmas=(*map(_shift, levels), 0.0))


def _shift(sigma: float) -> float:
    """Move a noise level towards 1."""
    return _SHIFT * sigma / (1 + (_SHIFT - 1) * sigma)
