"""Log-mel spectra, from a whole sound or from a live one, with the same result.

Column `j` of a spectrum stands for the 10 ms `[160 j, 160 (j + 1))` of the sound at 16 kHz; its analysis window is 400
samples long and centred on that stretch, so it reaches `ANALYSIS_LEAD_SAMPLES` back and as far beyond its end. Pure
numpy; the same numbers come out whether the sound arrives at once or in pieces, because each column is computed alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.geometry import SAMPLE_RATE_HZ

__all__ = [
    "ANALYSIS_LEAD_SAMPLES",
    "HOP_SAMPLES",
    "NUM_MELS",
    "POWER_FLOOR",
    "frame_power",
    "log_mel",
    "mel_filters",
    "mel_power",
    "samples_to_float",
]

HOP_SAMPLES = 160
ANALYSIS_SAMPLES = 400
ANALYSIS_LEAD_SAMPLES = (ANALYSIS_SAMPLES - HOP_SAMPLES) // 2
"""How far a column's analysis window reaches before the column's own 10 ms, and beyond them."""
FFT_SIZE_SAMPLES = 512
NUM_MELS = 80
LOWEST_HZ = 50.0
HIGHEST_HZ = 7600.0
POWER_FLOOR = 1e-6
"""Added to every band before the logarithm: what lies 60 dB below full scale per bin is not heard."""

FloatArray = NDArray[np.float32]


def samples_to_float(pcm: NDArray[np.int16]) -> FloatArray:
    """Turn 16-bit samples into float32 in [-1, 1)."""
    return pcm.astype(np.float32) / np.float32(32768.0)


def mel_filters(num_mels: int = NUM_MELS) -> FloatArray:
    """Build triangular filters, evenly spaced on the mel scale, each with weights that sum to 1.

    Args:
        num_mels: Number of bands.

    Returns:
        Weights, (num_mels, FFT_SIZE_SAMPLES // 2 + 1).
    """
    lowest_mel, highest_mel = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (LOWEST_HZ, HIGHEST_HZ))
    edges_hz = 700.0 * (10.0 ** (np.linspace(lowest_mel, highest_mel, num_mels + 2) / 2595.0) - 1.0)
    bins_hz = np.arange(FFT_SIZE_SAMPLES // 2 + 1) * SAMPLE_RATE_HZ / FFT_SIZE_SAMPLES
    rising = (bins_hz[None] - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    falling = (edges_hz[2:, None] - bins_hz[None]) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    weights = np.maximum(0.0, np.minimum(rising, falling))
    # The lowest bands are narrower than a bin: one that catches none takes the nearest.
    for band in np.flatnonzero(weights.sum(axis=1) == 0.0):
        weights[band, np.argmin(np.abs(bins_hz - edges_hz[band + 1]))] = 1.0
    result: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def _analysis_window() -> FloatArray:
    window = np.hanning(ANALYSIS_SAMPLES + 1)[:ANALYSIS_SAMPLES]
    result: FloatArray = (window / np.sqrt(np.sum(window**2))).astype(np.float32)
    return result


_FILTERS_T = np.ascontiguousarray(mel_filters().T)
_WINDOW = _analysis_window()


def _columns(sound: FloatArray) -> FloatArray:
    """Cut a sound with ANALYSIS_LEAD_SAMPLES of context on both sides into (num_columns, ANALYSIS_SAMPLES)."""
    inner_samples = sound.shape[0] - 2 * ANALYSIS_LEAD_SAMPLES
    if sound.ndim != 1 or inner_samples < 0 or inner_samples % HOP_SAMPLES:
        raise ConfigError(
            "sound.shape",
            sound.shape,
            f"it has to be (n,) with n = {2 * ANALYSIS_LEAD_SAMPLES} + a multiple of {HOP_SAMPLES}",
        )
    if inner_samples == 0:
        return np.zeros((0, ANALYSIS_SAMPLES), np.float32)
    return np.lib.stride_tricks.sliding_window_view(sound, ANALYSIS_SAMPLES)[::HOP_SAMPLES]


def mel_power(sound: FloatArray) -> FloatArray:
    """Measure the power in each mel band, every 10 ms.

    Args:
        sound: Samples in [-1, 1] at 16 kHz, (n,): ANALYSIS_LEAD_SAMPLES of context, whole hops, and as much context.

    Returns:
        Power, (num_columns, NUM_MELS), at least 0; white noise of variance v has v in every band.

    Raises:
        ConfigError: The number of samples does not fit.
    """
    spectrum = np.fft.rfft(_columns(sound) * _WINDOW, FFT_SIZE_SAMPLES, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    # Not a BLAS product: its threads go on spinning for 100 ms and would take the cores from the networks.
    result: FloatArray = np.einsum("tf,fm->tm", power, _FILTERS_T)
    return result


def frame_power(sound: FloatArray) -> FloatArray:
    """Measure the mean square of the same windows as `mel_power`.

    Args:
        sound: As for `mel_power`.

    Returns:
        Mean square, (num_columns,).
    """
    columns = _columns(sound)
    result: FloatArray = np.einsum("ij,ij,j->i", columns, columns, _WINDOW**2, dtype=np.float32)
    return result


def log_mel(power: FloatArray) -> FloatArray:
    """Take the natural logarithm of band power above the floor; (..., NUM_MELS) in and out."""
    result: FloatArray = np.log(power + np.float32(POWER_FLOOR))
    return result
