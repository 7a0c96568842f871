"""Features of live sound and of a file, by an untrained network: the same numbers, no later sound than promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.audio.features import EmbeddedFeatures
from pipeline.errors import ConfigError
from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from pipeline.models.audio_frontend import AudioFrontend, AudioFrontendConfig

pytestmark = pytest.mark.numerics


def _features(lookahead_frames: int = 1, num_mels: int = 80) -> EmbeddedFeatures:
    torch.manual_seed(0)
    config = AudioFrontendConfig(dim=24, num_mels=num_mels, dilations=(1, 2, 3), lookahead_frames=lookahead_frames)
    return EmbeddedFeatures(AudioFrontend(config).eval())


def _speechlike(num_samples: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    """Noise in syllables with pauses, int16."""
    rng = np.random.default_rng(seed)
    swell = np.repeat(rng.uniform(0, 1, num_samples // 1600 + 1) ** 3, 1600)[:num_samples]
    return (np.clip(rng.normal(0, level, num_samples) * swell, -1, 1) * 32767).astype(np.int16)


def _stream_all(features: EmbeddedFeatures, pcm: np.ndarray) -> torch.Tensor:
    stream = features.stream()
    padded = np.pad(pcm, (0, features.right_context_samples))
    starts = range(0, len(pcm), WINDOW_SAMPLES)
    size = WINDOW_SAMPLES + features.right_context_samples
    return torch.cat([stream.push(padded[start : start + size]) for start in starts], dim=2)


@pytest.mark.parametrize("lookahead_frames", [0, 1, 2])
def test_a_stream_and_a_file_give_the_same_columns(lookahead_frames: int) -> None:
    features = _features(lookahead_frames)
    pcm = _speechlike(9 * WINDOW_SAMPLES)
    streamed, whole = _stream_all(features, pcm), features.from_file(pcm)
    assert streamed.shape == (1, 24, 9 * FRAMES_PER_BLOCK)
    assert float((streamed - whole).abs().max()) < 1e-5


def test_a_file_longer_than_one_piece_equals_its_stream() -> None:
    features = _features()
    pcm = _speechlike(130 * WINDOW_SAMPLES)
    assert float((_stream_all(features, pcm) - features.from_file(pcm)).abs().max()) < 1e-5


def test_sound_after_the_right_context_cannot_change_a_column() -> None:
    features = _features()
    pcm = _speechlike(4 * WINDOW_SAMPLES)
    other = pcm.copy()
    end = 2 * WINDOW_SAMPLES + features.right_context_samples
    other[end:] = _speechlike(len(pcm) - end, level=0.9, seed=1)
    same, changed = features.from_file(pcm), features.from_file(other)
    kept_frames = 2 * FRAMES_PER_BLOCK
    assert torch.equal(same[..., :kept_frames], changed[..., :kept_frames])
    assert not torch.allclose(same[..., kept_frames:], changed[..., kept_frames:])


def test_the_last_samples_of_the_right_context_do_count() -> None:
    features = _features()
    size = WINDOW_SAMPLES + features.right_context_samples
    pcm = _speechlike(size)
    other = pcm.copy()
    other[-200:] = 20_000
    assert not torch.equal(features.stream().push(pcm), features.stream().push(other))


def test_one_frame_of_lookahead_costs_67_5_ms_and_each_further_one_40_ms() -> None:
    assert [_features(frames).right_context_samples for frames in (1, 2)] == [1080, 1720]


def test_a_skipped_window_is_still_heard() -> None:
    features = _features()
    size = WINDOW_SAMPLES + features.right_context_samples
    pcm = _speechlike(2 * WINDOW_SAMPLES + features.right_context_samples, level=0.8)
    pushed, skipped = features.stream(), features.stream()
    pushed.push(pcm[:size])
    skipped.skip(pcm[:size])
    after = skipped.push(pcm[WINDOW_SAMPLES:])
    assert torch.equal(pushed.push(pcm[WINDOW_SAMPLES:]), after)
    assert not torch.equal(features.stream().push(pcm[WINDOW_SAMPLES:]), after)


def test_streams_of_one_object_do_not_touch_each_other() -> None:
    features = _features()
    size = WINDOW_SAMPLES + features.right_context_samples
    first, second = features.stream(), features.stream()
    alone = features.stream().push(_speechlike(size, seed=3))
    first.push(_speechlike(size, level=0.8, seed=4))
    assert torch.equal(second.push(_speechlike(size, seed=3)), alone)


def test_a_recording_that_is_20_db_quieter_gives_nearly_the_same_columns_once_its_level_is_known() -> None:
    features = _features()
    pcm = _speechlike(20 * WINDOW_SAMPLES, level=0.3)
    usual, quiet = features.from_file(pcm), features.from_file((pcm * 0.1).astype(np.int16))
    unlike = features.from_file(_speechlike(20 * WINDOW_SAMPLES, level=0.3, seed=9))
    settled = slice(10 * FRAMES_PER_BLOCK, None)
    difference = (usual - quiet)[..., settled].std()
    assert float(difference) < 0.15 * float((usual - unlike)[..., settled].std())


def test_silence_gives_the_same_column_over_and_over() -> None:
    columns = _features().from_file(np.zeros(5 * WINDOW_SAMPLES, np.int16))
    assert torch.allclose(columns, columns[..., :1].expand_as(columns), atol=1e-6)


def test_a_file_has_a_column_for_every_frame_begun() -> None:
    features = _features()
    assert features.from_file(np.zeros(SAMPLES_PER_FRAME + 1, np.int16)).shape == (1, 24, 2)
    assert features.from_file(np.zeros(0, np.int16)).shape == (1, 24, 0)


def test_a_window_of_the_wrong_length_is_refused_with_both_lengths() -> None:
    with pytest.raises(ConfigError, match=r"\(7680,\), but it has to be \(8760,\)"):
        _features().stream().push(np.zeros(WINDOW_SAMPLES, np.int16))


def test_a_network_for_other_spectra_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_mels is 40, but the spectra have 80 bands"):
        _features(num_mels=40)
