"""Offline rendering: a portrait and a sound file become a movie, through the same engine as a live session.

Everything flows: sound is decoded, pushed and encoded as the engine takes it, frames are encoded as they come, so an
hour needs no more memory than a minute. Frame `i` shows the sound of `[i/25, (i+1)/25)` seconds, as in the live path.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from pipeline.api import Engine, EngineInfo, Stream, StreamRequest
from pipeline.config import LargeConfig
from pipeline.errors import ConfigError, WorkerError
from pipeline.geometry import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, cover_size, exact_size, place_exact
from pipeline.media import AudioFile, EngineResampler, MovieWriter, VideoFile, decode_audio
from pipeline.portrait import Crop, PortraitSource, load_portrait
from pipeline.speakers import shown_part, to_tokens
from tools.voices import MixedSound, Voices, load_voices

__all__ = [
    "PORTRAITS_DIR",
    "Fit",
    "Prepared",
    "RenderJob",
    "RenderSummary",
    "large_frame",
    "parse_size",
    "prepare",
    "render",
]

PORTRAITS_DIR = Path(__file__).parents[1] / "pipeline" / "weights" / "embedded" / "portraits"
SIZE_MULTIPLE_PX = 16
PUSH_SAMPLES = SAMPLE_RATE_HZ

Fit = Literal["face", "cover", "exact"]
"""How a portrait fills the frame: with the face as large as the embedded avatar learnt it, with as much of the picture
as there is room for, or in the way of the published code, black edges included.
"""

Report = Callable[[int, int | None], None]
"""Called with the number of frames written and the number there will be, None while that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderJob:
    """What to render."""

    image: str
    """Path of an image, or id of a default portrait."""
    audio: Path
    """File with the sound; of the first speaker, if there are several."""
    more_audio: tuple[Path, ...] = ()
    """Sounds of the other speakers."""
    regions: tuple[str, ...] = ()
    """Where each of several speakers is: a box or the path of a mask."""
    output: Path
    """The .mp4 to write."""
    size: tuple[int, int] | None = None
    """Width and height that the movie has to have, in pixels (their product, if the fit is exact); None takes the
    engine's."""
    fit: Fit = "face"
    """How the portrait fills the frame."""
    seed: int = 0
    """Seed of the noise and of the motion."""
    prompt: str | None = None
    """Text prompt, for engines that know one."""
    pose: Path | None = None
    """Film whose movement is followed, for the engine that can; `prepare` looks whether it can be used."""
    is_overwriting: bool = False
    """Whether an existing output is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked job: its files are open, nothing was computed yet."""

    job: RenderJob
    """The job."""
    source: PortraitSource
    """The portrait."""
    is_default: bool
    """Whether the portrait is one of ours, which is already cut."""
    sound: AudioFile | MixedSound
    """The sound; `render` closes it."""
    voices: Voices | None
    """Of several speakers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSummary:
    """What was rendered."""

    num_frames: int
    """Frames in the movie."""
    height_px: int
    """Height of the movie."""
    width_px: int
    """Width of the movie."""
    is_face_found: bool
    """Whether the portrait was laid out by its face; true where nobody looked for one."""

    @property
    def duration_s(self) -> float:
        """Length of the movie in seconds."""
        return self.num_frames / FPS


def parse_size(text: str) -> tuple[int, int]:
    """Read a size like 256x384 (or 256*384).

    Args:
        text: Width, then height, in pixels.

    Returns:
        Width and height.

    Raises:
        ConfigError: It does not look like that, or is off the grid.
    """
    width, _, height = text.lower().replace("*", "x").replace("×", "x").partition("x")
    if not (width.isascii() and height.isascii() and width.isdigit() and height.isdigit()):
        raise ConfigError("--size", text, "it has to look like 256x384 (width x height in pixels)")
    size = (int(width), int(height))
    if min(size) == 0 or any(side % SIZE_MULTIPLE_PX for side in size):
        raise ConfigError("--size", text, f"width and height have to be multiples of {SIZE_MULTIPLE_PX}")
    return size


def prepare(job: RenderJob) -> Prepared:
    """Check all that can be checked before an engine is started, and open the files.

    Args:
        job: What to render.

    Returns:
        The job with its files.

    Raises:
        ConfigError: The output cannot be written there.
        MediaError: Image, sound or pose cannot be used.
    """
    _check_output(job)
    if job.pose is not None:
        VideoFile(job.pose).close()
    default = _default_portrait(job.image)
    source = load_portrait(Path(job.image) if default is None else default)
    voices = None
    if job.more_audio or job.regions:
        voices = load_voices((job.audio, *job.more_audio), job.regions, source)
    sound = AudioFile(job.audio) if voices is None else MixedSound(voices)
    return Prepared(job=job, source=source, is_default=default is not None, sound=sound, voices=voices)


def large_frame(prepared: Prepared, config: LargeConfig) -> tuple[int, int]:
    """Choose the size of the large engine's picture, which may be any.

    Args:
        prepared: The job and its portrait.
        config: The engine's own size is the area where the job says nothing.

    Returns:
        Height and width. A job's size is kept, unless its fit is exact: then, and without a size, they follow from the
        shape of the portrait.

    Raises:
        ConfigError: The area is too small.
        MediaError: The portrait is too thin.
    """
    job, source = prepared.job, prepared.source
    width_px, height_px = job.size or (config.width_px, config.height_px)
    if job.fit == "exact":
        return exact_size(source.height_px, source.width_px, height_px * width_px)
    if job.fit == "cover" and job.size is None:
        return cover_size(source.height_px, source.width_px, height_px * width_px)
    return height_px, width_px


async def render(engine: Engine, info: EngineInfo, prepared: Prepared, report: Report) -> RenderSummary:
    """Render a movie. Cancelling removes what was written.

    Args:
        engine: A ready engine.
        info: What it can do.
        prepared: The job; its sound is closed at the end.
        report: Told of the progress, on the loop.

    Returns:
        What was rendered.

    Raises:
        ConfigError: The engine cannot make that size, or knows no prompts.
        MediaError: The sound is damaged.
        WorkerError: The engine failed.
        OSError: The movie cannot be written.
    """
    job, sound = prepared.job, prepared.sound
    with ExitStack() as stack:
        stack.enter_context(sound)
        _check_size(job, info)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "portrait") as cutter:
            request, is_face_found = await loop.run_in_executor(cutter, _request, prepared, info)
        stream = await engine.open(request)
        writer = MovieWriter(
            job.output,
            height_px=info.height_px,
            width_px=info.width_px,
            rate_hz=sound.rate_hz,
            num_channels=sound.num_channels,
        )
        stack.enter_context(writer)
        # One thread decodes and encodes: the writer is never used by two at once, and is idle before it is closed.
        executor = stack.enter_context(ThreadPoolExecutor(1, "movie"))
        try:
            run = _Run(stream, writer, executor, report)
            await run.run(sound)
        finally:
            await stream.aclose()
        await loop.run_in_executor(executor, writer.finish)
    return RenderSummary(
        num_frames=writer.num_frames,
        height_px=info.height_px,
        width_px=info.width_px,
        is_face_found=is_face_found,
    )


class _Run:
    """Sound in, frames out, side by side."""

    def __init__(self, stream: Stream, writer: MovieWriter, executor: ThreadPoolExecutor, report: Report) -> None:
        self._stream = stream
        self._writer = writer
        self._executor = executor
        self._report = report
        self._expected: int | None = None
        self._num_frames: int | None = None

    async def run(self, sound: AudioFile | MixedSound) -> None:
        """Run to the end of the sound."""
        if sound.duration_s is not None:
            self._expected = round(sound.duration_s * FPS)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(sound), name="render-feed")
                group.create_task(self._take(), name="render-take")
        except* Exception as failures:
            raise _first(failures) from failures

    async def _feed(self, sound: AudioFile | MixedSound) -> None:
        """Push the sound as fast as the engine takes it, and write the original beside the pictures."""
        loop = asyncio.get_running_loop()
        resampler, frames = EngineResampler(), sound.frames()
        num_samples, is_end = 0, False
        while not is_end:
            pcm, is_end = await loop.run_in_executor(self._executor, self._decode_some, frames, resampler)
            await self._stream.push_audio(pcm, num_samples)
            num_samples += len(pcm)
        # Frames after this one come from the silence that fills the last window: they are made after end_audio only.
        self._num_frames = self._expected = -(-num_samples // SAMPLES_PER_FRAME)
        await self._stream.end_audio()

    def _decode_some(self, frames: Iterator[AudioFrame], resampler: EngineResampler) -> tuple[NDArray[np.int16], bool]:
        """Decode about a second; returns it and whether it was the last."""
        parts: list[NDArray[np.int16]] = []
        while sum(len(part) for part in parts) < PUSH_SAMPLES:
            frame = next(frames, None)
            parts.append(resampler.push(frame))
            self._writer.add_sound(frame)
            if frame is None:
                return np.concatenate(parts), True
        return np.concatenate(parts), False

    async def _take(self) -> None:
        """Write the frames as they come."""
        loop = asyncio.get_running_loop()
        async for batch in self._stream:
            if batch.first_frame > self._writer.num_frames and not self._is_complete():
                raise WorkerError(f"frames {self._writer.num_frames} to {batch.first_frame - 1} are missing")
            pictures = batch.frames
            if self._num_frames is not None:
                pictures = pictures[: max(0, self._num_frames - batch.first_frame)]
            await loop.run_in_executor(self._executor, self._writer.add_pictures, pictures)
            self._report(self._writer.num_frames, self._expected)
        if not self._is_complete():
            raise WorkerError(f"the engine ended after frame {self._writer.num_frames}, before the sound did")

    def _is_complete(self) -> bool:
        return self._writer.num_frames == self._num_frames


def _whole_sound(path: Path, longest_s: float) -> NDArray[np.int16] | None:
    """Decode a file for an engine that hears ahead; None if it is too long for that."""
    parts: list[NDArray[np.int16]] = []
    if longest_s:
        for part in decode_audio(path):
            parts.append(part)
            if sum(map(len, parts)) > longest_s * SAMPLE_RATE_HZ:
                return None
    return np.concatenate(parts) if parts else None


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    """Return the first exception of a nested group."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


def _check_output(job: RenderJob) -> None:
    output = job.output
    if output.suffix.lower() != ".mp4":
        raise ConfigError("--output", str(output), "its name has to end in .mp4")
    if output.is_dir():
        raise ConfigError("--output", str(output), "it has to be a file and not a folder")
    if output.exists() and not job.is_overwriting:
        raise ConfigError("--output", str(output), "this file exists; --force replaces it")
    if not output.parent.is_dir():
        raise ConfigError("--output", str(output), f"there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ConfigError("--output", str(output), f"the folder {output.parent} is not writable")


def _default_portrait(image: str) -> Path | None:
    """Return the file of a default portrait, None if the image is a path; a file of that name goes first."""
    index = PORTRAITS_DIR / "index.json"
    if Path(image).exists() or not index.is_file():
        return None
    names = {str(entry["id"]) for entry in json.loads(index.read_text(encoding="utf-8"))}
    if image in names:
        return PORTRAITS_DIR / f"{image}.png"
    if "/" in image or "." in image:
        return None
    rule = f"it has to be an image file or one of {', '.join(sorted(names))}"
    raise ConfigError("--image", image, rule)


def _check_size(job: RenderJob, info: EngineInfo) -> None:
    if job.size is None or job.size == (info.width_px, info.height_px):
        return
    width_px, height_px = job.size
    if job.fit != "exact" or width_px * height_px < info.width_px * info.height_px:
        rule = f"the engine {info.name} makes pictures of {info.width_px}x{info.height_px} only"
        raise ConfigError("--size", f"{width_px}x{height_px}", rule)


def _request(prepared: Prepared, info: EngineInfo) -> tuple[StreamRequest, bool]:
    """Make all that a stream is opened with; returns it and whether a face was found or not needed."""
    job, voices = prepared.job, prepared.voices
    portrait, shown, is_face_found = _cut(prepared, info)
    request = StreamRequest(portrait=portrait, prompt=job.prompt, seed=job.seed, live=False)
    if voices is None:
        sound = _whole_sound(job.audio, info.longest_whole_s)
        return dataclasses.replace(request, sound=sound), is_face_found
    if not info.px_per_token:
        raise ConfigError("number of sounds", len(voices.sounds_VN), f"the engine {info.name} hears one speaker only")
    masks = to_tokens(
        voices.masks_VHW,
        shown,
        token_rows=info.height_px // info.px_per_token,
        token_columns=info.width_px // info.px_per_token,
    )
    return dataclasses.replace(request, sound=voices.sounds_VN, masks=masks), is_face_found


def _cut(prepared: Prepared, info: EngineInfo) -> tuple[NDArray[np.uint8], Crop, bool]:
    """Cut the portrait to the engine's frame; returns it, the part shown, and whether a face was found or needless."""
    source, fit = prepared.source, prepared.job.fit
    if fit == "exact":
        size = {"height_px": info.height_px, "width_px": info.width_px}
        placement = place_exact(source.height_px, source.width_px, **size)
        shown = shown_part(placement, height_px=source.height_px, width_px=source.width_px)
        return source.place(placement), shown, True
    whole = Crop(x_px=0, y_px=0, width_px=source.width_px, height_px=source.height_px)
    if prepared.is_default and source.width_px * info.height_px == source.height_px * info.width_px:
        return source.cut(whole, height_px=info.height_px, width_px=info.width_px), whole, True
    choose = source.widest_crop if fit == "cover" else source.suggest_crop
    crop, is_face_found = choose(info.width_px / info.height_px)
    return source.cut(crop, height_px=info.height_px, width_px=info.width_px), crop, is_face_found
