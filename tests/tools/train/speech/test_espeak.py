"""Speech and phone times from espeak-ng; skipped where its library is missing."""

from __future__ import annotations

import ctypes.util

import numpy as np
import pytest

from pipeline.errors import ConfigError
from tools.train.speech.espeak import ACCENTS, VARIANTS, Espeak
from tools.train.speech.sources import HELD_OUT_ESPEAK_VARIANTS

pytestmark = pytest.mark.numerics

if ctypes.util.find_library("espeak-ng") is None:
    pytest.skip("the system package espeak-ng is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


def test_papa_closes_the_lips_twice_in_the_right_order(espeak: Espeak) -> None:
    sound, phones = espeak.synthesise("papa", voice="en-us")
    assert [phone.viseme for phone in phones if phone.viseme != "sil"] == ["PP", "aa", "PP", "E"]
    assert phones[-1].end_s <= len(sound) / espeak.sample_rate_hz + 0.05
    assert all(phone.start_s <= phone.end_s for phone in phones)


def test_a_closure_is_quieter_than_the_vowel_after_it(espeak: Espeak) -> None:
    sound, phones = espeak.synthesise("a papa", voice="en-us")

    def level(start_s: float, end_s: float) -> float:
        stretch = sound[int(start_s * espeak.sample_rate_hz) : int(end_s * espeak.sample_rate_hz)]
        return float(np.sqrt(np.mean(stretch**2)))

    closures = [i for i, phone in enumerate(phones) if phone.viseme == "PP"]
    assert len(closures) == 2
    for i in closures:
        assert level(phones[i].start_s, phones[i].end_s) < level(phones[i + 1].start_s, phones[i + 1].end_s)


def test_a_faster_voice_is_shorter(espeak: Espeak) -> None:
    slow, _ = espeak.synthesise("one two three four", voice="en-us", rate_wpm=120)
    fast, _ = espeak.synthesise("one two three four", voice="en-us", rate_wpm=200)
    assert len(fast) < 0.8 * len(slow)


def test_every_accent_and_variant_exists(espeak: Espeak) -> None:
    for accent in ACCENTS:
        assert len(espeak.synthesise("a", voice=accent)[0])
    for variant in VARIANTS:
        assert len(espeak.synthesise("a", voice=f"en-us+{variant}")[0])
    assert set(HELD_OUT_ESPEAK_VARIANTS) < set(VARIANTS)


def test_an_unknown_voice_is_refused_by_name(espeak: Espeak) -> None:
    with pytest.raises(ConfigError, match="voice is 'xx-none', but espeak-ng has to know it"):
        espeak.synthesise("a", voice="xx-none")
