"""Mean and variance of whole and of live sounds, in half seconds of noise of known level."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audio.normaliser import RunningNormaliser, normalise

pytestmark = pytest.mark.unit

WINDOW = 7680
WINDOWS_PER_MINUTE = 125


def _noise(level: float, num_samples: int = WINDOW, mean: float = 0.0) -> np.ndarray:
    """Noise of exactly this level, in rising and falling loudness."""
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(num_samples) * np.linspace(0.2, 1.8, num_samples)
    sound = (sound - sound.mean()) / sound.std()
    return (mean + level * sound).astype(np.float32)


def _factor(normaliser: RunningNormaliser) -> float:
    """By how much sound is made louder now."""
    low, high = normaliser.apply(np.array([0.0, 1.0], np.float32))
    return float(high - low)


def _heard(*stretches: tuple[float, int]) -> RunningNormaliser:
    """Hear noise of some levels, each for a number of windows."""
    normaliser = RunningNormaliser()
    for level, num_windows in stretches:
        for _ in range(num_windows):
            normaliser.hear(_noise(level))
    return normaliser


def test_a_recording_gets_mean_0_and_variance_1() -> None:
    sound = _noise(0.05, 40_000, mean=0.1)
    expected = (sound - np.mean(sound)) / np.sqrt(np.var(sound) + 1e-7)
    np.testing.assert_allclose(normalise(sound), expected, atol=1e-5)
    assert abs(float(normalise(sound).mean())) < 1e-4
    assert float(normalise(sound).std()) == pytest.approx(1, abs=1e-4)


def test_silence_stays_silence() -> None:
    silence = np.zeros(1000, np.float32)
    assert not normalise(silence).any()
    normaliser = RunningNormaliser()
    assert not normaliser.apply(silence).any()
    normaliser.hear(silence)
    assert not normaliser.apply(silence).any()


def test_one_stretch_alone_is_normalised_like_a_recording() -> None:
    sound = _noise(0.1, mean=-0.02)
    normaliser = RunningNormaliser()
    normaliser.hear(sound)
    np.testing.assert_allclose(normaliser.apply(sound), normalise(sound), atol=1e-5)


def test_stretches_of_different_length_and_mean_are_normalised_like_one_recording() -> None:
    sound = np.concatenate([_noise(0.1, 9000, mean=0.05), _noise(0.05, 7680, mean=-0.04), _noise(0.2, 300)])
    normaliser = RunningNormaliser()
    for stretch in np.split(sound, [9000, 16_680]):
        normaliser.hear(stretch)
    np.testing.assert_allclose(normaliser.apply(sound), normalise(sound), atol=1e-4)


def test_after_a_change_of_level_it_follows_within_a_minute() -> None:
    usual = _factor(_heard((0.1, 1)))
    for level in (0.03, 0.3):
        changed = _factor(_heard((0.1, 300), (level, WINDOWS_PER_MINUTE)))
        assert changed == pytest.approx(usual * 0.1 / level, rel=0.5)


def test_a_minute_of_listening_hardly_turns_up_the_noise_of_the_room() -> None:
    before = _factor(_heard((0.1, 60)))
    assert _factor(_heard((0.1, 60), (0.002, WINDOWS_PER_MINUTE))) < 1.15 * before


def test_quiet_before_the_first_word_does_not_make_it_too_loud() -> None:
    usual = _factor(_heard((0.1, 1)))
    for room in (0.0, 0.001):
        assert _factor(_heard((room, 200), (0.1, 1))) < 2.2 * usual
        assert _factor(_heard((room, 200), (0.1, 5))) < 1.3 * usual


def test_a_much_quieter_speaker_is_followed_in_the_end() -> None:
    loud = _factor(_heard((0.3, 100)))
    assert _factor(_heard((0.3, 100), (0.01, 60 * WINDOWS_PER_MINUTE))) > 20 * loud


def test_the_noise_of_a_quiet_room_is_not_brought_to_the_level_of_speech() -> None:
    assert _factor(_heard((0.0005, 500))) < 350
