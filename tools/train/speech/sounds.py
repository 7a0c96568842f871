"""Sounds that are no speech, during which the mouth has to stay closed: silence, noise, breath, hum and music."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import SAMPLE_RATE_HZ

__all__ = ["background", "coloured_noise", "non_speech"]

FloatArray = NDArray[np.float32]


def coloured_noise(rng: np.random.Generator, num_samples: int, slope: float) -> FloatArray:
    """Make noise whose power falls with frequency.

    Args:
        rng: Source of chance.
        num_samples: Length.
        slope: Power is proportional to f^-slope: 0 white, 1 pink, 2 brown.

    Returns:
        Samples with a root mean square of 1, (num_samples,).
    """
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    hz = np.maximum(20.0, np.arange(len(spectrum)) * SAMPLE_RATE_HZ / num_samples)
    noise = np.fft.irfft(spectrum * hz ** (-slope / 2), num_samples)
    result: FloatArray = (noise / np.sqrt(np.mean(noise**2) + 1e-12)).astype(np.float32)
    return result


def background(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """Make the sound of a room in which nobody speaks: faint noise, 40 to 70 dB under speech."""
    return coloured_noise(rng, num_samples, rng.uniform(0.0, 2.0)) * np.float32(0.08 * 10 ** rng.uniform(-3.5, -2.0))


def _swell(rng: np.random.Generator, num_samples: int, seconds: float) -> FloatArray:
    knots = max(2, int(num_samples / SAMPLE_RATE_HZ / seconds) + 2)
    curve = np.interp(np.linspace(0, knots - 1, num_samples), np.arange(knots), rng.uniform(0.0, 1.0, knots) ** 2)
    return curve.astype(np.float32)


def _breath(rng: np.random.Generator, num_samples: int) -> FloatArray:
    return coloured_noise(rng, num_samples, rng.uniform(0.3, 1.0)) * _swell(rng, num_samples, 0.7) * np.float32(0.02)


def _hum(rng: np.random.Generator, num_samples: int) -> FloatArray:
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    base_hz = rng.choice([50.0, 60.0, 100.0, 120.0])
    waves = sum(np.sin(2 * np.pi * base_hz * k * time_s + rng.uniform(0, 6.3)) / k for k in range(1, 8))
    return np.asarray(waves * 10 ** rng.uniform(-2.5, -1.3) / 2, np.float32)


def _music(rng: np.random.Generator, num_samples: int) -> FloatArray:
    sound = np.zeros(num_samples, np.float32)
    beat_s = rng.uniform(0.15, 0.6)
    for _ in range(int(num_samples / SAMPLE_RATE_HZ / beat_s * rng.uniform(1.0, 3.0))):
        start = int(rng.integers(num_samples))
        time_s = np.arange(min(num_samples - start, int(rng.uniform(0.2, 1.5) * SAMPLE_RATE_HZ))) / SAMPLE_RATE_HZ
        note_hz = 110.0 * 2 ** (rng.choice([0, 2, 3, 5, 7, 8, 10, 12, 14, 15, 17, 19, 22, 24, 27, 31]) / 12)
        partials = sum(
            np.sin(2 * np.pi * note_hz * k * time_s) * rng.uniform(0.2, 1.0) / k
            for k in range(1, 7)
            if note_hz * k < 7500
        )
        attack = np.minimum(1.0, time_s / rng.uniform(0.003, 0.05))
        sound[start : start + len(time_s)] += partials * attack * np.exp(-time_s / rng.uniform(0.1, 0.8))
    return sound * np.float32(0.08 * 10 ** rng.uniform(-1.0, 0.1) / (np.sqrt(np.mean(sound**2)) + 1e-6))


def _clicks(rng: np.random.Generator, num_samples: int) -> FloatArray:
    sound = np.zeros(num_samples, np.float32)
    for start in rng.integers(0, num_samples, max(1, num_samples // (SAMPLE_RATE_HZ // 3))):
        length = min(num_samples - int(start), int(rng.uniform(0.005, 0.06) * SAMPLE_RATE_HZ))
        decay = np.exp(-np.arange(length) / (0.2 * length + 1))
        sound[start : start + length] += rng.standard_normal(length) * decay * rng.uniform(0.01, 0.2)
    return sound


def _noise(rng: np.random.Generator, num_samples: int) -> FloatArray:
    level = np.float32(0.08 * 10 ** rng.uniform(-2.0, 0.0))
    return coloured_noise(rng, num_samples, rng.uniform(0.0, 2.0)) * level * (0.4 + 0.6 * _swell(rng, num_samples, 2.0))


def non_speech(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """Make a sound of a random kind over a faint background.

    Args:
        rng: Source of chance.
        num_samples: Length.

    Returns:
        Samples in about [-1, 1], (num_samples,); speech would have a root mean square of 0.08.
    """
    kinds = (_noise, _breath, _hum, _music, _clicks, background)
    return kinds[rng.integers(len(kinds))](rng, num_samples) + background(rng, num_samples)
