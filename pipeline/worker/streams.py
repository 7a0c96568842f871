"""One stream inside the worker: its sound, its place in the frame ring, and what waits for the next block edge."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.geometry import FRAMES_PER_BLOCK
from pipeline.host.ring import SlotCredit
from pipeline.worker import late
from pipeline.worker.model import ModelStream, PromptUnread
from pipeline.worker.windows import WindowAssembler

__all__ = ["WorkerStream", "pick_stream"]

_logger = logging.getLogger(__name__)


class WorkerStream:
    """State of a stream that does not belong to the model.

    Args:
        number: Number of the stream.
        model_stream: The model's state.
        windows: Its sound.
        credit: Its part of the frame ring.
        num_steps: The model's number of steps.
        is_live: Whether the late policy applies.
    """

    def __init__(
        self,
        number: int,
        *,
        model_stream: ModelStream,
        windows: WindowAssembler,
        credit: SlotCredit,
        num_steps: int,
        is_live: bool,
    ) -> None:
        self.number = number
        self.model_stream = model_stream
        self.windows = windows
        self.credit = credit
        self.num_steps = num_steps
        self.is_live = is_live
        self.epoch = 0
        self.is_closed = False
        self.is_done_told = False
        self.late_state = late.start(num_steps)
        self.pending_params: StreamParams | None = None
        self.pending_portrait: NDArray[np.uint8] | None = None
        self._is_interrupted = False

    @property
    def is_runnable(self) -> bool:
        """Whether a window is complete and its frames have room.

        A window is only begun when the whole of it has room, so the worker never waits in the middle of one for a slow
        reader while other streams could run.
        """
        return self.windows.num_complete > 0 and self.credit.num_free >= FRAMES_PER_BLOCK

    @property
    def max_steps(self) -> int:
        """Steps that the next window may take."""
        return self.late_state.max_steps if self.is_live else self.num_steps

    def interrupt(self, epoch: int) -> None:
        """Drop the windows that wait and begin a new epoch.

        Args:
            epoch: The new epoch.
        """
        self.epoch = epoch
        self.windows.interrupt()
        self._is_interrupted = True

    def skip_window(self) -> None:
        """Let the model hear the next window, which is not made; there has to be a complete one."""
        self._tell_of_interrupt()
        self.model_stream.skip(self.windows.take().pcm)

    def cross_block_edge(self) -> None:
        """Hand to the model what came since the last window.

        Parameters that take the model time (a new prompt has to be read) wait until it is ready for them, and newer
        ones take their place meanwhile. This is for live streams: a file has the time. A prompt that cannot be read
        leaves the one so far.
        """
        self._tell_of_interrupt()
        params = self.pending_params
        if params is not None and (not self.is_live or self.model_stream.is_ready(params)):
            self.pending_params = None
            try:
                self.model_stream.update(params)
            except PromptUnread as exc:
                _logger.warning("stream %d keeps its prompt: the new one cannot be read", self.number, exc_info=exc)
                self.model_stream.update(dataclasses.replace(params, prompt=None))
        if self.pending_portrait is not None:
            self.model_stream.set_portrait(self.pending_portrait)
            self.pending_portrait = None

    def _tell_of_interrupt(self) -> None:
        if self._is_interrupted:
            self._is_interrupted = False
            self.model_stream.interrupt()


def pick_stream(streams: Iterable[WorkerStream]) -> WorkerStream | None:
    """Choose whose window is made next: the one that has been complete for longest.

    Args:
        streams: All streams.

    Returns:
        The stream; None if no stream is runnable.
    """
    runnable = [stream for stream in streams if stream.is_runnable]
    return min(runnable, key=lambda stream: stream.windows.oldest_complete_s(), default=None)
