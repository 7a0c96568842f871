"""Prompts that are read beside the worker's thread: one at a time, kept for whoever asks, told to who asked if not."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pipeline.models.attention import KeysValues
from pipeline.worker.large_prompts import TOLD_WITHIN_S, Prompts
from pipeline.worker.model import PromptUnread

pytestmark = pytest.mark.unit

DEADLINE_S = 10.0


class Reader:
    """Reads a prompt when it is let."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.threads: set[threading.Thread] = set()
        self._let = threading.Semaphore(0)

    def read(self, prompt: str) -> Tensor:
        self.begun.append(prompt)
        self.threads.add(threading.current_thread())
        assert self._let.acquire(timeout=DEADLINE_S)
        if prompt == "bad":
            raise LookupError("no such word")
        return torch.full((1, 1, 1), float(len(prompt)))

    def let(self, num_prompts: int = 1) -> None:
        """Let it read so many, the one that is being read first, and wait for that one's end."""
        for _ in range(num_prompts):
            self._let.release()
        for thread in list(self.threads):
            thread.join(DEADLINE_S)


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def __call__(self) -> float:
        return self.at_s


def attend(rows_BLC: Tensor) -> Sequence[KeysValues]:
    assert threading.current_thread() is threading.main_thread()
    if rows_BLC.sum() == len("too much"):
        raise MemoryError("no room for keys")
    return [KeysValues(rows_BLC, rows_BLC)]


def length(text: Sequence[KeysValues]) -> int:
    return int(text[0].keys_BKHD)


def make(reader: Reader, num_prompts: int = 2) -> Prompts:
    return Prompts(reader.read, attend, num_prompts=num_prompts)


def test_a_prompt_is_read_beside_the_caller_and_is_ready_when_that_is_done() -> None:
    reader = Reader()
    prompts = make(reader)
    assert not prompts.is_ready("sing")
    assert not prompts.is_ready("sing")
    reader.let()
    assert prompts.is_ready("sing")
    assert length(prompts.get("sing")) == 4
    assert reader.begun == ["sing"]
    assert threading.main_thread() not in reader.threads


def test_a_prompt_that_was_read_elsewhere_is_ready() -> None:
    reader = Reader()
    prompts = make(reader)
    prompts.add("talk", torch.full((1, 1, 1), 9.0))
    assert prompts.is_ready("talk")
    assert length(prompts.get("talk")) == 9
    assert reader.begun == []


def test_prompts_of_several_are_read_one_after_the_other_and_all_come_to_theirs() -> None:
    reader = Reader()
    prompts = make(reader)
    assert (prompts.is_ready("a"), prompts.is_ready("bc")) == (False, False)
    assert reader.begun == ["a"], "one at a time"
    reader.let()
    assert not prompts.is_ready("bc"), "the other's is kept, and this one is begun"
    reader.let()
    assert (prompts.is_ready("a"), prompts.is_ready("bc")) == (True, True)
    assert [length(prompts.get(prompt)) for prompt in ("a", "bc")] == [1, 2]
    assert reader.begun == ["a", "bc"]


def test_a_prompt_that_nobody_waits_for_any_more_is_kept_for_the_next() -> None:
    reader = Reader()
    prompts = make(reader)
    prompts.is_ready("a")
    reader.let()
    prompts.add("talk", torch.zeros(1, 1, 1))
    assert prompts.is_ready("a")


def test_who_cannot_wait_beside_it_waits_for_it() -> None:
    """For the one that is being read, too."""
    reader = Reader()
    prompts = make(reader)
    assert not prompts.is_ready("a")
    letting = threading.Timer(0.05, reader.let, [2])
    letting.start()
    assert length(prompts.get("bcd")) == 3
    letting.join()
    assert prompts.is_ready("a")
    assert reader.begun == ["a", "bcd"]


def test_a_prompt_that_cannot_be_read_says_why_to_who_asked_and_is_tried_again_after_that() -> None:
    reader = Reader()
    prompts = make(reader)
    assert not prompts.is_ready("bad")
    reader.let()
    assert not prompts.is_ready("good"), "another is not told"
    reader.let()
    assert prompts.is_ready("bad")
    with pytest.raises(PromptUnread, match="no such word") as told:
        prompts.get("bad")
    assert isinstance(told.value.__cause__, LookupError)
    assert length(prompts.get("good")) == 4
    assert not prompts.is_ready("bad")
    reader.let()
    assert reader.begun == ["bad", "good", "bad"]


def test_keys_that_cannot_be_made_are_told_to_who_asked_too() -> None:
    reader = Reader()
    prompts = make(reader)
    assert not prompts.is_ready("too much")
    reader.let()
    assert not prompts.is_ready("good"), "another is not told, and its prompt is read"
    reader.let()
    assert length(prompts.get("good")) == 4
    with pytest.raises(PromptUnread, match="no room for keys"):
        prompts.get("too much")


def test_whoever_asks_for_a_prompt_later_is_not_told_why_it_could_not_be_read_then() -> None:
    """Who asked first has not asked again, and is gone; whether the failure was seen by others or not."""
    for is_seen in (True, False):
        clock, reader = Clock(), Reader()
        prompts = Prompts(reader.read, attend, num_prompts=2, now_s=clock)
        prompts.add("talk", torch.zeros(1, 1, 1))
        assert not prompts.is_ready("bad")
        reader.let()
        if is_seen:
            assert prompts.is_ready("talk")
        clock.at_s += TOLD_WITHIN_S + 1
        assert not prompts.is_ready("bad"), "it is tried again"
        reader.let()
        assert prompts.is_ready("bad")
        assert reader.begun == ["bad", "bad"]
