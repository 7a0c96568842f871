"""The loop that all stages share: steps bounded in time, at the full picture size and now and then at a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from tools.train.farm import ClipPool
from tools.train.replicas import Replicas
from tools.train.steps import Ema, GraphedStep, Learner, Log, Schedule

__all__ = ["Bounds", "Stage", "run_stage"]

SMALL_EVERY = 6
"""Each so many steps, one shows the smaller pictures."""
REFILL_EVERY, REFILL_CLIPS = 12, 4


class Bounds(Protocol):
    """What the settings of every stage have."""

    @property
    def seconds(self) -> float:
        """Time for the stage."""

    @property
    def peak_rate(self) -> float:
        """Highest learning rate."""

    @property
    def max_steps(self) -> int:
        """Steps after which it ends even earlier."""


class Stage(Protocol):
    """One kind of training."""

    name: str
    average_decay: float
    log_every: int
    refills: bool
    """Whether new clips are taken while it runs."""
    is_compiled: bool
    """Whether it runs long enough to be worth a minute of compiling."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def average(self) -> nn.Module:
        """Receives the moving average of the weights, which is what is used afterwards."""

    @property
    def learners(self) -> Sequence[Learner]:
        """Everything that learns; the first is the network itself."""

    @property
    def compute(self) -> Callable[..., dict[str, Tensor]]:
        """Takes the inputs of a step by name, adds its gradients to the learners, and names some scalars."""

    def inputs(self, size: int, progress: float) -> dict[str, Tensor]:
        """Draw the inputs of a step.

        Args:
            size: Which of the picture sizes.
            progress: Of the stage, 0 to 1.

        Returns:
            Tensors by name, always of the same shapes for a size.
        """

    def renew(self, places: list[int]) -> None:
        """Take note of clips that came into the pool."""

    def validate(self) -> dict[str, float]:
        """Measure the average on held-out people."""


def run_stage(
    stage: Stage, pool: ClipPool, bounds: Bounds, log: Log, replicas: Replicas, begin: Callable[[], list[int]]
) -> dict[str, float]:
    """Run a stage.

    Args:
        stage: The stage.
        pool: Clips; refilled meanwhile.
        bounds: Time, steps and learning rate.
        log: Where progress goes; written to by the first replica.
        replicas: Who trains together.
        begin: Called when all is compiled and before time counts; gives the places of clips that came meanwhile.

    Returns:
        Steps made, and what validation says at the end (in the first replica).
    """
    replicas.follow_first(stage.network)
    ema = Ema(stage.network, stage.average, stage.average_decay)
    with torch.compiler.set_stance("default" if stage.is_compiled else "force_eager"):
        full = GraphedStep(stage.compute, stage.learners, stage.inputs(0, 0.0), replicas)
    small = GraphedStep(stage.compute, stage.learners, stage.inputs(1, 0.0), replicas)
    stage.renew(begin())
    schedule = Schedule(seconds=bounds.seconds, peak=bounds.peak_rate, max_steps=bounds.max_steps, agree=replicas.agree)
    for progress in schedule:
        stage.learners[0].set_rate(schedule.rate(progress))
        if schedule.step % SMALL_EVERY == 1:
            small(**stage.inputs(1, progress))
        else:
            values = full(**stage.inputs(0, progress))
        ema.update()
        if stage.refills and schedule.step % REFILL_EVERY == 0:
            stage.renew(pool.refill(REFILL_CLIPS))
        if replicas.is_first and (schedule.step == 100 or schedule.step % stage.log_every == 0):
            log(stage.name, step=schedule.step, clips=pool.taken, **values, **stage.validate())
    replicas.follow_first(stage.average)
    result: dict[str, float] = {"steps": schedule.step}
    if replicas.is_first:
        result |= stage.validate()
        log(f"{stage.name} done", **result)
    return result
