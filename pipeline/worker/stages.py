"""When the stages of a window end, on devices that are told what to do long before they do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import torch

from pipeline.worker.model import StageMarks

__all__ = ["DeviceEvent", "StageClock", "make_event"]

_MS_PER_S = 1000.0


class DeviceEvent(Protocol):
    """A place in what a device has to do; a `torch.cuda.Event`."""

    def record(self) -> None:
        """Come here."""

    def synchronize(self) -> None:
        """Wait until the device is here."""

    def elapsed_time(self, end_event: Self, /) -> float:
        """Milliseconds from here to a later place; the device has been at both."""


def make_event(device: torch.device) -> Callable[[], DeviceEvent] | None:
    """Choose how a device tells the time.

    Args:
        device: The device.

    Returns:
        What makes events; None for the CPU, which has done what it was told when the call returns.
    """
    if device.type != "cuda":
        return None
    return lambda: torch.cuda.Event(enable_timing=True)


class StageClock:
    """Notes the stages of one window. On a GPU nobody waits for a stage: its end is read when the window is done.

    Args:
        marks: Where the stages are noted.
        new_event: From `make_event`. What the device still has to do is waited for.
    """

    def __init__(self, marks: StageMarks, new_event: Callable[[], DeviceEvent] | None) -> None:
        self._marks = marks
        self._new_event = new_event
        self._passed: list[tuple[DeviceEvent, Callable[[float], None]]] = []
        if new_event is not None:
            self._start = new_event()
            self._start.record()
            self._start.synchronize()
            self._started_s = marks.now_s()

    def features_done(self) -> None:
        """The audio features will be ready here."""
        self._note(self._marks.features_done, lambda at_s: setattr(self._marks, "features_s", at_s))

    def step_done(self) -> None:
        """A denoising step will have ended here."""
        self._note(self._marks.step_done, self._marks.steps_s.append)

    def decode_done(self) -> None:
        """All frames will be decoded here; waits for the device, and notes all stages."""
        self._note(self._marks.decode_done, lambda at_s: setattr(self._marks, "decoded_s", at_s))
        for event, note in self._passed:
            event.synchronize()
            note(self._started_s + self._start.elapsed_time(event) / _MS_PER_S)

    def _note(self, now: Callable[[], None], later: Callable[[float], None]) -> None:
        if self._new_event is None:
            now()
            return
        event = self._new_event()
        event.record()
        self._passed.append((event, later))
