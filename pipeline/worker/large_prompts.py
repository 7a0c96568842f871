"""Prompts of the large engine: read on a thread of their own, while the worker's goes on making windows.

To read a prompt takes the text encoder seconds, or half a minute on a CPU. One prompt is read at a time, so that the
text encoder is never there twice; what was read is kept whoever asked for it, so that streams which want different
prompts all come to theirs. What the text encoder gives becomes keys and values on the worker's thread, which is quick.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple

from torch import Tensor

from pipeline.models.attention import KeysValues
from pipeline.worker.kept import Kept
from pipeline.worker.model import PromptUnread

__all__ = ["Prompts"]

TOLD_WITHIN_S = 30.0
"""Who asked for a prompt asks again within this time, or is gone."""


class _Reading:
    """A prompt that is being read, or was.

    Args:
        prompt: The prompt.
        read: Reads it.
        now_s: Monotonic clock.
    """

    def __init__(self, prompt: str, read: Callable[[str], Tensor], now_s: Callable[[], float]) -> None:
        self.prompt = prompt
        self.rows: Future[Tensor] = Future()
        self.ended_s = 0.0
        self._read = read
        self._now_s = now_s
        # A worker that is told to end does not wait for it.
        threading.Thread(target=self._run, name="prompt", daemon=True).start()

    def _run(self) -> None:
        try:
            rows_BLC = self._read(self.prompt)
        except BaseException as exc:  # noqa: BLE001 - the end of a thread: who asked for the prompt is told
            self.ended_s = self._now_s()
            self.rows.set_exception(exc)
        else:
            self.ended_s = self._now_s()
            self.rows.set_result(rows_BLC)


class _Failure(NamedTuple):
    """A prompt that could not be read."""

    prompt: str
    error: Exception
    at_s: float


class Prompts:
    """The prompts that were used last. All calls come from the worker's thread.

    Args:
        read: Turns a prompt into rows; called on a thread of its own, once at a time.
        attend: Turns rows into keys and values.
        num_prompts: How many are kept.
        now_s: Monotonic clock.
    """

    def __init__(
        self,
        read: Callable[[str], Tensor],
        attend: Callable[[Tensor], Sequence[KeysValues]],
        *,
        num_prompts: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._attend = attend
        self._kept = Kept[str, Sequence[KeysValues]](num_prompts)
        self._reading: _Reading | None = None
        self._failure: _Failure | None = None
        self._now_s = now_s

    def add(self, prompt: str, rows_BLC: Tensor) -> None:
        """Keep a prompt that was read elsewhere.

        Args:
            prompt: The prompt.
            rows_BLC: What the text encoder gave.
        """
        self._kept.get(prompt, lambda: self._attend(rows_BLC))

    def is_ready(self, prompt: str) -> bool:
        """Say whether `get` would take no time; begin to read the prompt otherwise, as soon as no other is read.

        Args:
            prompt: The prompt.

        Returns:
            Whether it is there, or could not be read: then `get` raises why.
        """
        if self._reading is not None and self._reading.rows.done():
            reading, self._reading = self._reading, None
            self._take(reading)
        if self._failure is not None and self._now_s() - self._failure.at_s > TOLD_WITHIN_S:
            self._failure = None
        if prompt in self._kept or (self._failure is not None and self._failure.prompt == prompt):
            return True
        if self._reading is None:
            self._reading = _Reading(prompt, self._read, self._now_s)
        return False

    def get(self, prompt: str) -> Sequence[KeysValues]:
        """Give the keys and values of a prompt; waits until it is read.

        Why one could not be read is raised once: whoever asks after that has it tried again.

        Args:
            prompt: The prompt.

        Returns:
            One entry per layer.

        Raises:
            PromptUnread: It could not be read; the cause is what reading it raised.
        """
        while not self.is_ready(prompt):
            assert self._reading is not None, "a prompt that is not ready waits for one that is read"
            wait([self._reading.rows])
        if self._failure is not None and self._failure.prompt == prompt:
            failure, self._failure = self._failure, None
            raise PromptUnread(f"a prompt cannot be read: {failure.error}") from failure.error
        return self._kept[prompt]

    def _take(self, reading: _Reading) -> None:
        try:
            self.add(reading.prompt, reading.rows.result())
        except Exception as exc:  # noqa: BLE001 - whoever happens to come by is not told, but who asked for the prompt
            self._failure = _Failure(reading.prompt, exc, reading.ended_s)
