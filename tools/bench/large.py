"""`visavis bench large`: what the large engine takes to load, to hold and to run on this machine, and its rounding.

Times and memory are those of one stream. The rounding is that of bfloat16: blocks of latents made in bfloat16 and in
float32, of the same weights, noise and sound.
"""

from __future__ import annotations

import dataclasses
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.config import EngineConfig
from pipeline.geometry import LATENT_FRAMES_PER_BLOCK, WINDOW_S
from pipeline.models.dit import DiT, Modulation
from pipeline.models.sampler import Noise
from pipeline.models.wan_vae import StillPortrait
from pipeline.schedule import Schedule
from pipeline.worker.large import LargeModel
from pipeline.worker.large_memory import free_bytes
from pipeline.worker.large_networks import NetworkSource, make_source
from tools.bench.embedded import measure
from tools.bench.run import describe_machine, sample_speech, windows_of

__all__ = ["BlockInputs", "denoise_by_step", "relative_errors", "run", "show"]

NUM_COMPARED_BLOCKS = 3
_EXACT_ROOM = 1.1
"""Memory for float32, in multiples of its weights and one ring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInputs:
    """All that blocks of latents are made of."""

    still: StillPortrait
    """The portrait."""
    rows_BLC: Tensor
    """Rows of the prompt."""
    columns_GSAT: Tensor
    """Audio columns of each block."""
    noise_GCTHW: Tensor
    """Noise of each block."""


def denoise_by_step(dit: DiT, inputs: BlockInputs, schedule: Schedule) -> list[Tensor]:
    """Make blocks of a video step by step: all of them at the first noise level, then all at the next.

    A step sees nothing but its own ring, so the result is that of block after block, and one ring is enough.

    Args:
        dit: In any precision.
        inputs: Of the blocks, which are the first ones of a video.
        schedule: Noise levels.

    Returns:
        Clean latents of each block, (1, C, T, h, w).
    """
    height, width = inputs.noise_GCTHW.shape[-2:]
    with torch.inference_mode():
        cache = dit.new_cache(latent_height=height, latent_width=width, num_steps=1)
        text = dit.encode_text(inputs.rows_BLC)
        still = inputs.still
        dit.prefill(still.reference_BCThw[:, :, 0], cache, motion_BCTHW=still.motion_BCThw, text=text)
        blocks = [noise[None].to(dit.dtype) for noise in inputs.noise_GCTHW]
        heard = [dit.encode_audio(columns[None].to(dit.dtype)) for columns in inputs.columns_GSAT]
        modulation = dit.modulate(schedule.timesteps)
        for step in range(schedule.num_steps):
            cache.clear_rings()
            of_step = Modulation(
                blocks_SY6BF1C=modulation.blocks_SY6BF1C[step : step + 1],
                head_S2BF1C=modulation.head_S2BF1C[step : step + 1],
            )
            change = schedule.sigmas[step + 1] - schedule.sigmas[step]
            for index, latents in enumerate(blocks):
                conditioning = dit.condition(heard[index], of_step, LATENT_FRAMES_PER_BLOCK * index)
                velocity = dit.denoise(latents, 0, conditioning, cache)
                blocks[index] = (latents.float() + change * velocity).to(dit.dtype)
    return blocks


def relative_errors(model: LargeModel, source: NetworkSource, prompt: str, *, room_bytes: int) -> list[float] | None:
    """Compare bfloat16 with float32. Afterwards the model's transformer is in float32.

    Args:
        model: In bfloat16, without streams.
        source: Of its networks.
        prompt: Text prompt.
        room_bytes: Memory that is free.

    Returns:
        Relative L2 error of the latents of each block; None where float32 has no room.
    """
    ring_bytes = model.memory["keys and values"] // model.num_steps
    needed = model.memory["transformer"] + 2 * (ring_bytes + model.memory["work"])
    if room_bytes < _EXACT_ROOM * needed:
        return None
    grey = np.full((model.height_px, model.width_px, 3), 128, np.uint8)
    hearing = model.features.stream()
    windows = [window.pcm for window in windows_of(sample_speech(), model.right_context_samples)]
    with torch.inference_mode():
        noise = Noise(model.geometry, seed=0, device=model.device, dtype=model.dtype)
        inputs = BlockInputs(
            still=model.still(grey),
            rows_BLC=source.encode_prompt(prompt, model.device).to(model.device),
            columns_GSAT=torch.stack([hearing.push(pcm) for pcm in windows[:NUM_COMPARED_BLOCKS]]),
            noise_GCTHW=torch.cat([noise.next_block() for _ in range(NUM_COMPARED_BLOCKS)]),
        )
    rounded = denoise_by_step(model.dit, inputs, model.schedule)
    exact = denoise_by_step(model.dit.float(), inputs, model.schedule)
    return [float((one.float() - other).norm() / other.norm()) for one, other in zip(rounded, exact, strict=True)]


def run(config: EngineConfig, *, num_windows: int, source: NetworkSource | None = None) -> dict[str, Any]:
    """Load the engine of a configuration, measure it, and compare its precision.

    Args:
        config: Of the engine; its `precision` does not count.
        num_windows: Windows to measure.
        source: Where the networks come from; None: as the configuration says.

    Returns:
        The report, as JSON.

    Raises:
        WeightsError: The weights are missing or damaged.
        ConfigError: There is no such device, or not enough memory.
    """
    config = config.model_copy(update={"precision": "bf16"})
    started = time.monotonic()
    source = source or make_source(config)
    model = LargeModel(config, source)
    loaded = time.monotonic()
    model.warm_up()
    warm = time.monotonic()
    used = [used_bytes(model.device)]
    times = measure(
        model,
        "bf16",
        sample_speech(),
        num_windows=num_windows,
        on_window=lambda: used.append(used_bytes(model.device)),
    )
    return {
        "engine": config.name,
        "has_random_weights": config.large.random_weights,
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        "height_px": model.height_px,
        "width_px": model.width_px,
        "num_streams": config.max_streams,
        "pace_ms": 1000 * WINDOW_S,
        "load_s": {**model.load_s, "in all": loaded - started, "warm-up": warm - loaded},
        "times": dataclasses.asdict(times),
        "memory": {
            "planned_bytes": model.memory,
            "first_window_bytes": used[1],
            "last_window_bytes": used[-1],
            "growth_bytes": used[-1] - used[1],
            "most_bytes": max(most_bytes(model.device), *used),
        },
        "relative_errors": relative_errors(model, source, config.large.prompt, room_bytes=free_bytes(model.device)),
    }


def used_bytes(device: torch.device) -> int:
    """Say how much memory is in use: tensors on a GPU, pages of this process on the CPU; on macOS the most so far."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "darwin":
        return most_bytes(device)
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * resource.getpagesize()


def most_bytes(device: torch.device) -> int:
    """Say how much memory was in use at most, as `used_bytes` counts it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report as tables."""
    title = f"large engine, {report['width_px']}x{report['height_px']}, {report['device']}"
    if report["has_random_weights"]:
        console.print("random weights: times and memory count, pictures do not", style="red")
    _print_table(console, f"{title}: seconds to load", report["load_s"].items(), lambda value: f"{value:.1f}")
    times = report["times"]
    stages = [*times["stages_ms"].items(), ("window", times["window_ms"])]
    pace = f"ms per window of {report['pace_ms']:.0f} ms, {times['num_steps']} steps: median (p99)"
    _print_table(console, pace, stages, lambda value: f"{value['p50']:.1f} ({value['p99']:.1f})")
    memory = report["memory"]
    planned = memory["planned_bytes"]
    rows = [
        *planned.items(),
        ("planned in all", sum(planned.values())),
        ("measured after the first window", memory["first_window_bytes"]),
        ("measured after the last", memory["last_window_bytes"]),
        ("measured at most", memory["most_bytes"]),
    ]
    _print_table(console, "memory in GB", rows, lambda value: f"{value / 1e9:.2f}")
    errors = report["relative_errors"]
    text = "no room for float32" if errors is None else ", ".join(f"{error:.2%}" for error in errors)
    console.print(f"relative error of bfloat16 against float32, block by block: {text}")
    machine = report["machine"]
    console.print(f"torch {machine['torch']}; commit {machine['commit']}")


def _print_table(console: Console, title: str, rows: Iterable[tuple[str, Any]], write: Callable[[Any], str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in rows:
        table.add_row(name, write(value))
    console.print(table)
