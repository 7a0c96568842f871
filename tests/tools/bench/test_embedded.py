"""Window times by stage, with a model whose stages take known times."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from pipeline.api import StreamParams
from pipeline.config import EngineConfig
from pipeline.worker.model import StageMarks
from pipeline.worker.pattern import PatternModel
from tools.bench.embedded import WARM_WINDOWS, measure, show

pytestmark = pytest.mark.unit


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def __call__(self) -> float:
        return self.at_s


class TimedModel(PatternModel):
    """The pattern engine, with stages of 10, 20, 20 and 30 ms; the first windows are slow, one later one too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(EngineConfig(name="pattern"))
        self.num_steps = 2
        self.clock = clock

    def open_stream(self, **_: object) -> TimedModel:  # type: ignore[override]
        return self

    def generate(self, pcm: NDArray[np.int16], marks: StageMarks, max_steps: int) -> Iterator[NDArray[np.uint8]]:
        assert pcm.shape == (7680 + self.right_context_samples,)
        if marks.window < WARM_WINDOWS:
            self.clock.at_s += 5
        self.clock.at_s += 0.01
        marks.features_done()
        for _ in range(max_steps):
            self.clock.at_s += 0.02
            marks.step_done()
        yield np.zeros((11, 576, 256), np.uint8)
        self.clock.at_s += 0.03
        marks.decode_done()
        yield np.zeros((1, 576, 256), np.uint8)

    def close(self) -> None:
        self.clock.at_s += 1000


def test_each_stage_has_its_own_time_and_warm_up_is_left_out() -> None:
    clock = Clock()
    times = measure(TimedModel(clock), "fp32", np.zeros(20_000, np.int16), num_windows=20, now_s=clock)
    assert (times.precision, times.num_windows, times.num_steps) == ("fp32", 20, 2)
    assert times.window_ms == pytest.approx({"p50": 80, "p99": 80, "mean": 80})
    medians = {name: stage["p50"] for name, stage in times.stages_ms.items()}
    assert medians == pytest.approx({"features": 10, "step 1": 20, "step 2": 20, "decode": 30})


def test_the_pattern_engine_can_be_measured_too() -> None:
    model = PatternModel(EngineConfig(name="pattern"))
    assert model.open_stream(portrait=None, prompt=None, seed=0, params=StreamParams()) is not None
    assert measure(model, "fp32", np.zeros(7680, np.int16), num_windows=2).window_ms["p50"] > 0


def test_the_table_names_stages_precisions_and_machine() -> None:
    stage = {"p50": 12.34, "p99": 56.78, "mean": 13.0}
    results = [{"precision": name, "window_ms": stage, "stages_ms": {"decode": stage}} for name in ("fp32", "bf16")]
    machine = {"cpu": "Some CPU", "num_cores": 2, "torch": "2.9", "commit": "abc"}
    out = io.StringIO()
    report = {"results": results, "machine": machine, "pace_ms": 480.0, "threads": 2}
    show(report, Console(file=out, width=120))
    for text in ("fp32", "bf16", "decode", "12.3 (56.8)", "Some CPU", "abc"):
        assert text in out.getvalue()
