"""The shipped speech sample and how it is tidied."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from tools.train.speech.make_sample import tidy

pytestmark = pytest.mark.unit

SAMPLE = Path(__file__).parents[4] / "pipeline" / "weights" / "embedded" / "sample.wav"


def test_the_shipped_sample_is_ten_seconds_of_clean_mono_under_a_megabyte() -> None:
    with wave.open(str(SAMPLE)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert file.getframerate() in (24_000, 48_000)
        seconds = file.getnframes() / file.getframerate()
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    assert 9.0 < seconds < 11.0
    assert SAMPLE.stat().st_size <= 1_000_000
    assert 0.5 < np.abs(sound).max() <= 0.95
    assert 0.05 < np.sqrt(np.mean(sound**2)) < 0.15
    assert np.abs(sound[:2000]).max() < 0.01
    assert np.abs(sound[-2000:]).max() < 0.01


def test_tidying_cuts_silence_and_fades_the_ends() -> None:
    sound = np.zeros(24_000, np.float32)
    sound[8_000:16_000] = 0.5
    tidied = tidy(sound, 24_000)
    assert len(tidied) == pytest.approx(8_000 + 0.09 * 24_000, abs=5)
    assert tidied[0] == 0.0
    assert tidied[-1] == 0.0
    assert tidied.max() == 0.5
