"""The large engine on a tiny checkpoint in the official layout: exactness, streams, prompts, refusals, the process."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.api import FrameBatch, StreamParams, StreamRequest
from pipeline.config import num_cores
from pipeline.errors import ConfigError, WeightsError
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.host.engine import WorkerEngine
from pipeline.models.colour import to_i420
from pipeline.models.dit import DiT
from pipeline.models.wan_vae import SINGLE_FLAVOUR, TIMESTEP_FLAVOUR, StillFlavour
from pipeline.weights.sizes import Sizes
from pipeline.worker.large import LargeModel
from pipeline.worker.large_networks import RandomNetworks
from pipeline.worker.model import PromptUnread, StageMarks
from tests.fakes.checkpoint import TINY_DIT, TINY_TEXT_ENCODER_SIZES, TINY_VAE
from tests.fakes.film import write_film
from tests.fakes.large import (
    HEIGHT,
    STILL,
    WIDTH,
    CountedNetworks,
    SlowNetworks,
    config_of,
    difference,
    make,
    open_stream,
    portrait,
    sound,
    windows,
)
from tests.fakes.wav2vec import tiny_config

pytestmark = [pytest.mark.contract, pytest.mark.timeout(180), pytest.mark.usefixtures("modes")]

# Spec 4: the lowest level is shifted by 3 before the levels are spaced, and all of them after.
LOWEST = 3 * 0.001 / (1 + 2 * 0.001)
LEVELS = [1 - step * (1 - LOWEST) / 3 for step in range(4)]
SIGMAS = [*(3 * level / (1 + 2 * level) for level in LEVELS), 0.0]


@pytest.fixture(scope="module")
def model(folder: Path) -> LargeModel:
    return LargeModel(config_of(folder))


def published_loop(
    model: LargeModel,
    columns: list[Tensor],
    seed: int,
    *,
    flavour: StillFlavour = TIMESTEP_FLAVOUR,
    distance: int = 30,
) -> Iterator[Tensor]:
    """Latents of each block, as the published pipeline's main loop reads; the networks and the ring are the model's."""
    dit: DiT = model.dit
    image = torch.from_numpy(portrait()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    still = model.vae.encode_portrait(image, flavour)
    reference, motion, text = still.reference_BCThw[:, :, 0], still.motion_BCThw, model.text("talk")
    cache = dit.new_cache(latent_height=8, latent_width=16, num_steps=4)
    dit.prefill(reference, cache, motion_BCTHW=motion, text=text)
    first_BChw = None
    for clip in range(-(-len(columns) // 4)):
        noise = torch.randn((16, 12, 8, 16), dtype=torch.bfloat16, generator=torch.Generator().manual_seed(seed + clip))
        if clip == 1 and flavour is TIMESTEP_FLAVOUR:
            assert first_BChw is not None
            dit.prefill(first_BChw, cache, motion_BCTHW=motion, text=text)
        for block in range(min(4, len(columns) - 4 * clip)):
            x = noise[None, :, 3 * block : 3 * block + 3]
            heard = dit.encode_audio(columns[4 * clip + block][None].bfloat16())
            first = 12 * clip + 3 * block
            conditioning = dit.condition(heard, dit.modulate([1000 * s for s in SIGMAS[:4]]), first)
            conditioning = dataclasses.replace(conditioning, reference_position=max(30, first + distance))
            for step in range(4):
                velocity = dit.denoise(x, step, conditioning, cache)
                x = (x.float() + (SIGMAS[step + 1] - SIGMAS[step]) * velocity).bfloat16()
            if first_BChw is None:
                first_BChw = x[:, :, 0]
            yield x


def test_frames_are_those_of_the_published_loop(model: LargeModel) -> None:
    """Over the refresh of the reference after the first clip, and with the noise of two clips."""
    stream, hearing = open_stream(model, seed=5), model.features.stream()
    with torch.inference_mode():
        columns = [hearing.push(pcm) for pcm in windows(model)]
        image = torch.from_numpy(portrait()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        state = model.vae.encode_portrait(image).warm_state
        expected = [to_i420(model.vae.decode(x, state)[0]).numpy() for x in published_loop(model, columns, seed=5)]
    for pcm, frames in zip(windows(model), expected, strict=True):
        made = make(stream, pcm)
        assert made.std() > 10
        assert difference(made, frames) < 0.02


def test_the_flavour_of_a_single_device_begins_otherwise_and_keeps_its_reference(folder: Path) -> None:
    model = LargeModel(config_of(folder, flavour="single"))
    stream, hearing = open_stream(model), model.features.stream()
    with torch.inference_mode():
        columns = [hearing.push(pcm) for pcm in windows(model)]
        image = torch.from_numpy(portrait()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        state = model.vae.encode_portrait(image, SINGLE_FLAVOUR).warm_state
        latents = published_loop(model, columns, seed=0, flavour=SINGLE_FLAVOUR)
        expected = [to_i420(model.vae.decode(x, state)[0]).numpy() for x in latents]
    for pcm, frames in zip(windows(model), expected, strict=True):
        assert difference(make(stream, pcm), frames) < 0.02


def test_the_reference_may_stand_nearer(folder: Path) -> None:
    model = LargeModel(config_of(folder, reference_distance=28))
    stream, hearing = open_stream(model), model.features.stream()
    with torch.inference_mode():
        columns = [hearing.push(pcm) for pcm in windows(model)]
        image = torch.from_numpy(portrait()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        state = model.vae.encode_portrait(image).warm_state
        latents = published_loop(model, columns, seed=0, distance=28)
        expected = [to_i420(model.vae.decode(x, state)[0]).numpy() for x in latents]
    made = [make(stream, pcm) for pcm in windows(model)]
    for here, there in zip(made, expected, strict=True):
        assert difference(here, there) < 0.02
    usual = open_stream(LargeModel(config_of(folder)))
    assert max(difference(make(usual, pcm), frames) for pcm, frames in zip(windows(model), made, strict=True)) > 0.05


def test_a_film_gives_every_stream_its_pose_from_the_beginning(folder: Path, tmp_path: Path) -> None:
    """Without a film the pose is none, which is another thing than a black one."""
    grey, white = (write_film(tmp_path / f"{value}.mp4", [value] * 24) for value in (40, 250))
    first = {}
    for name, film in {"grey": grey, "white": white, "none": None}.items():
        model = LargeModel(config_of(folder, pose_video=film))
        one, same = open_stream(model), open_stream(model)
        first[name] = make(one, windows(model)[0])
        np.testing.assert_array_equal(make(same, windows(model)[0]), first[name])
        assert make(one, windows(model)[1]).shape == (12, HEIGHT * 3 // 2, WIDTH)
        one.close()
        same.close()
    assert difference(first["grey"], first["white"]) > 0.05
    assert difference(first["grey"], first["none"]) > 0.05


def test_a_sound_that_is_known_is_heard_as_the_published_code_hears_it(model: LargeModel) -> None:
    """At once; its end, where the published code has no columns for a whole window, is silent to the model."""
    pcm = sound()[: 4 * WINDOW_SAMPLES + 160]
    with torch.inference_mode():
        columns = model.features.from_file(pcm)
        assert columns.shape[2] == 48
        heard = [*columns.split(12, dim=2), torch.zeros(25, 16, 12)]
        image = torch.from_numpy(portrait()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        state = model.vae.encode_portrait(image).warm_state
        expected = [to_i420(model.vae.decode(x, state)[0]).numpy() for x in published_loop(model, heard, seed=0)]
    stream, live = open_stream(model), open_stream(model)
    stream.hear_whole(pcm[None], None)
    for window, frames in enumerate(expected):
        nothing = np.zeros(WINDOW_SAMPLES + model.right_context_samples, np.int16)
        made = np.concatenate(list(stream.generate(nothing, StageMarks(window=window), 4)))
        assert difference(made, frames) < 0.02
    assert difference(make(live, windows(model)[0]), expected[0]) > 0.02
    stream.interrupt()
    with_sound, without = windows(model)[0], np.zeros_like(windows(model)[0])
    again = open_stream(model)
    again.hear_whole(pcm[None], None)
    for window in range(5):
        list(again.generate(without, StageMarks(window=window), 4))
    again.interrupt()
    assert difference(make(stream, with_sound), make(again, without)) > 0.02


def test_each_of_several_voices_is_heard_under_its_mask(model: LargeModel) -> None:
    """Two voices that say the same under masks that share the picture are one; the other half keeps still otherwise."""
    pcm, silence = sound(1), np.zeros_like(sound(1))
    left = np.zeros((4, 8), np.bool_)
    left[:, :4] = True
    masks = np.stack([left, ~left]).reshape(2, 32)

    def made(sounds: NDArray[np.int16], given: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        stream = open_stream(model)
        stream.hear_whole(sounds, given)
        return np.concatenate(list(stream.generate(windows(model, 1)[0], StageMarks(window=0), 4)))

    one, quiet = made(pcm[None], None), made(silence[None], None)
    assert difference(made(np.stack([pcm, pcm]), masks), one) < 0.3
    only_left, only_right = made(np.stack([pcm, silence]), masks), made(np.stack([silence, pcm]), masks)
    assert difference(only_left, only_right) > 0.1
    half = WIDTH // 2
    near, far = (
        difference(only_left[:, :HEIGHT, part], quiet[:, :HEIGHT, part]) for part in (slice(half), slice(half, WIDTH))
    )
    assert near > far
    assert model.px_per_token == 16


def test_what_is_heard_as_a_whole_is_bounded_by_what_was_planned(folder: Path) -> None:
    model = LargeModel(config_of(folder, whole_sound_s=0.48))
    stream, pcm = open_stream(model), sound(1)
    stream.hear_whole(np.stack([pcm, pcm]), np.ones((2, 32), np.bool_))
    words = r"length of all speakers together is '1.4 s', but there is memory for 0.96 s \(2 x engine.large.whole_sound"
    with pytest.raises(ConfigError, match=words):
        stream.hear_whole(np.stack([pcm, pcm, pcm]), np.ones((3, 32), np.bool_))


def test_a_window_is_three_batches_of_four_pictures_with_every_stage_marked(model: LargeModel) -> None:
    ticks = iter(range(100))
    marks = StageMarks(window=0, now_s=lambda: float(next(ticks)))
    batches = list(open_stream(model).generate(windows(model)[0], marks, 4))
    assert [batch.shape for batch in batches] == [(4, HEIGHT * 3 // 2, WIDTH)] * 3
    assert all(batch.dtype == np.uint8 for batch in batches)
    assert (marks.features_s, marks.steps_s, marks.decoded_s) == (0, [1, 2, 3, 4], 5)
    assert (model.name, model.height_px, model.width_px) == ("large", HEIGHT, WIDTH)
    assert (model.accepts_portrait, model.accepts_prompt) == (True, True)


def test_the_same_seed_gives_the_same_frames_bit_for_bit(model: LargeModel) -> None:
    one, same, other = (open_stream(model, seed=seed) for seed in (1, 1, 2))
    for pcm in windows(model, 2):
        first = make(one, pcm)
        np.testing.assert_array_equal(first, make(same, pcm))
        assert difference(first, make(other, pcm)) > 1


def test_streams_in_turn_make_what_each_makes_alone(model: LargeModel) -> None:
    alone = open_stream(model, seed=3)
    expected = [make(alone, pcm) for pcm in windows(model)]
    mine, theirs = open_stream(model, seed=3), open_stream(model, seed=4, face=1, prompt="sing")
    for pcm, frames in zip(windows(model), expected, strict=True):
        np.testing.assert_array_equal(make(mine, pcm), frames)
        make(theirs, pcm)


@pytest.mark.parametrize("num_steps", [3, 5, 8])
def test_other_numbers_of_steps_are_made(folder: Path, num_steps: int) -> None:
    model = LargeModel(config_of(folder, num_steps=num_steps))
    assert model.num_steps == num_steps
    marks = StageMarks(window=0)
    list(open_stream(model).generate(windows(model)[0], marks, 8))
    assert len(marks.steps_s) == num_steps


@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_a_late_stream_makes_fewer_steps(model: LargeModel, max_steps: int) -> None:
    marks, stream = StageMarks(window=0), open_stream(model)
    list(stream.generate(windows(model)[0], marks, max_steps))
    assert len(marks.steps_s) == max_steps
    assert make(stream, windows(model)[1]).shape == (12, HEIGHT * 3 // 2, WIDTH)


def test_sound_moves_the_picture_and_an_interrupt_makes_it_forgotten(model: LargeModel) -> None:
    speaking, silent = open_stream(model), open_stream(model)
    loud, nothing = windows(model)[0], np.zeros_like(windows(model)[0])
    assert difference(make(speaking, loud), make(silent, nothing)) > 0.2
    kept, forgotten = open_stream(model), open_stream(model)
    np.testing.assert_array_equal(make(kept, loud), make(forgotten, loud))
    forgotten.interrupt()
    assert difference(make(kept, loud), make(forgotten, loud)) > 0.01


def test_a_window_that_is_skipped_is_heard(model: LargeModel) -> None:
    """Latents go on from what was made; only the sound knows."""
    stream, hearing, pcm = open_stream(model), model.features.stream(), windows(model)
    stream.skip(pcm[0])
    hearing.skip(pcm[0])
    with torch.inference_mode():
        columns = [hearing.push(pcm[1]), hearing.push(pcm[2])]
        image = torch.from_numpy(portrait()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        state = model.vae.encode_portrait(image).warm_state
        expected = [to_i420(model.vae.decode(x, state)[0]).numpy() for x in published_loop(model, columns, seed=0)]
    for window, frames in zip(pcm[1:3], expected, strict=True):
        assert difference(make(stream, window), frames) < 0.02
    assert difference(make(open_stream(model), pcm[1]), expected[0]) > 0.02


def test_a_window_that_is_skipped_has_its_part_of_the_film(folder: Path, tmp_path: Path) -> None:
    made = {}
    for name, greys in {"grey": [40] * 48, "white": [250] * 48, "both": [40] * 12 + [250] * 36}.items():
        model = LargeModel(config_of(folder, pose_video=write_film(tmp_path / f"{name}.mp4", greys)))
        stream = open_stream(model)
        stream.skip(windows(model)[0])
        made[name] = make(stream, windows(model)[1])
        stream.close()
    np.testing.assert_array_equal(made["both"], made["white"])
    assert difference(made["both"], made["grey"]) > 0.05


def test_another_prompt_holds_from_the_next_window_on(model: LargeModel) -> None:
    kept, changed, born = open_stream(model), open_stream(model), open_stream(model, prompt="sing")
    pcm = windows(model)
    np.testing.assert_array_equal(make(kept, pcm[0]), make(changed, pcm[0]))
    for params in (StreamParams(liveliness=2), StreamParams(prompt="talk")):
        changed.update(params)
    np.testing.assert_array_equal(make(kept, pcm[1]), make(changed, pcm[1]))
    changed.update(StreamParams(prompt="sing"))
    assert difference(make(kept, pcm[2]), make(changed, pcm[2])) > 0.2
    assert difference(make(born, pcm[0]), make(open_stream(model, params=StreamParams(prompt="sing")), pcm[0])) == 0


def test_another_portrait_begins_another_video_with_the_next_window(model: LargeModel) -> None:
    """As a stream of that portrait that has heard as much and drawn as much noise."""
    stream, other = open_stream(model, seed=1), open_stream(model, seed=1, face=1)
    for pcm in windows(model)[:2]:
        assert difference(make(stream, pcm), make(other, pcm)) > 1
    stream.set_portrait(portrait(1))
    other.set_portrait(portrait(1))
    for pcm in windows(model)[2:]:
        np.testing.assert_array_equal(make(stream, pcm), make(other, pcm))


def test_a_window_given_up_half_way_leaves_stream_and_thread_in_order(model: LargeModel) -> None:
    stream = open_stream(model)
    for pcm in windows(model):
        batches = stream.generate(pcm, StageMarks(window=0), 4)
        next(batches)
        assert not torch.is_inference_mode_enabled()
        batches.close()  # type: ignore[attr-defined]
        stream.interrupt()
    assert make(stream, windows(model)[0]).shape == (12, HEIGHT * 3 // 2, WIDTH)


def test_warming_up_says_what_runs_and_times_windows(model: LargeModel) -> None:
    warm = model.warm_up()
    assert 0 < warm.start_s <= warm.window_s
    assert model.notes[0] == "4 steps in bf16 on the CPU"


@pytest.mark.parametrize(("left_context_ms", "num_warm"), [(480, 5), (1920, 5), (1940, 6), (3840, 9)])
def test_windows_are_timed_once_they_hear_as_much_as_they_ever_will(
    folder: Path, left_context_ms: int, num_warm: int
) -> None:
    """One of the windows before does so too; and four have refreshed the reference and filled the rings."""
    assert LargeModel(config_of(folder, left_context_ms=left_context_ms)).num_warm_windows == num_warm


def test_the_memory_of_a_stream_is_what_was_planned(model: LargeModel) -> None:
    held = open_stream(model).num_bytes
    assert held["keys and values"] == model.memory["keys and values"]
    assert 3 * held["decoder state"] == model.memory["decoder states"]
    networks = {"transformer": model.dit, "video autoencoder": model.vae}
    for name, network in networks.items():
        assert sum(part.nbytes for part in network.parameters()) == model.memory[name]


def test_a_closed_stream_holds_nothing(model: LargeModel) -> None:
    stream = open_stream(model)
    stream.close()
    assert not {"_cache", "_decoder_state", "_text", "_motion_BCThw"} & vars(stream).keys()


@pytest.mark.parametrize("shape", [None, (128, 64, 3), (64, 128), (64, 128, 4)])
def test_a_portrait_of_another_size_is_refused(model: LargeModel, shape: tuple[int, ...] | None) -> None:
    given = None if shape is None else np.zeros(shape, np.uint8)
    with pytest.raises(ConfigError, match=r"RGB picture of shape \(64, 128, 3\)"):
        model.open_stream(portrait=given, prompt=None, seed=0, params=STILL)


def test_random_weights_run_through_the_same_code(folder: Path) -> None:
    sizes = Sizes(dit=TINY_DIT, vae=TINY_VAE, text_encoder=TINY_TEXT_ENCODER_SIZES)
    model = LargeModel(config_of(None, random_weights=True), RandomNetworks(sizes, tiny_config()))
    warm = model.warm_up()
    assert warm.window_s > 0
    assert model.notes[0] == "the weights are random: the pictures mean nothing"
    frames = make(open_stream(model), windows(model)[0])
    assert frames.shape == (12, HEIGHT * 3 // 2, WIDTH)
    assert frames.std() > 5


def test_a_prompt_is_encoded_once_while_it_is_one_of_the_last_two(folder: Path) -> None:
    source = CountedNetworks(folder)
    model = LargeModel(config_of(folder), source)
    for prompt in ("talk", "a", "talk", "b", "talk", "a"):
        open_stream(model, prompt=prompt)
    assert source.prompts == ["talk", "a", "b", "a"]


def until_ready(is_ready: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not is_ready():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_windows_are_made_while_another_prompt_is_read_and_it_holds_from_the_next_on(folder: Path) -> None:
    """Bit for bit as if it had been read in no time; before the first window, as for a stream born with it."""
    source = SlowNetworks(folder)
    model = LargeModel(config_of(folder), source)
    changed, other, unborn = open_stream(model), open_stream(model, face=1), open_stream(model)
    kept, other_kept = open_stream(model), open_stream(model, face=1)
    sing, pcm = StreamParams(prompt="sing"), windows(model)
    assert changed.is_ready(StreamParams(prompt="talk"))
    assert changed.is_ready(StreamParams(liveliness=2))
    for sound_of_window in pcm[:2]:
        assert not changed.is_ready(sing)
        assert not model.is_ready(prompt="sing", params=STILL)
        for mine, its in ((changed, kept), (other, other_kept)):
            np.testing.assert_array_equal(make(mine, sound_of_window), make(its, sound_of_window))
    source.let.set()
    until_ready(lambda: changed.is_ready(sing))
    changed.update(sing)
    kept.update(sing)
    after = make(changed, pcm[2])
    np.testing.assert_array_equal(after, make(kept, pcm[2]))
    np.testing.assert_array_equal(make(other, pcm[2]), make(other_kept, pcm[2]))
    assert model.is_ready(prompt=None, params=sing)
    unborn.update(sing)
    np.testing.assert_array_equal(make(unborn, pcm[0]), make(open_stream(model, prompt="sing"), pcm[0]))
    assert source.prompts == ["talk", "sing"]
    assert source.reserved_bytes == [0]


def test_a_prompt_that_cannot_be_read_is_told_to_who_asked(folder: Path) -> None:
    source = SlowNetworks(folder)
    source.let.set()
    model = LargeModel(config_of(folder), source)
    stream, bad = open_stream(model), StreamParams(prompt="bad")
    until_ready(lambda: stream.is_ready(bad))
    with pytest.raises(PromptUnread, match="no such word"):
        stream.update(bad)
    assert make(stream, windows(model)[0]).shape == (12, HEIGHT * 3 // 2, WIDTH)
    until_ready(lambda: model.is_ready(prompt="bad", params=STILL))
    with pytest.raises(PromptUnread, match="no such word"):
        open_stream(model, prompt="bad")


def test_on_a_cpu_all_cores_work_unless_something_else_is_said(folder: Path) -> None:
    config = config_of(folder)
    try:
        LargeModel(config.model_copy(update={"threads": None}))
        assert torch.get_num_threads() == num_cores()
    finally:
        LargeModel(config)
    assert torch.get_num_threads() == 1


def test_too_little_memory_is_refused_with_the_sum_before_anything_is_loaded(folder: Path) -> None:
    source = CountedNetworks(folder)
    words = (
        r"engine.large.device is 'cpu', but 0.01 GB may be used \(engine.large.memory_gb\) there and 0.0\d GB are "
        r"needed: transformer 0.00, .*, keys and values 0.00, decoder states 0.01, sounds 0.02, work 0.01"
    )
    with pytest.raises(ConfigError, match=words):
        LargeModel(config_of(folder, memory_gb=0.01), source)
    assert (source.num_transformers, source.prompts) == (0, [])


def test_the_published_model_does_not_fit_a_small_machine() -> None:
    config = config_of(None, random_weights=True, height_px=384, width_px=704, memory_gb=80)
    with pytest.raises(ConfigError, match=r"9\d\.\d\d GB are needed: transformer 32.59, .* keys and values 50.61"):
        LargeModel(config)


def test_a_damaged_folder_is_refused_with_the_file(folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "LiveAvatar" / "liveavatar.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"liveavatar\.safetensors: is missing"):
        LargeModel(config_of(damaged))


def test_float32_on_request_is_near_bfloat16(folder: Path, model: LargeModel) -> None:
    settings = config_of(folder).model_copy(update={"precision": "fp32"})
    exact = LargeModel(settings)
    assert exact.dit.dtype is torch.float32
    # The noise is drawn in the compute dtype, so that only its first pictures, still the portrait's, are alike.
    assert exact.memory["transformer"] == 2 * model.memory["transformer"]
    assert make(open_stream(exact), windows(exact)[0]).std() > 10


def test_float32_is_not_rounded_to_tf32(folder: Path) -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    LargeModel(config_of(folder))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


async def taken(engine: WorkerEngine, request: StreamRequest, num_windows: int) -> list[FrameBatch]:
    """All batches of a stream that hears the sound, and is told of a prompt and a portrait after its first window."""
    stream = await engine.open(request)
    await stream.push_audio(sound(num_windows)[: 2 * WINDOW_SAMPLES], 0)
    batches = []
    async for batch in stream:
        batches.append(batch)
        if batch.window == 0 and batch.ledger is not None:
            await stream.update(StreamParams(prompt="sing"))
            await stream.set_portrait(portrait(1))
            await stream.push_audio(sound(num_windows)[2 * WINDOW_SAMPLES :], 2 * WINDOW_SAMPLES)
            await stream.end_audio()
    await stream.aclose()
    return batches


async def test_a_live_session_runs_in_the_worker_process(folder: Path, model: LargeModel) -> None:
    engine = WorkerEngine(config_of(folder))
    engine.start()
    try:
        info = await engine.wait_ready()
        assert (info.name, info.height_px, info.width_px, info.num_steps) == ("large", HEIGHT, WIDTH, 4)
        assert info.accepts_prompt
        assert info.right_context_s == pytest.approx(0.08)
        assert info.longest_whole_s == 300
        request = StreamRequest(portrait=portrait(), prompt="talk", seed=7, live=False)
        whole = await taken(engine, request, 3)
        known = await taken(engine, dataclasses.replace(request, sound=sound(3)), 3)
        live = await taken(engine, StreamRequest(portrait=portrait(), seed=7, live=True), 3)
    finally:
        await engine.aclose()
    frames = np.concatenate([batch.frames for batch in whole])
    assert frames.shape == (36, HEIGHT * 3 // 2, WIDTH)
    here = make(open_stream(model, seed=7), windows(model, 3)[0])
    assert difference(frames[:12], here) < 0.5
    hearing = open_stream(model, seed=7)
    hearing.hear_whole(sound(3)[None], None)
    expected = make(hearing, windows(model, 3)[0])
    assert difference(np.concatenate([batch.frames for batch in known])[:12], expected) < 0.5
    assert difference(expected, here) > 0.02
    ledger = next(batch.ledger for batch in live if batch.ledger is not None)
    assert ledger.features_s is not None
    assert ledger.decoded_s is not None
    order = [ledger.admitted_s, ledger.features_s, *ledger.steps_s, ledger.decoded_s, ledger.copied_s]
    assert order == sorted(order)  # type: ignore[type-var]
    assert len(ledger.steps_s) == 4
