"""Offline rendering with the pattern engine in its real process: every frame and every click in its place."""

from __future__ import annotations

import re
import resource
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.api import FrameBatch, Stream, StreamRequest
from pipeline.config import EngineConfig, LargeConfig, PatternConfig
from pipeline.errors import ConfigError, MediaError, WorkerError
from pipeline.host.engine import WorkerEngine
from pipeline.worker.pattern import read_clap, read_frame_index
from tests.fakes.checkpoint import write_checkpoint
from tools.render import RenderJob, RenderSummary, parse_size, prepare, render

pytestmark = pytest.mark.contract

NUM_SAMPLES = 16_000 * 7 + 123
CLAP_FRAMES = [0, 11, 12, 40, 100, 174]


def clapping(num_samples: int = NUM_SAMPLES) -> np.ndarray:
    """Silence with a loud tone during the frames of CLAP_FRAMES."""
    time = np.arange(num_samples)
    loud = np.isin(time // 640, CLAP_FRAMES)
    return np.where(loud, 20_000 * np.sin(time), 0).astype("<i2")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    Image.new("RGB", (200, 300), (200, 120, 90)).save(tmp_path / "p.png")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(clapping().tobytes())
    return {"image": tmp_path / "p.png", "audio": tmp_path / "a.wav", "output": tmp_path / "out" / "o.mp4"}


def job(inputs: dict[str, Path], **changes: object) -> RenderJob:
    inputs["output"].parent.mkdir(exist_ok=True)
    values = {"image": str(inputs["image"]), "audio": inputs["audio"], "output": inputs["output"], **changes}
    return RenderJob(**values)  # type: ignore[arg-type]


@dataclass
class RecordedStream:
    """Passes a stream's frames on and keeps them: encoding would blur what they were."""

    stream: Stream
    frames: list[np.ndarray]

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def __aiter__(self) -> RecordedStream:
        return self

    async def __anext__(self) -> FrameBatch:
        batch = await anext(aiter(self.stream))
        self.frames.extend(batch.frames)
        return batch


@dataclass
class RecordedEngine:
    """Opens streams whose frames are kept."""

    engine: WorkerEngine
    frames: list[np.ndarray] = field(default_factory=list)

    async def open(self, request: StreamRequest) -> RecordedStream:
        return RecordedStream(await self.engine.open(request), self.frames)


@contextmanager
def file_size_limit(limit_bytes: int | None) -> Iterator[None]:
    """Let no file grow beyond a limit, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes or before[0], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def rendered(
    what: RenderJob,
    pattern: PatternConfig | None = None,
    *,
    progress: list[tuple[int, int | None]] | None = None,
    limit_bytes: int | None = None,
) -> RenderSummary:
    config = EngineConfig(name="pattern", max_restarts=0, pattern=pattern or PatternConfig(height_px=192, width_px=128))
    engine = WorkerEngine(config)
    engine.start()
    try:
        info = await engine.wait_ready()
        steps = [] if progress is None else progress
        with file_size_limit(limit_bytes):
            return await render(engine, info, prepare(what, config), lambda done, total: steps.append((done, total)))
    finally:
        await engine.aclose()


async def test_each_frame_shows_its_own_40_ms_of_the_sound(inputs: dict[str, Path]) -> None:
    """The movie is decoded again: frame numbers count up, flashes and loud stretches fall together."""
    progress: list[tuple[int, int | None]] = []
    summary = await rendered(job(inputs), progress=progress)
    num_frames = -(-NUM_SAMPLES // 640)
    assert (summary.num_frames, summary.height_px, summary.width_px) == (num_frames, 192, 128)
    with av.open(str(inputs["output"])) as movie:
        frames = list(movie.decode(video=0))
    with av.open(str(inputs["output"])) as movie:
        parts = list(movie.decode(audio=0))
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(num_frames)])
    pictures = [frame.to_ndarray(format="yuv420p") for frame in frames]
    assert [read_frame_index(picture, 192) for picture in pictures] == list(range(num_frames))
    assert [i for i, picture in enumerate(pictures) if read_clap(picture, 192)] == CLAP_FRAMES
    start = round(parts[0].time * 16_000)
    heard = np.concatenate([part.to_ndarray()[0] for part in parts])
    heard = np.pad(heard[max(0, -start) :], (max(0, start), 0))[:NUM_SAMPLES]
    lags = {lag: float(heard[200:-200] @ np.roll(clapping(), lag)[200:-200]) for lag in range(-100, 101)}
    assert max(lags, key=lambda lag: lags[lag]) == 0
    assert progress[-1] == (num_frames, num_frames)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


async def test_a_sound_shorter_than_a_window_gives_its_own_number_of_frames(inputs: dict[str, Path]) -> None:
    with wave.open(str(inputs["audio"]), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(clapping(641).tobytes())
    assert (await rendered(job(inputs))).num_frames == 2


async def test_a_crash_of_the_engine_leaves_no_file(inputs: dict[str, Path]) -> None:
    broken = PatternConfig(height_px=192, width_px=128, fault="crash", fault_window=5)
    with pytest.raises(WorkerError):
        await rendered(job(inputs), broken)
    assert list(inputs["output"].parent.iterdir()) == []


async def test_damaged_sound_leaves_no_file(inputs: dict[str, Path]) -> None:
    inputs["audio"].write_bytes(inputs["audio"].read_bytes()[:44])
    with pytest.raises(MediaError, match="0 samples long"):
        await rendered(job(inputs))
    assert list(inputs["output"].parent.iterdir()) == []


async def test_a_full_disk_is_an_os_error_and_leaves_no_file(inputs: dict[str, Path]) -> None:
    with pytest.raises(OSError, match="File too large"):
        await rendered(job(inputs), limit_bytes=20_000)
    assert list(inputs["output"].parent.iterdir()) == []


@pytest.mark.parametrize("name", ["embedded", "pattern"])
@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"prompt": "smile"}, "--prompt is 'smile', but only the large engine reads a prompt"),
        ({"pose": Path("dance.mp4")}, "--pose is 'dance.mp4', but only the large engine follows a film"),
        ({"more_audio": (Path("b.wav"),)}, "--audio is 'b.wav', but only the large engine hears a second speaker"),
        ({"regions": ("0,0,1,1",)}, "--speaker is '0,0,1,1', but only the large engine hears several speakers"),
    ],
)
def test_what_only_the_large_engine_can_is_refused_before_one_is_started(
    inputs: dict[str, Path], name: str, changes: dict[str, object], refusal: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        prepare(job(inputs, **changes), EngineConfig.model_validate({"name": name}))


@pytest.mark.parametrize(
    ("fit", "size"), [("face", (512, 512)), ("face", (384, 256)), ("cover", (128, 192)), ("exact", (64, 64))]
)
def test_the_embedded_engine_s_size_is_its_own(inputs: dict[str, Path], fit: str, size: tuple[int, int]) -> None:
    shown = f"{size[0]}x{size[1]}"
    with pytest.raises(ConfigError, match=f"--size is '{shown}', but the embedded engine makes pictures of 256x384"):
        prepare(job(inputs, fit=fit, size=size), EngineConfig())


@pytest.mark.parametrize(
    ("fit", "size"), [("face", None), ("face", (256, 384)), ("exact", None), ("exact", (512, 512))]
)
def test_a_size_is_only_an_area_for_the_published_fit(
    inputs: dict[str, Path], fit: str, size: tuple[int, int] | None
) -> None:
    prepared = prepare(job(inputs, fit=fit, size=size), EngineConfig())
    prepared.sound.close()
    assert (prepared.height_px, prepared.width_px) == (384, 256)


def test_the_pattern_engine_s_size_is_that_of_the_job_or_else_its_own(inputs: dict[str, Path]) -> None:
    config = EngineConfig(name="pattern", pattern=PatternConfig(height_px=192, width_px=128))
    for size, expected in ((None, (192, 128)), ((512, 96), (96, 512))):
        prepared = prepare(job(inputs, size=size), config)
        prepared.sound.close()
        assert (prepared.height_px, prepared.width_px) == expected


@pytest.mark.parametrize(
    ("name", "rule"),
    [("o.avi", "end in .mp4"), ("nowhere/o.mp4", "there is no folder"), ("folder.mp4", "a file and not a folder")],
)
def test_an_impossible_output_is_refused_at_once(inputs: dict[str, Path], name: str, rule: str) -> None:
    what = job(inputs, output=inputs["output"].parent / name)
    (inputs["output"].parent / "folder.mp4").mkdir()
    with pytest.raises(ConfigError, match=f"--output is .*{name}', but .*{rule}"):
        prepare(what, EngineConfig())


def test_an_existing_output_is_kept_unless_forced(inputs: dict[str, Path]) -> None:
    what = job(inputs)
    inputs["output"].write_bytes(b"old")
    with pytest.raises(ConfigError, match="this file exists; --force replaces it"):
        prepare(what, EngineConfig())
    prepare(job(inputs, is_overwriting=True), EngineConfig()).sound.close()


@pytest.mark.parametrize("text", ["256x384", "256*384", "256X384", "256×384"])
def test_a_size_can_be_written_in_several_ways(text: str) -> None:
    assert parse_size(text) == (256, 384)


@pytest.mark.parametrize("text", ["", "256", "256x", "x256", "axb", "-16x16", "0x16", "250x384", "256x384x3", "1e2x64"])
def test_an_odd_size_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--size is '.*', but (it has to look like|width and height have to be)"):
        parse_size(text)


@pytest.mark.parametrize(
    ("fit", "size", "expected"),
    [
        ("cover", None, (576, 384)),
        ("cover", (512, 512), (512, 512)),
        ("face", None, (384, 704)),
        ("face", (128, 192), (192, 128)),
        ("exact", None, (576, 384)),
        ("exact", (400, 720), (640, 448)),
        ("exact", (256, 384), (384, 256)),
    ],
)
def test_the_large_engine_s_frame_follows_the_portrait_unless_a_size_is_given(
    inputs: dict[str, Path], fit: str, size: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    """A portrait of 1024x1536 at the area of 704x384, of 720x400, and of 256x384; height first."""
    Image.new("RGB", (1024, 1536), (200, 120, 90)).save(inputs["image"])
    config = EngineConfig(name="large", large=LargeConfig(random_weights=True))
    prepared = prepare(job(inputs, fit=fit, size=size), config)
    prepared.sound.close()
    assert (prepared.height_px, prepared.width_px) == expected


async def test_the_published_fit_leaves_black_edges(inputs: dict[str, Path]) -> None:
    """The pattern engine shows the mean colour of the portrait that it gets."""
    Image.new("RGB", (128, 96), (250, 250, 250)).save(inputs["image"])
    brightness = {}
    for fit in ("cover", "exact"):
        await rendered(job(inputs, fit=fit, is_overwriting=True))
        with av.open(str(inputs["output"])) as movie:
            picture = next(movie.decode(video=0)).to_ndarray(format="gray")
        brightness[fit] = float(picture[-24:, 16:32].mean())
    assert brightness["cover"] > brightness["exact"] + 20


def test_the_published_fit_takes_the_picture_as_it_is_stored(inputs: dict[str, Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 300), (200, 120, 90)).save(inputs["image"], exif=exif)
    for fit, expected in (("cover", (300, 200)), ("exact", (200, 300))):
        prepared = prepare(job(inputs, fit=fit), EngineConfig())
        prepared.sound.close()
        assert (prepared.source.width_px, prepared.source.height_px) == expected


@pytest.mark.parametrize(("num_clips", "expected"), [(1, 48), (3, 144), (4, 176), (9, 176)])
async def test_only_so_many_clips_are_made(inputs: dict[str, Path], num_clips: int, expected: int) -> None:
    """As many frames as there are in the clips, or in the sound; what is heard ends with them."""
    progress: list[tuple[int, int | None]] = []
    summary = await rendered(job(inputs, num_clips=num_clips), progress=progress)
    assert summary.num_frames == expected
    assert progress[-1] == (expected, expected)
    with av.open(str(inputs["output"])) as movie:
        pictures = [frame.to_ndarray(format="yuv420p") for frame in movie.decode(video=0)]
    assert [read_frame_index(picture, 192) for picture in pictures] == list(range(expected))
    with av.open(str(inputs["output"])) as movie:
        sound_s = movie.streams.audio[0].duration * movie.streams.audio[0].time_base
    assert float(sound_s) == pytest.approx(min(expected / 25, NUM_SAMPLES / 16_000), abs=0.001)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The large engine's official folder at a tiny size."""
    folder = tmp_path_factory.mktemp("official")
    write_checkpoint(folder)
    return folder


@pytest.mark.parametrize(("whole_sound_s", "num_samples"), [(300, 60_000), (0, 60_000), (300, 31_000)])
async def test_clips_are_the_beginning_of_the_whole_movie(
    inputs: dict[str, Path], checkpoint: Path, whole_sound_s: float, num_samples: int
) -> None:
    """Heard as a whole, and window by window: what comes after the clips is heard all the same, as far as it goes."""
    noise = np.random.default_rng(0).integers(-9000, 9000, num_samples, np.int16)
    with wave.open(str(inputs["audio"]), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(noise.astype("<i2").tobytes())
    large = LargeConfig(device="cpu", height_px=64, width_px=64, cache_dir=None, whole_sound_s=whole_sound_s)
    config = EngineConfig(name="large", weights_dir=checkpoint, threads=1, large=large)
    engine = WorkerEngine(config)
    engine.start()
    try:
        info = await engine.wait_ready()
        made = []
        for num_clips in (None, 1):
            recorded = RecordedEngine(engine)
            what = prepare(job(inputs, num_clips=num_clips, size=(64, 64), is_overwriting=True), config)
            await render(recorded, info, what, lambda done, total: None)  # type: ignore[arg-type]
            made.append(np.stack(recorded.frames))
    finally:
        await engine.aclose()
    whole, beginning = made
    assert len(whole) > len(beginning) == 48
    assert np.array_equal(whole[:48], beginning)
