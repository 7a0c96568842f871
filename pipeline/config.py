"""What the engine is started with; changing any of it needs a restart of the engine.

Each value is checked here, in the parent, before a worker exists. The worker gets the same object as JSON.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLE_RATE_HZ

__all__ = ["EngineConfig", "PatternConfig"]

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
WindowIndex = Annotated[int, Field(ge=0)]


class PatternConfig(BaseModel):
    """The pattern engine: its picture, its artificial speed, and the faults that tests ask of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    height_px: int = Field(default=384, ge=96, le=2160, multiple_of=16)
    """Height of every frame."""
    width_px: int = Field(default=256, ge=64, le=3840, multiple_of=16)
    """Width of every frame."""
    right_context_ms: int = Field(default=80, ge=0, le=480)
    """Audio after the end of a window that has to arrive before the window is begun."""
    compute_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Artificial compute time of a window with all its steps; three fifths of it are steps, the rest is decoding."""
    clap_dbfs: float = Field(default=-20.0, ge=-60, lt=0)
    """RMS level of a frame's 40 ms of sound above which its clap patch is white."""
    warm_up_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Artificial time of the warm-up."""
    fault: Literal["none", "crash", "stall", "raise"] = "none"
    """What goes wrong at `fault_window`: the process ends, it stops answering, or the window raises an error."""
    fault_window: WindowIndex = 0
    """Index of the window at which `fault` happens, in every stream that gets there."""
    fault_at_warm_up: bool = False
    """Whether `fault` happens during the warm-up instead."""

    @property
    def right_context_samples(self) -> int:
        """`right_context_ms` in samples."""
        return self.right_context_ms * SAMPLE_RATE_HZ // 1000


class EngineConfig(BaseModel):
    """Which engine runs, on what, and how its worker process is watched."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Literal["embedded", "pattern"] = "embedded"
    """Which engine: the embedded avatar, or the pattern engine that draws sound level and frame number."""
    threads: int | None = Field(default=None, ge=1, le=256)
    """CPU threads of the worker's arithmetic; null: half of the cores, but 2 at least and 6 at most."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; auto measures both at start and takes the faster."""
    num_steps: int | None = Field(default=None, ge=3, le=8)
    """Denoising steps per block; null leaves the choice to the engine, which measures what holds the pace."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of a stream that is opened without one of its own."""
    weights_dir: Path | None = None
    """Folder of the engine's weights; null takes those that ship with it."""
    max_streams: int = Field(default=1, ge=1, le=64)
    """How many streams can be open at once; they share the worker's time."""
    frame_slots: int = Field(default=3 * FRAMES_PER_BLOCK, ge=2 * FRAMES_PER_BLOCK, le=1000)
    """Frames of shared memory per stream: how many may be made and not yet taken. A stream whose reader is slower
    waits; the other streams do not."""
    max_ahead_s: Seconds = Field(default=10.0, ge=2, le=600)
    """Audio that may wait to be worked on, per stream; pushing more waits."""
    hello_timeout_s: Seconds = 30.0
    """Until the worker process has to say hello after it was spawned."""
    ready_timeout_s: Seconds = 120.0
    """Until the worker has to be warm after its hello."""
    open_timeout_s: Seconds = 30.0
    """Until a stream has to be open after it was asked for."""
    heartbeat_s: Seconds = 0.5
    """Longest silence of a worker that is well."""
    stall_timeout_s: Seconds = 10.0
    """Silence after which the worker is taken for stalled: its stacks go to the log and it is killed."""
    shutdown_timeout_s: Seconds = 5.0
    """Until the worker has to end after it was told to; after that it is killed."""
    restart_delay_s: Seconds = 0.5
    """Pause before the first restart; it doubles with every failure in a row."""
    restart_delay_max_s: Seconds = 30.0
    """Longest pause before a restart."""
    max_restarts: int = Field(default=5, ge=0)
    """Failures in a row after which the engine gives up."""
    healthy_after_s: Seconds = 60.0
    """Time a worker has to run for its failure not to count as one in a row."""
    pattern: PatternConfig = PatternConfig()
    """The pattern engine's own settings."""

    @property
    def num_threads(self) -> int:
        """`threads`, or what suits the cores that this process may use."""
        return self.threads or min(6, max(2, len(os.sched_getaffinity(0)) // 2))

    @model_validator(mode="after")
    def _check_order(self) -> EngineConfig:
        if self.stall_timeout_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"stall_timeout_s is {self.stall_timeout_s}, but it has to be at least twice heartbeat_s "
                f"({self.heartbeat_s})"
            )
        if self.restart_delay_max_s < self.restart_delay_s:
            raise ValueError(
                f"restart_delay_max_s is {self.restart_delay_max_s}, but it has to be at least restart_delay_s "
                f"({self.restart_delay_s})"
            )
        return self
