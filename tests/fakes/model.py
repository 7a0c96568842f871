"""Models for the worker, without arithmetic: frames are filled with the number of their window."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.worker.model import PromptUnread, StageMarks

HEIGHT_PX, WIDTH_PX = 4, 2
CONTEXT_SAMPLES = 640


class FakeModelStream:
    """Notes what is asked of it.

    Args:
        batches: Frames per batch; anything but a sum of 12 is a fault.
        during: Called before each batch with the index of the window and of the batch.
        spend: Called at the start of a window with its steps, to let time pass.
    """

    def __init__(
        self,
        *,
        batches: tuple[int, ...] = (4, 8),
        during: Callable[[int, int], None] = lambda window, batch: None,
        spend: Callable[[int], None] = lambda steps: None,
    ) -> None:
        self.calls: list[object] = []
        self.ready_prompts: set[str] = set()
        self.unreadable_prompts: set[str] = set()
        self._batches = batches
        self.during = during
        self._spend = spend

    def generate(self, pcm: NDArray[np.int16], marks: StageMarks, max_steps: int) -> Iterator[NDArray[np.uint8]]:
        """Make the frames; a window that ran to its end is noted as ("done", window)."""
        self.calls.append(("generate", marks.window, len(pcm), max_steps))
        marks.features_done()
        self._spend(max_steps)
        for _ in range(max_steps):
            marks.step_done()
        for index, num_frames in enumerate(self._batches):
            self.during(marks.window, index)
            if index == len(self._batches) - 1:
                marks.decode_done()
            yield np.full((num_frames, HEIGHT_PX * 3 // 2, WIDTH_PX), marks.window % 256, np.uint8)
        self.calls.append(("done", marks.window))

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Note it, with the first sample."""
        self.calls.append(("skip", int(pcm[0]), len(pcm)))

    def interrupt(self) -> None:
        """Note it."""
        self.calls.append("interrupt")

    def is_ready(self, params: StreamParams) -> bool:
        """Say when `update` may come."""
        return params.prompt is None or params.prompt in self.ready_prompts

    def update(self, params: StreamParams) -> None:
        """Note it, unless the prompt cannot be read."""
        if params.prompt in self.unreadable_prompts:
            raise PromptUnread("no such word")
        self.calls.append(("update", params.liveliness, *([] if params.prompt is None else [params.prompt])))

    def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Note it."""
        self.calls.append(("set_portrait", int(portrait.mean()), portrait.shape))

    def close(self) -> None:
        """Note it."""
        self.calls.append("close")


class FakeModel:
    """Hands out prepared streams, in order.

    Args:
        streams: The streams; opening one more raises LookupError.
    """

    name = "fake"
    height_px, width_px = HEIGHT_PX, WIDTH_PX
    num_steps = 4
    right_context_samples = CONTEXT_SAMPLES
    accepts_prompt = accepts_portrait = True
    notes: tuple[str, ...] = ()

    def __init__(self, *streams: FakeModelStream) -> None:
        self.opened: list[tuple[object, ...]] = []
        self.unread_prompts: set[str | None] = set()
        self._streams = iter(streams)

    def warm_up(self) -> float:
        """Say that a window takes 0.1 s."""
        return 0.1

    def is_ready(self, *, prompt: str | None, params: StreamParams) -> bool:
        """Say when `open_stream` may come."""
        return prompt not in self.unread_prompts

    def open_stream(
        self, *, portrait: NDArray[np.uint8] | None, prompt: str | None, seed: int, params: StreamParams
    ) -> FakeModelStream:
        """Hand out the next stream."""
        self.opened.append((None if portrait is None else portrait.shape, prompt, seed, params.liveliness))
        stream = next(self._streams, None)
        if stream is None:
            raise LookupError("no more streams")
        return stream
