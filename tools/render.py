"""Offline rendering: a portrait and a sound file become a movie, through the same engine as a live session.

Everything flows: sound is decoded, pushed and encoded as the engine takes it, frames are encoded as they come, so an
hour needs no more memory than a minute. Frame `i` shows the sound of `[i/25, (i+1)/25)` seconds, as in the live path.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
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
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, WorkerError
from pipeline.geometry import (
    EMBEDDED_PX,
    FPS,
    FRAMES_PER_CLIP,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
    cover_size,
    exact_size,
    place_exact,
)
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
    "parse_size",
    "prepare",
    "render",
]

PORTRAITS_DIR = Path(__file__).parents[1] / "pipeline" / "weights" / "embedded" / "portraits"
SIZE_MULTIPLE_PX = 16
PUSH_SAMPLES = SAMPLE_RATE_HZ

Fit = Literal["face", "cover", "exact"]
"""How a portrait fills the frame: with the face as large as the embedded avatar learnt it, with as much of the picture
as there is room for, or in the way of the published code: with black edges, and with the file's rotation, colour
profile and transparency left out.
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
    num_clips: int | None = None
    """Clips of 48 frames to make from the beginning; None: the whole sound. It is heard as a whole in any case."""
    prompt: str | None = None
    """Text prompt, for the large engine."""
    pose: Path | None = None
    """Film whose movement is followed, for the large engine; `prepare` looks whether it can be used."""
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
    height_px: int
    """Height of the movie: what the engine has to be started with."""
    width_px: int
    """Width of the movie."""


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
    notes: tuple[str, ...]
    """What the engine says about itself, its precision among it."""

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


def prepare(job: RenderJob, config: EngineConfig) -> Prepared:
    """Check all that can be checked before an engine is started, and open the files.

    Args:
        job: What to render.
        config: Of the engine; its size is the area, or the size itself, where the job says nothing.

    Returns:
        The job with its files.

    Raises:
        ConfigError: The output cannot be written there, or the engine cannot do what is asked for.
        MediaError: Image, sound or pose cannot be used.
    """
    _check_output(job)
    _check_engine(job, config.name)
    if job.pose is not None:
        VideoFile(job.pose).close()
    default = _default_portrait(job.image)
    source = load_portrait(Path(job.image) if default is None else default, is_plain=job.fit == "exact")
    height_px, width_px = _frame_size(job, source, config)
    voices = None
    if job.more_audio or job.regions:
        voices = load_voices((job.audio, *job.more_audio), job.regions, source)
    sound = AudioFile(job.audio) if voices is None else MixedSound(voices)
    return Prepared(
        job=job,
        source=source,
        is_default=default is not None,
        sound=sound,
        voices=voices,
        height_px=height_px,
        width_px=width_px,
    )


async def render(engine: Engine, info: EngineInfo, prepared: Prepared, report: Report) -> RenderSummary:
    """Render a movie. Cancelling removes what was written.

    Args:
        engine: A ready engine, of the size for which the job was prepared.
        info: What it can do.
        prepared: The job; its sound is closed at the end.
        report: Told of the progress, on the loop.

    Returns:
        What was rendered.

    Raises:
        ConfigError: The engine cannot do what is asked for.
        MediaError: The sound is damaged.
        WorkerError: The engine failed.
        OSError: The movie cannot be written.
    """
    job, sound = prepared.job, prepared.sound
    assert (info.height_px, info.width_px) == (prepared.height_px, prepared.width_px), info
    most_frames = math.inf if job.num_clips is None else job.num_clips * FRAMES_PER_CLIP
    with ExitStack() as stack:
        stack.enter_context(sound)
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
            longest_sound_s=most_frames / FPS,
        )
        stack.enter_context(writer)
        # One thread decodes and encodes: the writer is never used by two at once, and is idle before it is closed.
        executor = stack.enter_context(ThreadPoolExecutor(1, "movie"))
        try:
            run = _Run(stream, writer, executor, report, most_frames=most_frames)
            await run.run(sound, right_context_s=info.right_context_s)
        finally:
            await stream.aclose()
        await loop.run_in_executor(executor, writer.finish)
    return RenderSummary(
        num_frames=writer.num_frames,
        height_px=info.height_px,
        width_px=info.width_px,
        is_face_found=is_face_found,
        notes=info.notes,
    )


class _Run:
    """Sound in, frames out, side by side."""

    def __init__(
        self,
        stream: Stream,
        writer: MovieWriter,
        executor: ThreadPoolExecutor,
        report: Report,
        *,
        most_frames: float,
    ) -> None:
        self._stream = stream
        self._writer = writer
        self._executor = executor
        self._report = report
        self._most_frames = most_frames
        self._expected: int | None = None
        # Exact from the end of the sound on, and a bound before.
        self._num_frames = most_frames

    async def run(self, sound: AudioFile | MixedSound, *, right_context_s: float) -> None:
        """Run to the end of the sound, or until there are enough frames."""
        if sound.duration_s is not None:
            self._expected = round(min(sound.duration_s * FPS, self._most_frames))
        # The last window hears what follows it, so that its frames are those of a longer movie.
        most_samples = self._most_frames * SAMPLES_PER_FRAME + math.ceil(right_context_s * SAMPLE_RATE_HZ)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(sound, most_samples), name="render-feed")
                group.create_task(self._take(), name="render-take")
        except* Exception as failures:
            raise _first(failures) from failures

    async def _feed(self, sound: AudioFile | MixedSound, most_samples: float) -> None:
        """Push the sound as fast as the engine takes it, and write the original beside the pictures."""
        loop = asyncio.get_running_loop()
        resampler, frames = EngineResampler(), sound.frames()
        num_samples, is_end = 0, False
        while not is_end and num_samples < most_samples:
            pcm, is_end = await loop.run_in_executor(self._executor, self._decode_some, frames, resampler)
            pcm = pcm[: round(min(len(pcm), most_samples - num_samples))]
            await self._stream.push_audio(pcm, num_samples)
            num_samples += len(pcm)
        if not is_end:
            await loop.run_in_executor(self._executor, self._writer.add_sound, None)
        # Frames after this one come from the silence that fills the last window: they are made after end_audio only.
        self._num_frames = self._expected = round(min(-(-num_samples // SAMPLES_PER_FRAME), self._most_frames))
        if num_samples < most_samples:
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
            pictures = batch.frames[: round(max(0, min(len(batch.frames), self._num_frames - batch.first_frame)))]
            await loop.run_in_executor(self._executor, self._writer.add_pictures, pictures)
            self._report(self._writer.num_frames, self._expected)
            if self._writer.num_frames == self._most_frames:
                return
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


def _check_engine(job: RenderJob, name: str) -> None:
    """Refuse what only the large engine can do."""
    if name == "large":
        return
    asked = {
        "--prompt": (job.prompt, "reads a prompt"),
        "--pose": (job.pose, "follows a film"),
        "--audio": (next(iter(job.more_audio), None), "hears a second speaker"),
        "--speaker": (next(iter(job.regions), None), "hears several speakers"),
    }
    for option, (value, ability) in asked.items():
        if value is not None:
            raise ConfigError(option, str(value), f"only the large engine {ability}")


def _frame_size(job: RenderJob, source: PortraitSource, config: EngineConfig) -> tuple[int, int]:
    """Choose height and width of the movie.

    The large engine's may be any. A job's size is kept, unless its fit is exact: then, and without a size, they follow
    from the shape of the portrait.
    """
    own = {
        "embedded": EMBEDDED_PX,
        "large": (config.large.height_px, config.large.width_px),
        "pattern": (config.pattern.height_px, config.pattern.width_px),
    }[config.name]
    height_px, width_px = own if job.size is None else job.size[::-1]
    if config.name == "large" and job.fit == "exact":
        return exact_size(source.height_px, source.width_px, height_px * width_px)
    if config.name == "large" and job.fit == "cover" and job.size is None:
        return cover_size(source.height_px, source.width_px, height_px * width_px)
    if config.name == "embedded" and (height_px, width_px) != own:
        is_area = job.fit == "exact" and height_px * width_px >= own[0] * own[1]
        if not is_area:
            rule = f"the embedded engine makes pictures of {own[1]}x{own[0]} only"
            raise ConfigError("--size", f"{width_px}x{height_px}", rule)
        return own
    return height_px, width_px


def _request(prepared: Prepared, info: EngineInfo) -> tuple[StreamRequest, bool]:
    """Make all that a stream is opened with; returns it and whether a face was found or not needed."""
    job, voices = prepared.job, prepared.voices
    portrait, shown, is_face_found = _cut(prepared, info)
    request = StreamRequest(portrait=portrait, prompt=job.prompt, seed=job.seed, live=False)
    if voices is None:
        sound = _whole_sound(job.audio, info.longest_whole_s)
        return dataclasses.replace(request, sound=sound), is_face_found
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
