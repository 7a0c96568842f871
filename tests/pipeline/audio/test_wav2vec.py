"""Features of files and of live sound, by a small network with random weights, against the published formula."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Wav2Vec2ForCTC

from pipeline.audio.context import LiveContext
from pipeline.audio.mel import samples_to_float
from pipeline.audio.normaliser import normalise
from pipeline.audio.wav2vec import Wav2VecFeatures, encode, file_places, live_places
from pipeline.errors import ConfigError
from pipeline.models.wav2vec import Wav2Vec
from tests.fakes.wav2vec import TINY_DIM, TINY_LAYERS, write_tiny_folder

pytestmark = pytest.mark.numerics

WINDOW = 7680
SAMPLE_RATE_HZ = 16_000


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring at these sizes."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Wav2Vec2ForCTC]:
    folder = tmp_path_factory.mktemp("wav2vec2")
    return folder, write_tiny_folder(folder)


@pytest.fixture(scope="module")
def network(written: tuple[Path, Wav2Vec2ForCTC]) -> Wav2Vec:
    return Wav2Vec.load(written[0], device="cpu", dtype=torch.float32)


def _speechlike(num_samples: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    """Noise in syllables with pauses, int16."""
    rng = np.random.default_rng(seed)
    swell = np.repeat(rng.uniform(0, 1, num_samples // 1600 + 1) ** 3, 1600)[:num_samples]
    return (np.clip(rng.normal(0, level, num_samples) * swell, -1, 1) * 32767).astype(np.int16)


def _steady(num_samples: int) -> np.ndarray:
    """Noise that swells three times a second, equally loud throughout, int16."""
    swell = 1 + 0.9 * np.sin(2 * np.pi * np.arange(num_samples) / 4800)
    noise = np.random.default_rng(0).normal(0, 0.1, num_samples)
    return (np.clip(noise * swell, -1, 1) * 32767).astype(np.int16)


def _reference_states(reference: Wav2Vec2ForCTC, pcm: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """All hidden states of the whole file, (S, T, D), by the library's own forward pass."""
    sound = pcm.astype(np.float32) / 32768
    sound = (sound - np.mean(sound)) / np.sqrt(np.var(sound) + 1e-7)
    with torch.inference_mode():
        out = reference.wav2vec2(torch.from_numpy(sound)[None].to(dtype), output_hidden_states=True)
    return torch.cat([*out.hidden_states[:-1], out.last_hidden_state])


def _reference_columns(states_STD: Tensor) -> Tensor:
    """The published code's resampling: to 30 Hz over the whole file, then picks, then zeros to whole clips."""
    num_grid = int(states_STD.shape[1] / 50 * 30)
    grid_SDG = torch.nn.functional.interpolate(
        states_STD.transpose(1, 2), size=num_grid, mode="linear", align_corners=True
    )
    num_columns = 48 * (int(num_grid / (48 * 1.2)) + 1)
    columns = torch.zeros(*grid_SDG.shape[:2], num_columns, dtype=states_STD.dtype)
    for column in range(num_columns):
        if round(1.2 * column) < num_grid:
            columns[:, :, column] = grid_SDG[:, :, round(1.2 * column)]
    return columns


def _stream_all(features: Wav2VecFeatures, pcm: np.ndarray) -> Tensor:
    """Columns of all whole windows, live."""
    stream = features.stream()
    padded = np.pad(pcm, (0, features.right_context_samples))
    size = WINDOW + features.right_context_samples
    return torch.cat([stream.push(padded[start : start + size]) for start in range(0, len(pcm), WINDOW)], dim=2)


@pytest.mark.parametrize("num_samples", [400, 720, 1040, 16_000, 32_000, 100_123, 160_000])
def test_a_file_has_the_columns_of_the_published_formula(
    written: tuple[Path, Wav2Vec2ForCTC], network: Wav2Vec, num_samples: int
) -> None:
    pcm = _speechlike(num_samples)
    given = Wav2VecFeatures(network).from_file(pcm)
    states_STD = _reference_states(written[1], pcm)
    if states_STD.shape[1] < 2:
        assert not given.any()
    else:
        torch.testing.assert_close(given, _reference_columns(states_STD.double()).float(), rtol=1e-4, atol=1e-4)
    assert given.dtype == torch.float32


@pytest.mark.parametrize(
    ("seconds", "num_clips", "num_valid"), [(1.0, 1, 24), (2.0, 2, 49), (10.0, 6, 249), (25.0, 14, 624)]
)
def test_a_file_has_whole_clips_and_zeros_after_its_end(
    network: Wav2Vec, seconds: float, num_clips: int, num_valid: int
) -> None:
    columns = Wav2VecFeatures(network).from_file(_speechlike(int(seconds * SAMPLE_RATE_HZ)))
    assert columns.shape == (TINY_LAYERS + 1, TINY_DIM, 48 * num_clips)
    assert bool(columns[..., :num_valid].any(1).all())
    assert not columns[..., num_valid:].any()


def test_every_length_is_read_from_its_first_state_to_its_last_where_the_grid_ends_on_a_column() -> None:
    """Four of five points of the grid are columns; no column is lost, and none is made of what is not there."""
    for num_states in range(1, 2000):
        num_grid = int(num_states / 50 * 30)
        places = file_places(num_states)
        picked = [point for point in range(num_grid) if point % 6 != 3]
        assert len(places.low_F) == len(picked)
        wanted = [Fraction(point * (num_states - 1), max(1, num_grid - 1)) for point in picked]
        assert places.low_F.tolist() == [int(place) for place in wanted]
        assert np.allclose(places.share_F1[:, 0], [float(place % 1) for place in wanted], atol=1e-6)
        assert not len(picked) or int(places.high_F.max()) <= num_states - 1


class _LargestTensor(TorchDispatchMode):
    """Watches how large the tensors are that are made, those of a given shape excepted."""

    def __init__(self, excepted: tuple[int, ...]) -> None:
        super().__init__()
        self._excepted = excepted
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and tuple(tensor.shape) != self._excepted:
                self.num_elements = max(self.num_elements, tensor.numel())
        return made


def test_nothing_that_a_long_file_needs_is_larger_than_its_columns(network: Wav2Vec) -> None:
    """Neither the maps of the convolutions, nor the scores of the attention, nor the states of all layers."""
    pcm = _speechlike(100 * SAMPLE_RATE_HZ)
    with _LargestTensor((len(pcm),)) as made:
        columns = Wav2VecFeatures(network).from_file(pcm)
    assert made.num_elements == columns.numel() == 25 * TINY_DIM * 53 * 48


@pytest.mark.parametrize("num_samples", [0, 399, 719])
def test_a_file_too_short_for_two_states_has_one_clip_of_zeros(network: Wav2Vec, num_samples: int) -> None:
    columns = Wav2VecFeatures(network).from_file(_speechlike(num_samples))
    assert columns.shape == (TINY_LAYERS + 1, TINY_DIM, 48)
    assert not columns.any()


def test_bfloat16_columns_are_the_published_ones_rounded_where_the_published_code_rounds(
    written: tuple[Path, Wav2Vec2ForCTC],
) -> None:
    network = Wav2Vec.load(written[0], device="cpu", dtype=torch.bfloat16)
    pcm = _speechlike(50_000)
    given = Wav2VecFeatures(network).from_file(pcm)
    reference = Wav2Vec2ForCTC(written[1].config).eval()
    reference.load_state_dict(written[1].state_dict())
    states_STD = _reference_states(reference.bfloat16(), pcm, torch.bfloat16)
    assert given.dtype == torch.bfloat16
    rounded_once = _reference_columns(states_STD.double()).bfloat16().float()
    assert float((given - rounded_once).norm() / rounded_once.norm()) < 1e-4
    # On a CPU the library rounds its weights of interpolation, too.
    wanted = _reference_columns(states_STD).float()
    assert float((given - wanted).norm() / wanted.norm()) < 3e-3


@pytest.mark.parametrize("window", [0, 1, 4, 11])
def test_live_with_all_context_is_the_whole_file(
    written: tuple[Path, Wav2Vec2ForCTC], network: Wav2Vec, window: int
) -> None:
    """The last window that is pushed has all that comes before it on its left, and the rest on its right.

    Columns are read at the places of an endless file: 5/3 states from one point of the 30 Hz grid to the next.
    """
    pcm = _speechlike(12 * WINDOW + 80)
    context = LiveContext(left_ms=max(20, 480 * window), right_ms=480 * (11 - window) + 5)
    stream = Wav2VecFeatures(network, context).stream()
    size = WINDOW + context.right_samples
    for index in range(window):
        stream.skip(pcm[index * WINDOW :][:size])
    live = stream.push(pcm[window * WINDOW :])
    states_STD = _reference_states(written[1], pcm)
    for j in range(12):
        at = Fraction(round(Fraction(6, 5) * (12 * window + j)) * 5, 3)
        low, share = int(at), float(at % 1)
        wanted = (1 - share) * states_STD[:, low] + share * states_STD[:, min(low + 1, states_STD.shape[1] - 1)]
        torch.testing.assert_close(live[:, :, j], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_states", [2, 49, 199, 499, 1000, 1249, 30_001])
def test_the_places_of_a_file_are_stretched_by_two_states_at_most(num_states: int) -> None:
    file, live = (
        places.low_F + places.share_F1[:, 0].double()
        for places in (file_places(num_states), live_places(0, len(file_places(num_states).low_F)))
    )
    stretch = file - live
    assert float(stretch[0]) == 0
    assert float(stretch.min()) >= 0
    assert float(stretch.max()) <= 2
    assert bool((stretch.diff() > -1e-3).all())


def test_no_window_loses_its_last_column_and_none_needs_later_states() -> None:
    whole = live_places(0, 500 * 12)
    for window in range(500):
        own = live_places(12 * window, 12, first_state=24 * window)
        here = slice(12 * window, 12 * window + 12)
        assert torch.equal(own.low_F + 24 * window, whole.low_F[here])
        assert torch.equal(own.share_F1, whole.share_F1[here])
        # At least one state of left context, and no state that begins after the window.
        assert int(own.low_F.min()) >= (-1 if window else 0)
        assert int(own.high_F.max()) <= 23
    assert bool((whole.low_F.diff() > 0).all())


def test_a_long_stream_has_twelve_columns_per_window_each_from_its_own_sound(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network, LiveContext(left_ms=480, right_ms=5))
    pcm = _speechlike(40 * WINDOW)
    columns = _stream_all(features, pcm)
    assert columns.shape == (TINY_LAYERS + 1, TINY_DIM, 40 * 12)
    assert bool((columns.diff(dim=2).abs().amax((0, 1)) > 1e-3).all())


@pytest.mark.parametrize("window", range(5))
def test_the_last_20_ms_of_a_window_count(network: Wav2Vec, window: int) -> None:
    features = Wav2VecFeatures(network, LiveContext(left_ms=960, right_ms=5))
    pcm = _speechlike((window + 1) * WINDOW)
    other = pcm.copy()
    other[-320:] = 20_000
    last, changed = (_stream_all(features, sound)[0, :, -1] for sound in (pcm, other))
    assert float((last - changed).abs().max()) > 1e-2


def test_live_columns_come_nearer_to_those_of_the_file_with_more_context(network: Wav2Vec) -> None:
    pcm = _steady(20 * WINDOW)
    # Twelve windows are pushed, so that even the longest right context ends before the file.
    wanted = encode(network, normalise(samples_to_float(pcm)), live_places(96, 48))
    spread = wanted - wanted.mean(2, keepdim=True)

    def distance(left_ms: int, right_ms: int) -> float:
        stream = Wav2VecFeatures(network, LiveContext(left_ms=left_ms, right_ms=right_ms)).stream()
        size = WINDOW + 16 * right_ms
        windows = [pcm[index * WINDOW :][:size] for index in range(12)]
        for window in windows[:8]:
            stream.skip(window)
        live = torch.cat([stream.push(window) for window in windows[8:]], dim=2)
        return float((live - wanted).norm() / spread.norm())

    by_left = [distance(left_ms, 480) for left_ms in (20, 480, 7680)]
    by_right = [distance(7680, right_ms) for right_ms in (5, 80, 480, 3840)]
    assert by_left == sorted(by_left, reverse=True)
    assert by_right == sorted(by_right, reverse=True)
    assert by_left[-1] < 0.5 * by_left[0]
    assert by_right[-1] < 0.5 * by_right[0]


def test_sound_after_the_right_context_is_not_asked_for(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network, LiveContext(left_ms=960, right_ms=80))
    assert features.right_context_samples == 1280
    pcm = _speechlike(3 * WINDOW)
    other = pcm.copy()
    other[2 * WINDOW + 1280 :] = 9000
    assert torch.equal(_stream_all(features, pcm)[..., :24], _stream_all(features, other)[..., :24])


def test_a_skipped_window_is_still_heard(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network, LiveContext(left_ms=960, right_ms=80))
    size = WINDOW + features.right_context_samples
    pcm = _speechlike(3 * WINDOW + 1280)
    pushed, skipped = features.stream(), features.stream()
    for start in (0, WINDOW):
        pushed.push(pcm[start : start + size])
        skipped.skip(pcm[start : start + size])
    assert torch.equal(pushed.push(pcm[2 * WINDOW :]), skipped.push(pcm[2 * WINDOW :]))


def test_a_quiet_stream_has_the_columns_of_a_loud_one(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network, LiveContext(left_ms=1920, right_ms=80))
    pcm = _speechlike(6 * WINDOW, level=0.3)
    loud, quiet = (_stream_all(features, sound) for sound in (pcm, (pcm // 10).astype(np.int16)))
    assert float((quiet - loud).norm() / loud.norm()) < 0.1


def test_silence_gives_numbers_in_both_modes(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network)
    silence = np.zeros(4 * WINDOW, np.int16)
    assert bool(features.from_file(silence).isfinite().all())
    assert bool(_stream_all(features, silence).isfinite().all())


def test_speech_after_a_long_silence_gives_numbers(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network, LiveContext(left_ms=480, right_ms=80))
    pcm = np.concatenate([np.zeros(10 * WINDOW, np.int16), _speechlike(2 * WINDOW)])
    assert bool(_stream_all(features, pcm).isfinite().all())


def test_streams_of_one_object_do_not_touch_each_other(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network)
    size = WINDOW + features.right_context_samples
    first, second = features.stream(), features.stream()
    alone = features.stream().push(_speechlike(size, seed=3))
    first.push(_speechlike(size, level=0.8, seed=4))
    assert torch.equal(second.push(_speechlike(size, seed=3)), alone)


def test_columns_may_take_part_in_training(network: Wav2Vec) -> None:
    columns = Wav2VecFeatures(network).from_file(_speechlike(16_000))
    assert not columns.is_inference()


def test_a_window_of_the_wrong_length_is_refused_with_both_lengths(network: Wav2Vec) -> None:
    stream = Wav2VecFeatures(network, LiveContext(right_ms=80)).stream()
    with pytest.raises(ConfigError, match=r"\(7680,\), but it has to be \(8960,\)"):
        stream.push(np.zeros(WINDOW, np.int16))


def test_sizes_are_those_of_the_network(network: Wav2Vec) -> None:
    features = Wav2VecFeatures(network)
    assert (features.dim, features.num_layers) == (TINY_DIM, TINY_LAYERS + 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_columns_of_the_cpu(written: tuple[Path, Wav2Vec2ForCTC], network: Wav2Vec) -> None:
    on_gpu = Wav2VecFeatures(Wav2Vec.load(written[0], device="cuda", dtype=torch.float32))
    pcm = _speechlike(4 * WINDOW)
    given = on_gpu.from_file(pcm)
    assert given.device.type == "cuda"
    torch.testing.assert_close(given.cpu(), Wav2VecFeatures(network).from_file(pcm), rtol=1e-2, atol=1e-2)
    assert _stream_all(on_gpu, pcm).device.type == "cuda"
