"""When a worker that failed is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import EngineConfig

__all__ = ["RestartDecision", "after_failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartDecision:
    """What to do after a failure."""

    num_failures: int
    """Failures in a row, this one included."""
    delay_s: float | None
    """Pause before the restart; None: give up."""


def after_failure(num_failures: int, *, ready_for_s: float, config: EngineConfig) -> RestartDecision:
    """Decide whether and when to restart.

    Args:
        num_failures: Failures in a row before this one.
        ready_for_s: How long the worker had been ready when it failed, 0 if it never was.
        config: The engine's configuration.

    Returns:
        The decision.
    """
    in_a_row = 1 if ready_for_s >= config.healthy_after_s else num_failures + 1
    if in_a_row > config.max_restarts:
        return RestartDecision(num_failures=in_a_row, delay_s=None)
    delay_s = config.restart_delay_s * 2.0 ** (in_a_row - 1)
    return RestartDecision(num_failures=in_a_row, delay_s=min(delay_s, config.restart_delay_max_s))
