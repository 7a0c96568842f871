"""Log-mel spectra against a slow, independent computation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal.windows import hann

from pipeline.audio.mel import (
    ANALYSIS_LEAD_SAMPLES,
    HOP_SAMPLES,
    NUM_MELS,
    POWER_FLOOR,
    frame_power,
    log_mel,
    mel_filters,
    mel_power,
    samples_to_float,
)
from pipeline.errors import ConfigError

pytestmark = pytest.mark.unit


def _sound(num_columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, num_columns * HOP_SAMPLES + 2 * ANALYSIS_LEAD_SAMPLES).astype(np.float32)


def _slow_mel_power(sound: np.ndarray) -> np.ndarray:
    """Compute the same by a discrete Fourier sum and triangles drawn point by point."""
    window = hann(400, sym=False)
    window /= np.sqrt(np.sum(window**2))
    waves = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    edges_mel = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 7600 / 700), NUM_MELS + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    rows = []
    for start in range(0, len(sound) - 399, HOP_SAMPLES):
        power = np.abs(waves @ (sound[start : start + 400].astype(np.float64) * window)) ** 2
        row = []
        for band in range(NUM_MELS):
            triangle = np.interp(np.arange(257) * 31.25, edges_hz[band : band + 3], (0.0, 1.0, 0.0))
            if triangle.sum() == 0.0:
                triangle[np.argmin(np.abs(np.arange(257) * 31.25 - edges_hz[band + 1]))] = 1.0
            row.append(np.dot(power, triangle) / triangle.sum())
        rows.append(row)
    return np.array(rows)


def test_mel_power_equals_a_slow_fourier_sum() -> None:
    sound = _sound(7)
    np.testing.assert_allclose(mel_power(sound), _slow_mel_power(sound), rtol=2e-4)


def test_a_sine_is_loudest_in_the_band_around_its_frequency() -> None:
    time_s = np.arange(10 * HOP_SAMPLES + 2 * ANALYSIS_LEAD_SAMPLES) / 16_000
    power = mel_power(np.sin(2 * np.pi * 1000 * time_s).astype(np.float32)).mean(axis=0)
    assert int(power.argmax()) == int(mel_filters()[:, 32].argmax())


def test_white_noise_has_its_variance_in_every_band() -> None:
    power = mel_power(_sound(4000)).mean(axis=0)
    np.testing.assert_allclose(power, 0.01, rtol=0.15)


def test_a_column_is_the_same_whether_the_sound_comes_whole_or_in_pieces() -> None:
    sound = _sound(30)
    whole = mel_power(sound)
    cut = 13 * HOP_SAMPLES
    first = mel_power(sound[: cut + 2 * ANALYSIS_LEAD_SAMPLES])
    second = mel_power(sound[cut:])
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-5)


def test_frame_power_is_the_windowed_mean_square() -> None:
    np.testing.assert_allclose(frame_power(np.full(400 + 160, 0.5, np.float32)), [0.25, 0.25], rtol=1e-5)


def test_silence_sits_on_the_floor() -> None:
    np.testing.assert_allclose(log_mel(np.zeros((1, NUM_MELS), np.float32)), np.log(POWER_FLOOR), rtol=1e-6)


def test_full_scale_samples_map_to_the_unit_range() -> None:
    assert samples_to_float(np.array([-32768, 0, 16384], np.int16)).tolist() == [-1.0, 0.0, 0.5]


def test_no_hop_gives_no_column() -> None:
    assert mel_power(np.zeros(2 * ANALYSIS_LEAD_SAMPLES, np.float32)).shape == (0, NUM_MELS)


@pytest.mark.parametrize("shape", [(401,), (100,), (2, 400)])
def test_a_sound_that_is_not_whole_hops_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"sound\.shape is \("):
        mel_power(np.zeros(shape, np.float32))
