"""`visavis bench audio`: how far the large engine's live features are from those of the whole file, by context.

Right context is delay, left context is computing time: the table says what each brings. The columns of some windows,
made live, are compared with the same places of the whole file's hidden states. The difference is given relative to how
much the file's columns vary over time: 0 is the same, 1 is as far as the mean of the file, 1.4 as far as something
unrelated. The last row is the whole file's own columns, which the published code reads at places stretched by up to
40 ms: no context brings those back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Wav2Vec2Config

from pipeline.audio.context import LiveContext
from pipeline.audio.mel import samples_to_float
from pipeline.audio.normaliser import normalise
from pipeline.audio.wav2vec import Wav2VecFeatures, encode, live_places
from pipeline.errors import MediaError
from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from pipeline.media import decode_audio
from pipeline.models.wav2vec import PUBLISHED_FOLDER, Wav2Vec, published_config
from tools.bench.run import SAMPLE_SPEECH, describe_machine

__all__ = ["LEFT_MS", "RIGHT_MS", "Plan", "layer_groups", "load_network", "random_network", "run", "show"]

LEFT_MS = (960, 1920, 3840, 5760)
RIGHT_MS = (5, 80, 160, 320, 480)

_SMALLEST_SPREAD = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Raises:
        ConfigError: A context that the network cannot be given.
    """

    left_ms: Sequence[int] = LEFT_MS
    """Left contexts."""
    right_ms: Sequence[int] = RIGHT_MS
    """Right contexts; each is tried with each of the left."""
    num_windows: int = 8
    """Windows that are compared, spread over the part of the file in which every context is full."""

    def __post_init__(self) -> None:
        assert self.contexts

    @property
    def contexts(self) -> list[LiveContext]:
        """Every combination, by right context."""
        return [LiveContext(left_ms=left, right_ms=right) for right in self.right_ms for left in self.left_ms]


def load_network(folder: Path) -> Wav2Vec:
    """Load the speech network in float32 on the best device.

    Args:
        folder: The published checkpoint, or the folder of the speech network in it.

    Returns:
        The network.

    Raises:
        WeightsError: It is missing or damaged.
    """
    inner = folder / PUBLISHED_FOLDER
    return Wav2Vec.load(inner if inner.is_dir() else folder, device=_device(), dtype=torch.float32)


def random_network(config: Wav2Vec2Config | None = None) -> Wav2Vec:
    """Make a network that has learnt nothing, always the same one.

    Args:
        config: Its sizes; the published ones if None.

    Returns:
        The network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Wav2Vec(config or published_config()).to(_device())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(
    network: Wav2Vec,
    plan: Plan,
    *,
    is_random: bool,
    audio: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure every combination of contexts.

    Args:
        network: In float32.
        plan: What to measure.
        is_random: Whether the network has learnt nothing; the table will say so.
        audio: A file with speech; the sample that ships with visavis if None.
        report: Is told what is being done.

    Returns:
        The report, as JSON.

    Raises:
        MediaError: The file is no sound, or too short for the longest context.
    """
    path = audio or SAMPLE_SPEECH
    pcm = np.concatenate(list(decode_audio(path)))
    windows = _windows(path, len(pcm), plan)
    report(f"encoding {len(pcm) / SAMPLE_RATE_HZ:.0f} s at once")
    wanted = _whole(network, pcm, windows)
    groups = layer_groups(network.num_layers)
    rows = []
    for context in plan.contexts:
        report(f"{context.left_ms} ms before and {context.right_ms} ms after {len(windows)} windows")
        started_s = time.perf_counter()
        live = _live(network, context, pcm, windows)
        rows.append(
            {
                "left_ms": context.left_ms,
                "right_ms": context.right_ms,
                "error": _errors(live, wanted, groups),
                "window_ms": 1000 * (time.perf_counter() - started_s) / len(windows),
            }
        )
    file = Wav2VecFeatures(network).from_file(pcm).cpu()
    columns = [column for window in windows for column in _columns_of(window)]
    return {
        "weights": "random" if is_random else "published",
        "audio": path.name,
        "audio_s": len(pcm) / SAMPLE_RATE_HZ,
        "windows": windows,
        "device": str(network.device),
        "default": {"left_ms": LiveContext().left_ms, "right_ms": LiveContext().right_ms},
        "rows": rows,
        "stretch": _errors(file[..., columns], wanted, groups),
        "machine": describe_machine(),
    }


def _windows(path: Path, num_samples: int, plan: Plan) -> list[int]:
    longest_left = max(context.left_samples for context in plan.contexts)
    longest_right = max(context.right_samples for context in plan.contexts)
    first = -(-longest_left // WINDOW_SAMPLES)
    last = (num_samples - longest_right) // WINDOW_SAMPLES - 1
    if last < first:
        shortest_s = ((first + 1) * WINDOW_SAMPLES + longest_right) / SAMPLE_RATE_HZ
        rule = f"the longest contexts need {shortest_s:.1f} s"
        raise MediaError(f"audio file {path}", f"{num_samples / SAMPLE_RATE_HZ:.1f} s long", rule)
    spread = np.linspace(first, last, min(plan.num_windows, last - first + 1))
    return [int(window) for window in np.unique(spread.round())]


def _columns_of(window: int) -> range:
    return range(window * FRAMES_PER_BLOCK, (window + 1) * FRAMES_PER_BLOCK)


def _whole(network: Wav2Vec, pcm: NDArray[np.int16], windows: Sequence[int]) -> Tensor:
    """Encode the file as a whole, and read where a live stream would read."""
    num_columns = (windows[-1] + 1) * FRAMES_PER_BLOCK
    columns = encode(network, normalise(samples_to_float(pcm)), live_places(0, num_columns)).cpu()
    return torch.cat([columns[..., _columns_of(window)] for window in windows], dim=2)


def _live(network: Wav2Vec, context: LiveContext, pcm: NDArray[np.int16], windows: Sequence[int]) -> Tensor:
    stream = Wav2VecFeatures(network, context).stream()
    columns = []
    for window in range(windows[-1] + 1):
        start = window * WINDOW_SAMPLES
        sound = pcm[start : start + WINDOW_SAMPLES + context.right_samples]
        if window in windows:
            columns.append(stream.push(sound).cpu())
        else:
            stream.skip(sound)
    return torch.cat(columns, dim=2)


def layer_groups(num_layers: int) -> dict[str, slice]:
    """Divide the layers: the input of the first by itself, the rest in thirds.

    Args:
        num_layers: All hidden states, 4 at least.

    Returns:
        The layers of each group, by name.
    """
    edges = [1 + third * (num_layers - 1) // 3 for third in range(4)]
    thirds = {f"{first}-{end - 1}": slice(first, end) for first, end in zip(edges[:-1], edges[1:], strict=True)}
    return {"0": slice(0, 1), **thirds, "all": slice(0, num_layers)}


def _errors(given: Tensor, wanted: Tensor, groups: dict[str, slice]) -> dict[str, float]:
    """Relative distance of each group: the mean over its layers, of which some have far larger numbers than others."""
    spread = (wanted - wanted.mean(2, keepdim=True)).flatten(1).norm(dim=1)
    distance = (given - wanted).flatten(1).norm(dim=1) / spread.clamp_min(_SMALLEST_SPREAD)
    return {name: float(distance[layers].mean()) for name, layers in groups.items()}


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report as a table."""
    if report["weights"] == "random":
        warning = "random weights: these figures say little about the published network; give its folder with --weights"
        console.print(warning, style="red", soft_wrap=True)
    groups = list(report["stretch"])
    table = Table(title=f"live features against the whole file {report['audio']} ({report['audio_s']:.1f} s)")
    for name in ("right ms", "left ms", *(f"layers {group}" for group in groups), "ms per window"):
        table.add_column(name, justify="right")
    rows = report["rows"]
    for index, row in enumerate(rows):
        is_default = all(row[key] == value for key, value in report["default"].items())
        is_last = index + 1 == len(rows) or rows[index + 1]["right_ms"] != row["right_ms"]
        figures = [f"{row['error'][group]:.3f}" for group in groups]
        table.add_row(
            str(row["right_ms"]),
            str(row["left_ms"]),
            *figures,
            f"{row['window_ms']:.0f}",
            style="bold" if is_default else None,
            end_section=is_last,
        )
    table.add_row("file's places", "", *(f"{report['stretch'][group]:.3f}" for group in groups), "")
    console.print(table)
    console.print(
        f"default: {report['default']['left_ms']} ms before, {report['default']['right_ms']} ms after a window"
    )
    machine = report["machine"]
    console.print(f"{report['device']}, {machine['cpu']}; torch {machine['torch']}; commit {machine['commit']}")
