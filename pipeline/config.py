"""What the engine is started with; changing any of it needs a restart of the engine.

Each value is checked here, in the parent, before a worker exists. The worker gets the same object as JSON.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.audio.context import LiveContext
from pipeline.errors import ConfigError
from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLE_RATE_HZ, SIZE_MULTIPLE_PX
from pipeline.schedule import EMBEDDED_STEPS, MAX_STEPS, MIN_STEPS

__all__ = ["EngineConfig", "LargeConfig", "PatternConfig", "Prompt", "num_cores"]

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
WindowIndex = Annotated[int, Field(ge=0)]
# The worker has another working directory.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Prompt = Annotated[str, Field(min_length=1, max_length=2000)]
"""A text prompt, as a configuration or a session names it."""
FrameSide = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, le=2048, multiple_of=SIZE_MULTIPLE_PX)]

_LARGE_DEFAULTS = {"ready_timeout_s": 3600.0, "open_timeout_s": 180.0, "stall_timeout_s": 180.0}
"""The large engine reads tens of gigabytes at its first start, and up to eleven for a new prompt."""
_LARGE_CPU_DEFAULTS = {"ready_timeout_s": 14400.0, "open_timeout_s": 3600.0, "stall_timeout_s": 3600.0}
"""On a CPU a window takes it many minutes."""


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


_MOST_THREADS = 6
"""More threads than these wait for each other more than they work."""


class LargeConfig(BaseModel):
    """The large engine: where it runs, the size of its picture, and how much sound it hears around a window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where the networks run: cpu, cuda, cuda:1; auto takes the first GPU. On a CPU, which is never taken unasked, a
    window of the published model takes many minutes: for short files only."""
    memory_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Memory of the device that the engine may use, in 10^9 bytes; null: all that is free when it starts."""
    height_px: FrameSide = 384
    """Height of every frame."""
    width_px: FrameSide = 704
    """Width of every frame."""
    prompt: Prompt = "A person looks into the camera and talks, calm and friendly, with natural expressions."
    """Text prompt of a stream that is opened without one of its own."""
    flavour: Literal["timestep", "single"] = "timestep"
    """Which of the published pipelines is followed where they differ: that with one step per device, which begins with
    the portrait as a first frame and later takes its own first picture for it, or that of a single device, which begins
    with a moment of a still video and stays with it."""
    reference_distance: int = Field(default=30, ge=4, le=30)
    """How many latent frames ahead of a block the portrait stands for the model. The published code draws it anew, from
    4 to 30, whenever the model runs, so that no seed repeats a video; here it stays the same."""
    pose_video: AbsolutePath | None = None
    """Film whose movement every stream follows, from its beginning; null: none."""
    pose_loops: bool = False
    """Whether that film begins again when it ends; otherwise the pose is black from then on, as in training."""
    pose_is_exact: bool = False
    """Whether that film is fitted to the frame as the published code does it, with black edges, and its pictures
    counted as there: one of 30 per second then plays slower."""
    left_context_ms: int = LiveContext().left_ms
    """Sound before a window that its features take in: it costs computing time."""
    right_context_ms: int = LiveContext().right_ms
    """Sound after a window that its features take in: it is waited for, so it is delay."""
    whole_sound_s: float = Field(default=300.0, ge=0, le=1500)
    """Longest sound file whose features are made of all of it at once, as the published code makes them; a longer one
    is heard window by window, like live sound. All speakers of one picture together have twice as much."""
    cache_dir: Path | None = Path("~/.cache/visavis")
    """Where a merged copy of the weights (33 GB) is kept for faster starts; it can be deleted at any time; null: none
    is written."""
    random_weights: bool = False
    """Weights that have learnt nothing, made on the device without any file: for benchmarks."""

    @property
    def audio_context(self) -> LiveContext:
        """`left_context_ms` and `right_context_ms`."""
        return LiveContext(left_ms=self.left_context_ms, right_ms=self.right_context_ms)

    @model_validator(mode="after")
    def _check_context(self) -> LargeConfig:
        try:
            LiveContext(left_ms=self.left_context_ms, right_ms=self.right_context_ms)
        except ConfigError as exc:
            raise ConfigError(exc.key.replace("_ms", "_context_ms"), exc.value, exc.rule) from exc
        return self


class EngineConfig(BaseModel):
    """Which engine runs, on what, and how its worker process is watched."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Literal["embedded", "large", "pattern"] = "embedded"
    """Which engine: the embedded avatar, the large one (Live Avatar, 14B), or the pattern engine that draws sound level
    and frame number."""
    threads: int | None = Field(default=None, ge=1, le=256)
    """CPU threads of the worker's arithmetic; null: half of the cores, 6 at most, and more where the pace needs it; the
    large engine on a CPU takes all cores."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; auto measures both at start, and takes bf16 where it is clearly faster, or faster and
    fp32 is too slow for live; the large engine takes bf16."""
    keeps_pace: bool = True
    """Whether the embedded engine makes less where the machine is too slow for live: fewer steps, then smaller
    pictures. `visavis render` has the time and never does.
    """
    num_steps: int | None = Field(default=None, ge=MIN_STEPS, le=MAX_STEPS)
    """Denoising steps per block; null leaves the choice to the engine: the embedded one measures what holds the pace,
    the large one takes four."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of a stream that is opened without one of its own."""
    weights_dir: AbsolutePath | None = None
    """Folder of the engine's weights; null takes those that ship with it (the large engine has none that ship)."""
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
    """Until the worker has to be warm after its hello; an hour for the large engine unless it is set, four of them
    where its device is cpu."""
    open_timeout_s: Seconds = 30.0
    """Until a stream has to be open after it was asked for; 180 s for the large engine unless it is set, an hour where
    its device is cpu."""
    heartbeat_s: Seconds = 0.5
    """Longest silence of a worker that is well."""
    stall_timeout_s: Seconds = 10.0
    """Silence after which the worker is taken for stalled: its stacks go to the log and it is killed; 180 s for the
    large engine unless it is set, an hour where its device is cpu."""
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
    large: LargeConfig = LargeConfig()
    """The large engine's own settings."""
    pattern: PatternConfig = PatternConfig()
    """The pattern engine's own settings."""

    @property
    def num_threads(self) -> int:
        """`threads`, or half of the cores that this process may use: the other half is for the server."""
        return self.threads or max(1, min(_MOST_THREADS, num_cores() // 2))

    @property
    def most_threads(self) -> int:
        """Threads that may be used where `num_threads` do not hold the pace."""
        return self.threads or min(_MOST_THREADS, num_cores())

    @model_validator(mode="before")
    @classmethod
    def _be_patient(cls, values: Any) -> Any:
        """Give the large engine more time where nothing is said."""
        if not isinstance(values, dict) or values.get("name") != "large":
            return values
        large = values.get("large")
        device = large.get("device") if isinstance(large, dict) else getattr(large, "device", None)
        return {**(_LARGE_CPU_DEFAULTS if device == "cpu" else _LARGE_DEFAULTS), **values}

    @model_validator(mode="after")
    def _check_weights(self) -> EngineConfig:
        if self.name == "large" and (self.weights_dir is None) != self.large.random_weights:
            given = None if self.weights_dir is None else str(self.weights_dir)
            raise ConfigError("weights_dir", given, "the large engine takes either it or large.random_weights")
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> EngineConfig:
        if self.name == "embedded" and (self.num_steps or 0) > EMBEDDED_STEPS:
            rule = f"the embedded engine was trained for {EMBEDDED_STEPS} at most"
            raise ConfigError("num_steps", self.num_steps, rule)
        return self

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


def num_cores() -> int:
    """Count the cores that this process may use; where the system does not say (macOS), those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
