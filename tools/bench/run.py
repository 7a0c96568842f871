"""Run a model in this process, without server and worker, and say what ran."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.config import num_cores
from pipeline.errors import MediaError
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.media import decode_audio
from pipeline.portrait import load_portrait
from pipeline.worker.model import AvatarModel, StageMarks

__all__ = [
    "SAMPLE_SPEECH",
    "default_portraits",
    "describe_machine",
    "generate",
    "sample_speech",
    "to_rgb",
    "windows_of",
]

ROOT = Path(__file__).parents[2]
SAMPLE_SPEECH = ROOT / "pipeline" / "weights" / "embedded" / "sample.wav"
PORTRAITS_DIR = ROOT / "pipeline" / "weights" / "embedded" / "portraits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Sound of one window."""

    index: int
    """Index in the stream."""
    pcm: NDArray[np.int16]
    """(7680 + right_context_samples,)."""


def windows_of(pcm: NDArray[np.int16], right_context_samples: int) -> Iterator[Window]:
    """Cut a sound into windows with their right context; the last is filled up with silence."""
    num_windows = -(-len(pcm) // WINDOW_SAMPLES)
    padded = np.pad(pcm, (0, num_windows * WINDOW_SAMPLES + right_context_samples - len(pcm)))
    for index in range(num_windows):
        start = index * WINDOW_SAMPLES
        yield Window(index=index, pcm=padded[start : start + WINDOW_SAMPLES + right_context_samples])


def generate(
    model: AvatarModel,
    portrait: NDArray[np.uint8],
    pcm: NDArray[np.int16],
    *,
    seed: int = 0,
    params: StreamParams | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Let a portrait speak a sound.

    Args:
        model: A warm model.
        portrait: uint8 RGB in the model's size.
        pcm: 16 kHz mono.
        seed: Of noise and motion.
        params: Of the stream; the defaults if None.

    Yields:
        Single frames, RGB, (height_px, width_px, 3).
    """
    stream = model.open_stream(portrait=portrait, prompt=None, seed=seed, params=params or StreamParams())
    try:
        for window in windows_of(pcm, model.right_context_samples):
            for batch in stream.generate(window.pcm, StageMarks(window=window.index), model.num_steps):
                yield from map(to_rgb, batch)
    finally:
        stream.close()


def to_rgb(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert an I420 picture (BT.601, limited range) to RGB, (height_px, width_px, 3)."""
    frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
    return np.asarray(frame.to_ndarray(format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601"), np.uint8)


def default_portraits(model: AvatarModel) -> dict[str, NDArray[np.uint8]]:
    """Load the portraits that ship with visavis.

    Args:
        model: Gives the size.

    Returns:
        uint8 RGB in the model's frame, by id.

    Raises:
        MediaError: There are none.
    """
    paths = sorted(PORTRAITS_DIR.glob("*.png"))
    if not paths:
        raise MediaError("default portraits", f"absent from {PORTRAITS_DIR}", "they have to lie there")
    portraits = {}
    for path in paths:
        source = load_portrait(path)
        crop, _ = source.suggest_crop(model.width_px / model.height_px)
        portraits[path.stem] = source.cut(crop, height_px=model.height_px, width_px=model.width_px)
    return portraits


def sample_speech() -> NDArray[np.int16]:
    """Decode the speech sample that ships with visavis, 16 kHz mono."""
    return np.concatenate(list(decode_audio(SAMPLE_SPEECH)))


def describe_machine() -> dict[str, str | int]:
    """Say on what and of what a figure was measured."""
    import torch

    return {
        "cpu": _cpu_name(),
        "num_cores": num_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
