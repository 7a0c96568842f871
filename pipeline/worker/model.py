"""What the worker asks of a model, and which models there are.

A model is loaded once per worker process and makes any number of streams. All calls come from the worker's main
thread, one after another, so neither has to be thread-safe; `ModelStream.generate` of two streams never overlap.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError
from pipeline.geometry import FPS

__all__ = [
    "AvatarModel",
    "ModelStream",
    "PromptUnread",
    "StageMarks",
    "WarmTimes",
    "WholeListener",
    "WholeListenerModel",
    "load_model",
]

_MODELS = {
    "embedded": "pipeline.worker.embedded:EmbeddedModel",
    "large": "pipeline.worker.large:LargeModel",
    "pattern": "pipeline.worker.pattern:PatternModel",
}


class PromptUnread(Exception):
    """A prompt could not be read; the cause says why. Who had another one before goes on with that."""


@dataclass(slots=True, kw_only=True)
class StageMarks:
    """Where the model notes when each stage of one window was done (seconds, `time.monotonic`)."""

    window: int
    """Index of the window in its stream. It jumps where windows were skipped or an interrupt came between."""
    features_s: float | None = None
    """Audio features were ready."""
    steps_s: list[float] = field(default_factory=list)
    """End of each denoising step that ran."""
    decoded_s: float | None = None
    """All 12 frames were decoded."""
    now_s: Callable[[], float] = time.monotonic
    """The clock."""
    on_stage: Callable[[], None] = lambda: None
    """Called at the end of each stage that a model waits for: on a slow CPU they are minutes apart."""

    def features_done(self) -> None:
        """Note that the audio features are ready."""
        self.features_s = self.now_s()
        self.on_stage()

    def step_done(self) -> None:
        """Note the end of a denoising step."""
        self.steps_s.append(self.now_s())
        self.on_stage()

    def decode_done(self) -> None:
        """Note that all frames are decoded."""
        self.decoded_s = self.now_s()
        self.on_stage()


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmTimes:
    """How long a window takes once the model is warm, in seconds."""

    window_s: float
    """Until its last frame is made."""
    start_s: float
    """Until its first frame may leave, frame after frame at the video's rate, and none comes late."""

    @staticmethod
    def of_batches(batches: Sequence[tuple[float, int]]) -> WarmTimes:
        """Derive both from one window.

        Args:
            batches: For each batch of frames, when it was made (seconds since the window's start) and its length.

        Returns:
            The times of this window.
        """
        frames_before = 0
        start_s = 0.0
        for made_s, num_frames in batches:
            start_s = max(start_s, made_s - frames_before / FPS)
            frames_before += num_frames
        return WarmTimes(window_s=batches[-1][0], start_s=start_s)


class ModelStream(Protocol):
    """The state of one stream."""

    def generate(self, pcm: NDArray[np.int16], marks: StageMarks, max_steps: int) -> Iterator[NDArray[np.uint8]]:
        """Make the 12 frames of the next window.

        The iterator is run to its end, except where the window is given up half-way: then it is closed, and
        `interrupt` or `close` follows.

        Args:
            pcm: The window and its right context, (7680 + right_context_samples,). Valid during the call only.
            marks: Where to note the stages.
            max_steps: At most so many denoising steps, 1 to the model's `num_steps`.

        Returns:
            Batches of I420 pictures (BT.601, limited range), (k, height_px * 3 // 2, width_px), in order; the k of a
            window sum to 12. The first batch should come before the last frames are decoded.
        """

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Go on by a window that is not made: its sound counts as heard. Takes next to no time.

        Args:
            pcm: As for `generate`.
        """

    def interrupt(self) -> None:
        """A new epoch begins: what follows is not a continuation of the sound so far."""

    def is_ready(self, params: StreamParams) -> bool:
        """Say whether `update` with these parameters would take no time; begin what it takes otherwise.

        Asked again at every block edge; where it cannot be done, this is true and `update` raises why.
        """

    def update(self, params: StreamParams) -> None:
        """Use these parameters from the next window on.

        Args:
            params: The parameters.

        Raises:
            PromptUnread: Nothing has changed.
        """

    def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Use this portrait from the next window on.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).
        """

    def close(self) -> None:
        """Free what the stream holds."""


@runtime_checkable
class WholeListener(Protocol):
    """A stream that can hear a sound as a whole before its first window."""

    def hear_whole(self, sounds: NDArray[np.int16], masks: NDArray[np.bool_] | None) -> None:
        """Take the sound of all windows to come; that of `generate` does not count until an interrupt.

        Args:
            sounds: 16 kHz mono, (num_voices, num_samples), from sample 0 of the stream on.
            masks: Which tokens of the picture listen to which voice, (num_voices, num_tokens); None: there is one.
        """


@runtime_checkable
class WholeListenerModel(Protocol):
    """A model whose streams can hear a sound as a whole."""

    @property
    def longest_whole_s(self) -> float:
        """Longest such sound, in seconds."""

    @property
    def px_per_token(self) -> int:
        """Side of a token, in pixels."""


class AvatarModel(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """Name of the engine."""

    @property
    def height_px(self) -> int:
        """Height of every frame."""

    @property
    def width_px(self) -> int:
        """Width of every frame."""

    @property
    def num_steps(self) -> int:
        """Denoising steps per block."""

    @property
    def right_context_samples(self) -> int:
        """Audio after the end of a window that `generate` needs."""

    @property
    def accepts_prompt(self) -> bool:
        """Whether a text prompt means anything."""

    @property
    def accepts_portrait(self) -> bool:
        """Whether the portrait is shown."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people about choices made at load or warm-up."""

    def warm_up(self) -> WarmTimes:
        """Run until warm and settle what is chosen by measurement; the other properties are final after this.

        Returns:
            90th percentiles over a few windows.
        """

    def is_ready(self, *, prompt: str | None, params: StreamParams) -> bool:
        """Say whether a stream with this prompt can be opened without reading it first; begin that otherwise.

        Args:
            prompt: Text prompt; None unless the model accepts one.
            params: Parameters at the start.

        Returns:
            Whether it is so, or the prompt cannot be read: then `open_stream` raises why.
        """

    def open_stream(
        self, *, portrait: NDArray[np.uint8] | None, prompt: str | None, seed: int, params: StreamParams
    ) -> ModelStream:
        """Make the state of a new stream.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3); None only if the model shows none.
            prompt: Text prompt; None unless the model accepts one.
            seed: Seed of everything random in the stream.
            params: Parameters at the start.

        Returns:
            The stream's state.

        Raises:
            PromptUnread: The prompt cannot be read.
        """


def load_model(config: EngineConfig) -> AvatarModel:
    """Import and build the model that the configuration names.

    Args:
        config: The engine's configuration.

    Returns:
        The model, loaded and not yet warm.

    Raises:
        ConfigError: The large engine was named, and a library that it needs is not installed.
    """
    module_name, class_name = _MODELS[config.name].split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if config.name != "large":
            raise
        rule = f"it takes the extra `large`: pip install '.[large]' ({exc})"
        raise ConfigError("engine.name", config.name, rule) from exc
    model_class = cast("Callable[[EngineConfig], AvatarModel]", getattr(module, class_name))
    return model_class(config)
