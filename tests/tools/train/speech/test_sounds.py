"""Sounds that are no speech."""

from __future__ import annotations

import numpy as np
import pytest

from tools.train.speech.sounds import background, coloured_noise, non_speech

pytestmark = pytest.mark.unit


def test_brown_noise_is_darker_than_white_noise() -> None:
    def share_below_1_khz(slope: float) -> float:
        power = np.abs(np.fft.rfft(coloured_noise(np.random.default_rng(0), 16_000, slope))) ** 2
        return float(power[:1000].sum() / power.sum())

    assert share_below_1_khz(0.0) == pytest.approx(0.125, abs=0.02)
    assert share_below_1_khz(2.0) > 0.9


def test_background_is_at_least_40_db_below_speech() -> None:
    rng = np.random.default_rng(0)
    levels = [float(np.sqrt(np.mean(background(rng, 8000) ** 2))) for _ in range(50)]
    assert max(levels) <= 0.0008 + 1e-6
    assert min(levels) > 0.0


def test_every_kind_of_sound_is_finite_and_of_the_length_asked_for() -> None:
    rng = np.random.default_rng(0)
    sounds = [non_speech(rng, 24_000) for _ in range(60)]
    assert all(sound.shape == (24_000,) and np.isfinite(sound).all() for sound in sounds)
    levels = [float(np.sqrt(np.mean(sound**2))) for sound in sounds]
    assert max(levels) > 20 * min(levels)
