"""`visavis bench quality`: figures of the embedded avatar on people and speech that training has not seen.

Speech is the held-out LibriVox reader of tools/train/speech, with phone times from forced alignment; the people are
rendered for the occasion (tools/bench/heldout.py), or, without an EGL driver, the default portraits. Mouths are
measured with tools/bench/landmarks. Each person says all clips in one stream.

Beside the figures of the avatar stand those of the ceiling: the renderer, with a mouth that follows the labels exactly
and the same head motion, seen through the same measures; and those of its frames after the video autoencoder, which
are what the transformer could reach at best. A figure means what it means in comparison with these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.config import EngineConfig
from pipeline.geometry import FPS, FRAMES_PER_BLOCK, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, VAE_TEMPORAL_STRIDE
from pipeline.schedule import EMBEDDED_STEPS
from pipeline.weights.embedded_files import EmbeddedFiles
from pipeline.worker.model import AvatarModel, load_model
from tools.bench import heldout, measures
from tools.bench.landmarks import FaceTracker, aligned_face, mouth_shape
from tools.bench.movies import recorded
from tools.bench.run import default_portraits, describe_machine, generate
from tools.bench.vae import measure_vae, round_trips
from tools.train.head.renderer import Renderer
from tools.train.speech.librivox import HeldOutClip, load_librivox
from tools.train.speech.visemes import VISEMES, jaw_opening, rounding

__all__ = ["Plan", "Script", "Take", "identity", "lip_sync", "make_script", "run", "show", "watch"]

FloatArray = NDArray[np.float32]
Frames = Iterable[NDArray[np.uint8]]
Report = Callable[[str], None]

LEAD_FRAMES, PAUSE_FRAMES, REST_FRAMES = 24, 24, 5 * FPS
# After the last word the mouth may take so long to come to rest; then silence counts as silence.
SETTLE_FRAMES = 8
CONTROL_SHIFT_FRAMES = 61
# Against the noise of the tracker, which is most of what it sees move in a mouth at rest.
AVERAGED_FRAMES = 3
CEILING_CLIPS = 2
REPORT_EVERY_FRAMES = 60 * FPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    num_people: int
    """Held-out people who speak."""
    num_ceiling_people: int
    """How many of them also speak by the renderer, for the ceiling."""
    num_vae_people: int
    """How many of them are encoded and decoded."""
    drift_s: float
    """Length of the stream whose first and last second are compared."""
    movies_dir: Path | None
    """Where to write what was measured, for looking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Speech with what a mouth should do; all curves are (num_frames,)."""

    pcm: NDArray[np.int16]
    """16 kHz mono, 640 samples per frame."""
    opening: FloatArray
    """Wanted opening of the jaw."""
    rounding: FloatArray
    """Wanted rounding of the lips."""
    visemes: FloatArray
    """Viseme weights, (num_frames, 15)."""
    loudness: FloatArray
    """Level of each frame, 1 in normal speech."""
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
    jumps: list[float] = field(default_factory=list)
    """Of four frames in a row, the mean absolute change in their middle beyond the mean of the other two changes."""
    num_lost: int = 0
    """Frames in which no face was found; they repeat the last measurement."""


def make_script(clips: list[HeldOutClip]) -> Script:
    """Put clips in a row: silence, then each clip and a pause, then a longer rest that ends with a block.

    Args:
        clips: Labelled speech.

    Returns:
        The script.
    """

    pcm, visemes, loudness, is_speech = [], [], [], []
    closures: list[tuple[int, int]] = []
    at = 0

    def rest(num_frames: int) -> int:
        pcm.append(np.zeros(num_frames * SAMPLES_PER_FRAME, np.int16))
        visemes.append(np.tile(np.eye(len(VISEMES), dtype=np.float32)[VISEMES.index("sil")], (num_frames, 1)))
        loudness.append(np.zeros(num_frames, np.float32))
        is_speech.append(np.zeros(num_frames, bool))
        return num_frames

    at += rest(LEAD_FRAMES)
    for clip in clips:
        pcm.append(clip.pcm)
        visemes.append(clip.visemes)
        loudness.append(clip.loudness)
        is_speech.append(np.ones(len(clip.visemes), bool))
        closures += [(at + first, at + last) for first, last in clip.closures]
        at += len(clip.visemes)
        at += rest(PAUSE_FRAMES if clip is not clips[-1] else REST_FRAMES + -(at + REST_FRAMES) % FRAMES_PER_BLOCK)
    spoken, weights, level = np.concatenate(is_speech), np.concatenate(visemes), np.concatenate(loudness)
    recent = np.convolve(spoken, np.ones(SETTLE_FRAMES + 1))[: len(spoken)] > 0.5
    return Script(
        pcm=np.concatenate(pcm),
        opening=jaw_opening(weights, level),
        rounding=rounding(weights),
        visemes=weights,
        loudness=level,
        closures=tuple(closures),
        is_speech=spoken,
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
    recent: deque[NDArray[np.int16]] = deque(maxlen=4)
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
        recent.append(frame.astype(np.int16))
        if len(recent) > 1:
            take.differences.append(float(np.abs(recent[-1] - recent[-2]).mean()))
        if len(recent) == 4:
            a, b, c, d = recent
            take.jumps.append(float(np.abs(3 * (c - b) + a - d).mean()) / 2)
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
    moved = [(a + CONTROL_SHIFT_FRAMES, b + CONTROL_SHIFT_FRAMES) for a, b in script.closures]
    elsewhere = [(a, b) for a, b in moved if b < count and spoken[a : b + 1].all()]
    differences = np.array(take.differences)
    at_rest = np.resize(script.is_silent, len(differences) + 1)
    low, high = np.quantile(opening, [0.02, 0.95])
    return {
        "lip_opening_correlation": curve[measures.peak_lag(curve)],
        "lip_opening_lag_frames": measures.peak_lag(curve),
        "lip_opening_by_lag": {str(lag): round(value, 3) for lag, value in curve.items()},
        "lip_opening_control": measures.correlation(opening[spoken], shifted),
        "lip_opening_closed": float(low),
        "lip_opening_wide": float(high),
        "rounding_correlation": measures.correlation(-width[spoken], script.rounding[spoken]),
        "rounded_to_spread_width": _width_ratio(width[spoken], script.visemes[spoken]),
        "closure_rate": measures.closure_rate(opening, script.closures),
        "closure_rate_control": measures.closure_rate(opening, elsewhere),
        "closure_opening": measures.closure_opening(opening, script.closures),
        "closure_opening_control": measures.closure_opening(opening, elsewhere),
        "silence_motion_ratio": measures.motion_ratio(opening, script.is_silent),
        "silence_motion_ratio_averaged": measures.motion_ratio(opening, script.is_silent, AVERAGED_FRAMES),
        "block_border_ratio": measures.border_ratio(differences, FRAMES_PER_BLOCK),
        "block_border_ratio_at_rest": measures.border_ratio(differences, FRAMES_PER_BLOCK, at_rest[1:] & at_rest[:-1]),
        "latent_border_ratio": measures.border_ratio(differences, VAE_TEMPORAL_STRIDE),
        "change_by_place": [round(value, 2) for value in measures.change_by_place(differences, FRAMES_PER_BLOCK)],
        "block_jump_ratio": measures.block_jump_ratio(np.array(take.jumps), FRAMES_PER_BLOCK),
        "lost_frames": take.num_lost,
    }


def _width_ratio(width: NDArray[np.float64], visemes: FloatArray) -> float:
    """Width of the mouth in rounded vowels, relative to that in spread ones; nan where one kind is missing."""

    def share(*names: str) -> FloatArray:
        return np.asarray(visemes[:, [VISEMES.index(name) for name in names]].sum(1), np.float32)

    rounded, spread = width[share("O", "U", "CH") > 0.6], width[share("E", "I", "SS") > 0.6]
    return float(np.median(rounded) / np.median(spread)) if len(rounded) and len(spread) else float("nan")


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


def run(config: EngineConfig, plan: Plan, report: Report) -> dict[str, Any]:
    """Measure everything, with all steps and, unless the configuration says otherwise, in fp32.

    Args:
        config: Of the engine.
        plan: How much.
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
    precision = "fp32" if config.precision == "auto" else config.precision
    config = config.model_copy(update={"num_steps": config.num_steps or EMBEDDED_STEPS, "precision": precision})
    model = load_model(config)
    renderer = heldout.open_renderer(model.width_px, model.height_px)
    result: dict[str, Any] = {
        "engine": model.name,
        "num_steps": config.num_steps,
        "precision": precision,
        "machine": describe_machine(),
        "faces": "default portraits (no EGL driver)" if renderer is None else "rendered people never trained on",
    }
    portraits = _portraits(model, renderer, plan.num_people)
    people = {}
    for name, portrait in portraits.items():
        report(f"{name} of {len(portraits)} speaks {len(script.pcm) / SAMPLE_RATE_HZ:.0f} s")
        frames = recorded(generate(model, portrait, script.pcm), script.pcm, _movie(plan, name))
        people[name] = lip_sync(watch(frames), script)
    result |= {"mean": _mean(list(people.values())), "people": people}
    if renderer is not None:
        result |= _rendered(config, renderer, plan, clips, report)
        renderer.close()
    report(f"one portrait speaks {plan.drift_s:.0f} s")
    return result | {"identity": _drift(model, script, plan, report)}


def _portraits(model: AvatarModel, renderer: Renderer | None, num_people: int) -> dict[str, NDArray[np.uint8]]:
    if renderer is None:
        return dict(list(default_portraits(model).items())[:num_people])
    return {
        f"person {number}": heldout.draw_portrait(renderer, heldout.sample_sitter(number))
        for number in range(num_people)
    }


def _rendered(
    config: EngineConfig, renderer: Renderer, plan: Plan, clips: list[HeldOutClip], report: Report
) -> dict[str, Any]:
    """Measure what needs the renderer: the ceiling of the figures, and the autoencoder."""
    vae = EmbeddedFiles(config.weights_dir).load_vae()
    script = make_script(clips[:CEILING_CLIPS])
    drawn_rows: list[dict[str, Any]] = []
    kept_rows: list[dict[str, Any]] = []
    for number in range(plan.num_ceiling_people):
        report(f"drawing person {number} with the labels' mouth")
        sitter = heldout.sample_sitter(number)
        parts = list(heldout.draw_speaking(renderer, sitter, script.visemes, script.loudness))
        kept = round_trips(vae, heldout.draw_portrait(renderer, sitter), parts)
        for name, rows, made in (("ceiling", drawn_rows, (part.frames for part in parts)), ("vae", kept_rows, kept)):
            frames = (frame for part in made for frame in part)
            rows.append(lip_sync(watch(recorded(frames, script.pcm, _movie(plan, f"{name} {number}"))), script))
    result: dict[str, Any] = {}
    if drawn_rows:
        result |= {"ceiling": _mean(drawn_rows), "vae": _mean(kept_rows)}
    if plan.num_vae_people:
        report(f"encoding and decoding {plan.num_vae_people} people")
        result["vae_psnr_db"] = measure_vae(vae, renderer, clips, plan.num_vae_people)
    return result


def _movie(plan: Plan, name: str) -> Path | None:
    return None if plan.movies_dir is None else plan.movies_dir / f"{name.replace(' ', '-')}.mp4"


def _mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    numbers = [name for name, value in rows[0].items() if isinstance(value, int | float)]
    return {name: float(np.nanmean([row[name] for row in rows])) for name in numbers}


def _drift(model: AvatarModel, script: Script, plan: Plan, report: Report) -> dict[str, float]:
    """Compare the first with the last second of a long stream.

    Faces are alike to begin with, so the mean face of the default portraits is taken away before they are compared:
    then two different people are about unlike, which the control shows.
    """
    num_frames = round(plan.drift_s * FPS)
    pcm = np.resize(script.pcm, num_frames * SAMPLES_PER_FRAME)
    portraits = default_portraits(model)
    faces = {name: aligned_face(portrait, points) for name, portrait in portraits.items()
             if (points := FaceTracker().points(portrait)) is not None}  # fmt: skip
    mean = np.mean(list(faces.values()), 0)
    name = next(iter(faces))
    frames = _reported(_limited(generate(model, portraits[name], pcm), num_frames), report)
    first, last = identity(recorded(frames, pcm, _movie(plan, "long")), num_frames)
    result = {
        "seconds": plan.drift_s,
        "similarity": measures.picture_similarity(first - mean, last - mean),
        "similarity_of_portrait_and_last": measures.picture_similarity(faces[name] - mean, last - mean),
    }
    others = [measures.picture_similarity(first - mean, face - mean) for other, face in faces.items() if other != name]
    if others:
        result["control_other_people"] = max(others)
    result["colour_shift"] = float(np.abs(first.mean((0, 1)) - last.mean((0, 1))).max())
    return result


def _reported(frames: Iterator[NDArray[np.uint8]], report: Report) -> Iterator[NDArray[np.uint8]]:
    for index, frame in enumerate(frames):
        if index and index % REPORT_EVERY_FRAMES == 0:
            report(f"{index // FPS} s")
        yield frame


def _limited(frames: Iterator[NDArray[np.uint8]], num_frames: int) -> Iterator[NDArray[np.uint8]]:
    for _, frame in zip(range(num_frames), frames, strict=False):
        yield frame


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report as a table."""
    references = {name: report[name] for name in ("vae", "ceiling") if name in report}
    table = Table(title=f"held-out speech, {report['faces']}")
    table.add_column("figure")
    table.add_column("mean", justify="right")
    for name in (*references, *report["people"]):
        table.add_column(name, justify="right")
    for figure, mean in report["mean"].items():
        cells = [mean, *(row[figure] for row in (*references.values(), *report["people"].values()))]
        table.add_row(figure, *(f"{value:.3f}" for value in cells))
    console.print(table)
    for figure, value in report["identity"].items():
        console.print(f"identity, {figure}: {value:.3f}")
    for part, value in report.get("vae_psnr_db", {}).items():
        console.print(f"VAE PSNR, {part}: {value:.1f} dB")
    machine = report["machine"]
    console.print(f"{machine['cpu']}; torch {machine['torch']}; commit {machine['commit']}")
