"""Make the shipped speech sample: `python -m tools.train.speech.make_sample --out sample.wav`.

A text of our own, spoken by hibari-tts (Apache-2.0), at its own 24 kHz; no recording of anybody is in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

__all__ = ["SAMPLE_RATE_HZ", "TEXT", "main", "tidy"]

FloatArray = NDArray[np.float32]

SAMPLE_RATE_HZ = 24_000
TEXT = (
    "Hello! I am only a picture, but I can borrow your voice.",
    "Whenever you speak, my lips follow every word you say.",
    "Maybe we could have a chat before you move on.",
)
_PAUSE_S = 0.35
_EDGE_S = 0.25
_FADE_S = 0.02
_TARGET_RMS = 0.1
_LARGEST_PEAK = 0.9
_QUIET_DB = -45.0


def tidy(sound: FloatArray, rate_hz: int) -> FloatArray:
    """Cut the silence off both ends and fade what remains in and out.

    Args:
        sound: Samples in [-1, 1], (num_samples,), not silent.
        rate_hz: Samples per second.

    Returns:
        The part from 30 ms before the first loud sample to 60 ms after the last.
    """
    loud = np.flatnonzero(np.abs(sound) > np.abs(sound).max() * 10 ** (_QUIET_DB / 20))
    first, last = max(0, loud[0] - int(0.03 * rate_hz)), min(len(sound), loud[-1] + int(0.06 * rate_hz))
    result = sound[first:last].copy()
    fade = np.linspace(0.0, 1.0, int(_FADE_S * rate_hz), dtype=np.float32)
    result[: len(fade)] *= fade
    result[-len(fade) :] *= fade[::-1]
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    import hibari

    parser = argparse.ArgumentParser(description="Make the shipped speech sample.")
    parser.add_argument("--out", type=Path, required=True, help="WAV file to write")
    out = parser.parse_args(arguments).out
    synthesiser = hibari.Hibari()
    parts = [np.zeros(int(_EDGE_S * SAMPLE_RATE_HZ), np.float32)]
    for sentence in TEXT:
        parts.append(tidy(np.asarray(synthesiser(sentence), np.float32), SAMPLE_RATE_HZ))
        parts.append(np.zeros(int(_PAUSE_S * SAMPLE_RATE_HZ), np.float32))
    sound = np.concatenate(parts)
    sound *= min(_TARGET_RMS / np.sqrt(np.mean(sound**2)), _LARGEST_PEAK / np.abs(sound).max())
    soundfile.write(out, sound, SAMPLE_RATE_HZ, subtype="PCM_16")
    print(f"{out}: {len(sound) / SAMPLE_RATE_HZ:.1f} s, {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
