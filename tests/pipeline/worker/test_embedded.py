"""The embedded model with the weights that ship: frames, reproducibility, refusals, and a mouth that follows sound."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.api import StreamParams, StreamRequest
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, WeightsError, WorkerError
from pipeline.face import find_face
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.host.engine import WorkerEngine
from pipeline.media import decode_audio
from pipeline.weights.embedded_files import DEFAULT_FOLDER
from pipeline.worker.embedded import EmbeddedModel, EmbeddedStream
from pipeline.worker.model import StageMarks

pytestmark = [pytest.mark.contract, pytest.mark.timeout(180)]

HEIGHT, WIDTH = 384, 256
STILL = StreamParams(liveliness=0, look_at_camera=1)
PORTRAITS = DEFAULT_FOLDER / "portraits"
NAMES = ("ada", "ben", "chika", "dayo", "elif", "frank")


@pytest.fixture(scope="module")
def model() -> Iterator[EmbeddedModel]:
    """The shipped model in float32 on one thread (two wait for each other where the machine is busy), not warm."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    yield EmbeddedModel(EngineConfig(precision="fp32", threads=1))
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def spoken() -> NDArray[np.int16]:
    """The shipped sample of speech."""
    return np.concatenate(list(decode_audio(DEFAULT_FOLDER / "sample.wav")))


def portrait(name: str) -> NDArray[np.uint8]:
    with Image.open(PORTRAITS / f"{name}.png") as image:
        return np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT)))


def open_stream(
    model: EmbeddedModel, *, seed: int = 0, name: str = "ada", params: StreamParams = STILL
) -> EmbeddedStream:
    return model.open_stream(portrait=portrait(name), prompt=None, seed=seed, params=params)


def make(
    model: EmbeddedModel,
    stream: EmbeddedStream,
    sound: NDArray[np.int16],
    *,
    windows: range = range(2),
    max_steps: int = 4,
) -> NDArray[np.uint8]:
    """Frames of some windows of the sound, (12 * windows, 576, 256)."""
    sound = np.pad(sound, (0, WINDOW_SAMPLES))
    frames = []
    for window in windows:
        first = window * WINDOW_SAMPLES
        pcm = sound[first : first + WINDOW_SAMPLES + model.right_context_samples]
        frames += list(stream.generate(pcm, StageMarks(window=window), max_steps))
    return np.concatenate(frames)


def portrait_luma(name: str) -> NDArray[np.float32]:
    return (portrait(name) @ np.array([65.481, 128.553, 24.966]) / 255 + 16).astype(np.float32)


def luma(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return frames[:, :HEIGHT].astype(np.float32)


def mouth_motion(frames: NDArray[np.uint8], name: str = "ada") -> float:
    """Mean difference of one frame to the next in a box round the mouth."""
    face = find_face(Image.fromarray(portrait(name)))
    assert face is not None
    x, y, half = int(face.mouth[0]), int(face.mouth[1]), int(face.width_px / 4)
    box = luma(frames)[:, y - half // 2 : y + half, x - half : x + half]
    return float(np.abs(np.diff(box, axis=0)).mean())


def test_a_window_is_three_batches_of_four_pictures_with_every_stage_marked(
    model: EmbeddedModel, spoken: NDArray[np.int16]
) -> None:
    ticks = iter(range(100))
    marks = StageMarks(window=0, now_s=lambda: float(next(ticks)))
    pcm = spoken[: WINDOW_SAMPLES + model.right_context_samples]
    batches = list(open_stream(model).generate(pcm, marks, 4))
    assert [batch.shape for batch in batches] == [(4, HEIGHT * 3 // 2, WIDTH)] * 3
    assert all(batch.dtype == np.uint8 for batch in batches)
    assert (marks.features_s, marks.steps_s, marks.decoded_s) == (0, [1, 2, 3, 4], 5)
    assert (model.height_px, model.width_px, model.accepts_portrait, model.accepts_prompt) == (384, 256, True, False)


def test_a_window_given_up_half_way_leaves_stream_and_thread_in_order(
    model: EmbeddedModel, spoken: NDArray[np.int16]
) -> None:
    """Between batches the caller is outside of inference mode, and the next window can be made."""
    stream = open_stream(model)
    batches = stream.generate(spoken[: WINDOW_SAMPLES + model.right_context_samples], StageMarks(window=0), 4)
    next(batches)
    assert not torch.is_inference_mode_enabled()
    batches.close()  # type: ignore[attr-defined]
    stream.interrupt()
    assert make(model, stream, spoken, windows=range(1, 2)).shape == (12, HEIGHT * 3 // 2, WIDTH)


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_first_frame_looks_like_the_portrait(model: EmbeddedModel, spoken: NDArray[np.int16], name: str) -> None:
    """Mean luma difference of a few levels; another portrait is many levels away."""
    first = luma(make(model, open_stream(model, name=name), 0 * spoken, windows=range(1)))[0]
    own = float(np.abs(first - portrait_luma(name)).mean())
    others = [float(np.abs(first - portrait_luma(other)).mean()) for other in NAMES if other != name]
    assert own < 6
    assert min(others) > 3 * own


def test_the_same_seed_gives_the_same_frames_bit_for_bit(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    lively = StreamParams(liveliness=1)
    one, same, other = (make(model, open_stream(model, seed=seed, params=lively), spoken) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(luma(one) - luma(other)).mean() > 0.5


def test_a_seed_also_decides_the_noise(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    """With the head held still the seeds differ by noise and blinks alone; a little, and not by nothing."""
    one, other = (make(model, open_stream(model, seed=seed), spoken) for seed in (1, 2))
    assert 0 < np.abs(luma(one)[:8] - luma(other)[:8]).mean() < 4


def test_streams_in_turn_make_what_each_makes_alone(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    alone = make(model, open_stream(model, seed=5), spoken)
    mine, theirs = open_stream(model, seed=5), open_stream(model, seed=6, name="ben")
    parts = []
    for window in range(2):
        parts.append(make(model, mine, spoken, windows=range(window, window + 1)))
        make(model, theirs, spoken, windows=range(window, window + 1))
    np.testing.assert_array_equal(np.concatenate(parts), alone)


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4])
def test_a_window_cut_short_is_still_a_face(model: EmbeddedModel, spoken: NDArray[np.int16], max_steps: int) -> None:
    frames = make(model, open_stream(model), spoken, windows=range(1), max_steps=max_steps)
    assert frames.shape == (12, HEIGHT * 3 // 2, WIDTH)
    assert np.abs(luma(frames) - portrait_luma("ada")).mean() < 10


def test_more_steps_than_the_model_makes_are_not_made(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    marks = StageMarks(window=0)
    pcm = spoken[: WINDOW_SAMPLES + model.right_context_samples]
    list(open_stream(model).generate(pcm, marks, 9))
    assert len(marks.steps_s) == 4


def test_the_mouth_speaks_in_speech_and_rests_in_silence(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    speaking = make(model, open_stream(model), spoken, windows=range(1, 5))
    resting = make(model, open_stream(model), 0 * spoken, windows=range(1, 5))
    assert mouth_motion(speaking) > 1.0
    assert mouth_motion(resting) < mouth_motion(speaking) / 4


def test_a_window_that_is_skipped_is_heard_and_nothing_else(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    """The window after it has its sound on the left; an interrupt forgets it."""
    skipped = spoken[3 * WINDOW_SAMPLES : 4 * WINDOW_SAMPLES + model.right_context_samples]
    streams = [open_stream(model) for _ in range(3)]
    for stream in streams[1:]:
        stream.skip(skipped)
    streams[2].interrupt()
    without, heard, forgotten = (make(model, stream, spoken, windows=range(4, 5)) for stream in streams)
    assert np.abs(heard.astype(int) - without).mean() > 0.05
    np.testing.assert_array_equal(forgotten, without)


def test_an_interrupt_makes_the_mouth_forget_the_sound(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    """Silence after an interrupt is what silence is for a stream that heard nothing, as far as the audio goes."""
    pcm = np.zeros(WINDOW_SAMPLES + model.right_context_samples, np.int16)
    kept, forgotten = open_stream(model), open_stream(model)
    for stream in (kept, forgotten):
        make(model, stream, spoken, windows=range(1, 4))
    forgotten.interrupt()
    going_on, anew = (np.concatenate(list(s.generate(pcm, StageMarks(window=4), 4))) for s in (kept, forgotten))
    assert np.abs(luma(going_on) - luma(anew)).mean() > 0.02


def test_another_portrait_shows_from_the_next_window_on(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    stream = open_stream(model, name="ada")
    make(model, stream, spoken)
    stream.set_portrait(portrait("dayo"))
    frames = luma(make(model, stream, spoken, windows=range(2, 4)))
    near, far = (np.abs(frames - portrait_luma(name)).mean((1, 2)) for name in ("dayo", "ada"))
    assert near.max() < 8
    assert (near < far / 3).all()


def test_parameters_hold_from_the_next_window_on(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    still, lively = open_stream(model, seed=3), open_stream(model, seed=3)
    np.testing.assert_array_equal(make(model, still, spoken), make(model, lively, spoken))
    lively.update(StreamParams(liveliness=2))
    later = range(2, 4)
    assert (
        np.abs(
            luma(make(model, still, spoken, windows=later)) - luma(make(model, lively, spoken, windows=later))
        ).mean()
        > 0.5
    )


def test_a_closed_stream_holds_nothing(model: EmbeddedModel) -> None:
    stream = open_stream(model)
    stream.close()
    assert not {"_cache", "_portrait", "_decoder_state"} & vars(stream).keys()


def test_a_prompt_is_refused(model: EmbeddedModel) -> None:
    with pytest.raises(ConfigError, match="prompt is 'smile', but the embedded engine knows no prompt"):
        model.open_stream(portrait=portrait("ada"), prompt="smile", seed=0, params=STILL)


@pytest.mark.parametrize("shape", [None, (256, 384, 3), (384, 256), (384, 256, 4)])
def test_a_portrait_of_another_size_is_refused(model: EmbeddedModel, shape: tuple[int, ...] | None) -> None:
    given = None if shape is None else np.zeros(shape, np.uint8)
    with pytest.raises(ConfigError, match=r"RGB picture of shape \(384, 256, 3\)"):
        model.open_stream(portrait=given, prompt=None, seed=0, params=STILL)
    stream = open_stream(model)
    if given is not None:
        with pytest.raises(ConfigError, match=r"RGB picture of shape \(384, 256, 3\)"):
            stream.set_portrait(given)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"manifest\.json: the manifest cannot be read"):
        EmbeddedModel(EngineConfig(weights_dir=tmp_path))


async def through(engine: WorkerEngine, request: StreamRequest, sound: NDArray[np.int16]) -> NDArray[np.uint8]:
    stream = await engine.open(request)
    await stream.push_audio(sound, 0)
    await stream.end_audio()
    frames = np.concatenate([batch.frames async for batch in stream])
    await stream.aclose()
    return frames


async def test_the_worker_process_makes_the_same_frames(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    """Twice bit for bit, through warm-up, messages and shared memory; and what this process makes, to the rounding."""
    sound = spoken[: 2 * WINDOW_SAMPLES]
    engine = WorkerEngine(EngineConfig(precision="fp32", keeps_pace=False, threads=1))
    engine.start()
    try:
        info = await engine.wait_ready()
        assert (info.name, info.height_px, info.width_px, info.num_steps) == ("embedded", HEIGHT, WIDTH, 4)
        assert any("precision fp32" in note for note in info.notes)
        request = StreamRequest(portrait=portrait("ben"), seed=7, params=STILL, live=False)
        made = [await through(engine, request, sound) for _ in range(2)]
    finally:
        await engine.aclose()
    np.testing.assert_array_equal(made[0], made[1])
    difference = made[0].astype(int) - make(model, open_stream(model, seed=7, name="ben"), sound)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-4


def test_a_slow_machine_gets_a_lighter_window_and_is_told(model: EmbeddedModel, spoken: NDArray[np.int16]) -> None:
    """No machine makes a window in a microsecond: everything that can be given up is."""
    slow = EmbeddedModel(EngineConfig(precision="fp32", threads=1), pace_s=1e-6)
    slow.warm_up()
    assert (slow.num_steps, slow.height_px, slow.width_px) == (2, 288, 192)
    assert any("1 thread, 2 steps, 192x288 px" in note for note in slow.notes)
    small = np.asarray(Image.fromarray(portrait("ada")).resize((192, 288)))
    stream = slow.open_stream(portrait=small, prompt=None, seed=0, params=STILL)
    window = spoken[: WINDOW_SAMPLES + slow.right_context_samples]
    pictures = np.concatenate(list(stream.generate(window, StageMarks(window=0), 4)))
    assert pictures.shape == (12, 288 * 3 // 2, 192)
    assert find_face(Image.fromarray(np.repeat(pictures[-1, :288, :, None], 3, 2))) is not None


async def test_a_damaged_file_is_named_by_the_host(tmp_path: Path) -> None:
    for path in DEFAULT_FOLDER.glob("*.[js]*s*"):
        shutil.copy(path, tmp_path)
    with (tmp_path / "dit.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    engine = WorkerEngine(EngineConfig(weights_dir=tmp_path))
    engine.start()
    try:
        with pytest.raises(WorkerError, match=r"dit\.safetensors: damaged: its SHA-256 is not the one"):
            await engine.wait_ready()
    finally:
        await engine.aclose()
