"""Stages of a window on a device that is told what to do long before it does it."""

from __future__ import annotations

import pytest
import torch

from pipeline.worker.model import StageMarks
from pipeline.worker.stages import StageClock, make_event

pytestmark = pytest.mark.unit


class Device:
    """Takes 10 ms for whatever it is told, one thing after another."""

    def __init__(self) -> None:
        self.num_told = 0
        self.num_waits = 0

    def event(self) -> Event:
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.at_ms = -1.0

    def record(self) -> None:
        self.at_ms = 10.0 * self.device.num_told
        self.device.num_told += 1

    def synchronize(self) -> None:
        self.device.num_waits += 1

    def elapsed_time(self, end_event: Event, /) -> float:
        return end_event.at_ms - self.at_ms


def run(stages: StageClock) -> None:
    stages.features_done()
    stages.step_done()
    stages.step_done()
    stages.decode_done()


def test_on_the_cpu_a_stage_ends_when_its_call_returns() -> None:
    ticks = iter(range(10))
    marks = StageMarks(window=0, now_s=lambda: float(next(ticks)))
    run(StageClock(marks, make_event(torch.device("cpu"))))
    assert (marks.features_s, marks.steps_s, marks.decoded_s) == (0, [1, 2], 3)


def test_on_a_gpu_the_stages_are_read_when_the_window_is_done() -> None:
    device, marks = Device(), StageMarks(window=0, now_s=lambda: 100.0)
    stages = StageClock(marks, device.event)
    stages.features_done()
    stages.step_done()
    stages.step_done()
    assert (marks.features_s, marks.steps_s, device.num_waits) == (None, [], 1)
    stages.decode_done()
    assert marks.features_s == pytest.approx(100.01)
    assert marks.steps_s == pytest.approx([100.02, 100.03])
    assert marks.decoded_s == pytest.approx(100.04)


@pytest.mark.gpu
def test_the_events_of_a_gpu_fit() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    marks = StageMarks(window=0)
    started_s = marks.now_s()
    run(StageClock(marks, make_event(torch.device("cuda"))))
    assert marks.decoded_s is not None
    assert started_s <= marks.steps_s[0] <= marks.steps_s[1] <= marks.decoded_s <= marks.now_s() + 0.001
