"""`visavis bench quality`: figures of the embedded avatar on people and speech that training has not seen.

Speech is the held-out LibriVox reader of tools/train/speech, with phone times from forced alignment; the people are
the default portraits. Mouths are measured with tools/bench/landmarks. Each person says all clips in one stream.

What these measures can reach: a rendered person who follows the labels exactly (381 frames, two clips) gets an opening
correlation of 0.90 at lag 0, rounding 0.60, every closure, a silence ratio of 0.05 and a border ratio of 1.00.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.config import EngineConfig
from pipeline.geometry import FPS, FRAMES_PER_BLOCK, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from pipeline.worker.model import AvatarModel, load_model
from tools.bench import measures
from tools.bench.landmarks import FaceTracker, aligned_face, mouth_shape
from tools.bench.run import default_portraits, describe_machine, generate
from tools.train.speech.librivox import HeldOutClip, load_librivox
from tools.train.speech.visemes import jaw_opening, rounding

__all__ = ["Script", "Take", "identity", "lip_sync", "make_script", "run", "show", "watch"]

FloatArray = NDArray[np.float32]
Frames = Iterable[NDArray[np.uint8]]
Report = Callable[[str], None]

LEAD_FRAMES, PAUSE_FRAMES, REST_FRAMES = 24, 24, 5 * FPS
# After the last word the mouth may take so long to come to rest; then silence counts as silence.
SETTLE_FRAMES = 8
CONTROL_SHIFT_FRAMES = 61


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Speech with what a mouth should do; all curves are (num_frames,)."""

    pcm: NDArray[np.int16]
    """16 kHz mono, 640 samples per frame."""
    opening: FloatArray
    """Wanted opening of the jaw."""
    rounding: FloatArray
    """Wanted rounding of the lips."""
    closures: tuple[tuple[int, int], ...]
    """First and last frame of each p, b and m."""
    is_speech: NDArray[np.bool_]
    """Whether the frame lies in a clip, pauses inside it included."""
    is_silent: NDArray[np.bool_]
    """Whether the frame is silent and the mouth had time to rest."""


@dataclass(slots=True, kw_only=True)
class Take:
    """What was measured of one stream."""

    opening: list[float] = field(default_factory=list)
    """Lip opening of each frame."""
    width: list[float] = field(default_factory=list)
    """Width of the mouth of each frame."""
    differences: list[float] = field(default_factory=list)
    """Mean absolute difference of each frame to the one before."""
    num_lost: int = 0
    """Frames in which no face was found; they repeat the last measurement."""


def make_script(clips: list[HeldOutClip]) -> Script:
    """Put clips in a row: silence, then each clip and a pause, then a longer rest.

    Args:
        clips: Labelled speech.

    Returns:
        The script.
    """

    def still(num_frames: int) -> tuple[NDArray[np.int16], FloatArray, FloatArray, NDArray[np.bool_]]:
        zero = np.zeros(num_frames, np.float32)
        return np.zeros(num_frames * SAMPLES_PER_FRAME, np.int16), zero, zero, zero > 0

    parts = [still(LEAD_FRAMES)]
    closures: list[tuple[int, int]] = []
    at = LEAD_FRAMES
    for clip in clips:
        spoken = np.ones(len(clip.visemes), bool)
        parts.append((clip.pcm, jaw_opening(clip.visemes, clip.loudness), rounding(clip.visemes), spoken))
        closures += [(at + first, at + last) for first, last in clip.closures]
        parts.append(still(PAUSE_FRAMES if clip is not clips[-1] else REST_FRAMES))
        at += len(spoken) + len(parts[-1][1])
    pcm, opening, rounded, is_speech = (np.concatenate(column) for column in zip(*parts, strict=True))
    recent = np.convolve(is_speech, np.ones(SETTLE_FRAMES + 1))[: len(is_speech)] > 0.5
    return Script(
        pcm=pcm,
        opening=opening,
        rounding=rounded,
        closures=tuple(closures),
        is_speech=is_speech,
        is_silent=~recent,
    )


def watch(frames: Frames) -> Take:
    """Measure the mouth and the changes of each frame.

    Args:
        frames: RGB, (height_px, width_px, 3) each.

    Returns:
        The measurements.
    """
    take, tracker = Take(), FaceTracker()
    before: NDArray[np.uint8] | None = None
    for frame in frames:
        points = tracker.points(frame)
        if points is None:
            take.num_lost += 1
            take.opening.append(take.opening[-1] if take.opening else 0.0)
            take.width.append(take.width[-1] if take.width else 0.0)
        else:
            shape = mouth_shape(points)
            take.opening.append(shape.opening)
            take.width.append(shape.width)
        if before is not None:
            take.differences.append(float(np.abs(frame.astype(np.int16) - before).mean()))
        before = frame
    return take


def lip_sync(take: Take, script: Script) -> dict[str, Any]:
    """Compare what was seen with what was said.

    Args:
        take: Measurements of a stream of the script.
        script: What was said.

    Returns:
        The figures, by name.
    """
    count = len(script.opening)
    opening, width = np.array(take.opening[:count]), np.array(take.width[:count])
    spoken = script.is_speech
    curve = measures.lag_correlations(opening[spoken], script.opening[spoken])
    shifted = np.roll(script.opening[spoken], CONTROL_SHIFT_FRAMES)
    return {
        "lip_opening_correlation": curve[measures.peak_lag(curve)],
        "lip_opening_lag_frames": measures.peak_lag(curve),
        "lip_opening_by_lag": {str(lag): round(value, 3) for lag, value in curve.items()},
        "lip_opening_control": measures.correlation(opening[spoken], shifted),
        "rounding_correlation": measures.correlation(-width[spoken], script.rounding[spoken]),
        "closure_rate": measures.closure_rate(opening, script.closures),
        "silence_motion_ratio": measures.motion_ratio(opening, script.is_silent),
        "block_border_ratio": measures.block_border_ratio(np.array(take.differences), FRAMES_PER_BLOCK),
        "lost_frames": take.num_lost,
    }


def identity(frames: Frames, num_frames: int) -> tuple[FloatArray, FloatArray]:
    """Average the aligned faces of the first and of the last second of a stream.

    Args:
        frames: RGB frames of the stream.
        num_frames: How many there are.

    Returns:
        Two pictures, (64, 64, 3).

    Raises:
        ValueError: No face was seen in one of the two seconds.
    """
    faces: dict[bool, list[FloatArray]] = {True: [], False: []}
    tracker = FaceTracker()
    for index, frame in enumerate(frames):
        is_first, is_last = FPS <= index < 2 * FPS, index >= num_frames - FPS
        if is_first or is_last:
            points = tracker.points(frame)
            if points is not None:
                faces[is_first].append(aligned_face(frame, points))
    if not faces[True] or not faces[False]:
        raise ValueError("no face was seen in the first or in the last second")
    return np.mean(faces[True], 0), np.mean(faces[False], 0)


def run(config: EngineConfig, *, num_people: int, drift_s: float, report: Report) -> dict[str, Any]:
    """Measure everything.

    Args:
        config: Of the engine.
        num_people: How many of the default portraits speak.
        drift_s: Length of the stream whose first and last second are compared.
        report: Told what is being done.

    Returns:
        The figures, as JSON.

    Raises:
        WeightsError: The weights are missing or damaged.
        MediaError: Held-out speech or portraits are missing.
    """
    report("aligning the held-out speech")
    clips = load_librivox()
    script = make_script(clips)
    model = load_model(config)
    model.warm_up()
    portraits = dict(list(default_portraits(model).items())[:num_people])
    people = {}
    for name, portrait in portraits.items():
        report(f"{name} speaks {len(script.pcm) / SAMPLE_RATE_HZ:.0f} s")
        people[name] = lip_sync(watch(generate(model, portrait, script.pcm)), script)
    report(f"one of them speaks {drift_s:.0f} s")
    return {
        "engine": model.name,
        "machine": describe_machine(),
        "notes": list(model.notes),
        "mean": _mean(list(people.values())),
        "people": people,
        "identity": _drift(model, portraits, script, drift_s),
    }


def _mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    numbers = [name for name, value in rows[0].items() if isinstance(value, int | float)]
    return {name: float(np.mean([row[name] for row in rows])) for name in numbers}


def _drift(
    model: AvatarModel, portraits: dict[str, NDArray[np.uint8]], script: Script, drift_s: float
) -> dict[str, float]:
    """Compare the first with the last second of a long stream; other people's faces are the control."""
    num_frames = round(drift_s * FPS)
    pcm = np.resize(script.pcm, num_frames * SAMPLES_PER_FRAME)
    name = next(iter(portraits))
    first, last = identity(_limited(generate(model, portraits[name], pcm), num_frames), num_frames)
    result = {"seconds": drift_s, "similarity": measures.picture_similarity(first, last)}
    others = []
    for other, portrait in portraits.items():
        points = FaceTracker().points(portrait)
        if other != name and points is not None:
            others.append(measures.picture_similarity(first, aligned_face(portrait, points)))
    if others:
        result["control_other_people"] = max(others)
    result["colour_shift"] = float(np.abs(first.mean((0, 1)) - last.mean((0, 1))).max())
    return result


def _limited(frames: Iterator[NDArray[np.uint8]], num_frames: int) -> Iterator[NDArray[np.uint8]]:
    for _, frame in zip(range(num_frames), frames, strict=False):
        yield frame


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report as a table."""
    table = Table(title="held-out speech, default portraits")
    table.add_column("figure")
    table.add_column("mean", justify="right")
    for name in report["people"]:
        table.add_column(name, justify="right")
    for figure, mean in report["mean"].items():
        table.add_row(figure, f"{mean:.3f}", *(f"{row[figure]:.3f}" for row in report["people"].values()))
    console.print(table)
    for figure, value in report["identity"].items():
        console.print(f"identity, {figure}: {value:.3f}")
    for part, value in report.get("vae_psnr_db", {}).items():
        console.print(f"VAE PSNR, {part}: {value:.1f} dB")
    machine = report["machine"]
    console.print(f"{machine['cpu']}; torch {machine['torch']}; commit {machine['commit']}")
