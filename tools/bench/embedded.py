"""`visavis bench embedded`: how long a window takes on this machine, in each precision, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.api import StreamParams
from pipeline.config import EngineConfig
from pipeline.geometry import WINDOW_S
from pipeline.worker.model import AvatarModel, StageMarks, load_model
from tools.bench.measures import quantiles
from tools.bench.run import describe_machine, sample_speech, windows_of

__all__ = ["WindowTimes", "measure", "run", "show"]

PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
WARM_WINDOWS = 9
"""Of either engine the rings are full by then, and the sound on the left is as long as it gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTimes:
    """Times of one model in milliseconds: medians, 99th percentiles and means."""

    precision: str
    """Arithmetic of the networks."""
    num_steps: int
    """Denoising steps per window."""
    num_windows: int
    """Windows measured."""
    window_ms: dict[str, float]
    """Whole window."""
    stages_ms: dict[str, dict[str, float]]
    """Audio features, each step, and decoding of all frames."""


def measure(
    model: AvatarModel,
    precision: str,
    pcm: NDArray[np.int16],
    *,
    num_windows: int,
    now_s: Callable[[], float] = time.monotonic,
    on_window: Callable[[], None] = lambda: None,
) -> WindowTimes:
    """Time windows of one stream.

    Args:
        model: A warm model.
        precision: Its precision, for the report.
        pcm: 16 kHz mono, repeated as often as needed.
        num_windows: How many to measure, after some that are not.
        now_s: Clock.
        on_window: Called after each window that is measured, while nothing is.

    Returns:
        The times.
    """
    grey = np.full((model.height_px, model.width_px, 3), 128, np.uint8)
    stream = model.open_stream(portrait=grey, prompt=None, seed=0, params=StreamParams())
    sound = list(windows_of(pcm, model.right_context_samples))
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    for index in range(WARM_WINDOWS + num_windows):
        marks = StageMarks(window=index, now_s=now_s)
        started_s = now_s()
        for _ in stream.generate(sound[index % len(sound)].pcm, marks, model.num_steps):
            pass
        if index < WARM_WINDOWS:
            continue
        totals.append(1000 * (now_s() - started_s))
        before_s = started_s
        for name, at_s in _stage_ends(marks):
            stages.setdefault(name, []).append(1000 * (at_s - before_s))
            before_s = at_s
        on_window()
    stream.close()
    return WindowTimes(
        precision=precision,
        num_steps=model.num_steps,
        num_windows=num_windows,
        window_ms=quantiles(totals),
        stages_ms={name: quantiles(values) for name, values in stages.items()},
    )


def _stage_ends(marks: StageMarks) -> list[tuple[str, float]]:
    ends = [("features", marks.features_s), *((f"step {i + 1}", at_s) for i, at_s in enumerate(marks.steps_s))]
    return [(name, at_s) for name, at_s in [*ends, ("decode", marks.decoded_s)] if at_s is not None]


def run(config: EngineConfig, *, num_windows: int) -> dict[str, Any]:
    """Measure the engine of a configuration in every precision, one after the other.

    Args:
        config: Of the engine; its `precision` does not count.
        num_windows: Windows per precision.

    Returns:
        The report, as JSON.

    Raises:
        WeightsError: The weights are missing or damaged.
    """
    pcm = sample_speech()
    results = []
    for precision in PRECISIONS:
        # However slow, so that both precisions do the same work.
        model = load_model(config.model_copy(update={"precision": precision, "keeps_pace": False}))
        model.warm_up()
        results.append(measure(model, precision, pcm, num_windows=num_windows))
    best = min(results, key=lambda result: result.window_ms["p50"])
    return {
        "engine": config.name,
        "threads": config.num_threads,
        "machine": describe_machine(),
        "pace_ms": 1000 * WINDOW_S,
        "faster": best.precision,
        "results": [asdict(result) for result in results],
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report as a table."""
    machine = report["machine"]
    table = Table(title=f"ms per window of {report['pace_ms']:.0f} ms: median (p99), {report['threads']} threads")
    table.add_column("")
    for result in report["results"]:
        table.add_column(result["precision"], justify="right")
    names = list(report["results"][0]["stages_ms"])
    for name in names:
        cells = [_cell(result["stages_ms"].get(name)) for result in report["results"]]
        table.add_row(name, *cells, end_section=name == names[-1])
    table.add_row("window", *(_cell(result["window_ms"]) for result in report["results"]))
    console.print(table)
    console.print(
        f"{machine['cpu']}, {machine['num_cores']} cores; torch {machine['torch']}; commit {machine['commit']}"
    )


def _cell(values: dict[str, float] | None) -> str:
    return "" if values is None else f"{values['p50']:.1f} ({values['p99']:.1f})"
