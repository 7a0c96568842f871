"""The speakers; each is skipped where its program or data is missing."""

from __future__ import annotations

import ctypes.util
import itertools
import shutil

import numpy as np
import pytest

from tools.train.speech.sources import RUSSIAN_FOLDER, SOURCES, Utterance
from tools.train.speech.visemes import VISEMES

pytestmark = pytest.mark.numerics

MISSING = {
    "espeak": ctypes.util.find_library("espeak-ng") is None,
    "flite": shutil.which("flite") is None,
    "russian": not RUSSIAN_FOLDER.is_dir(),
}


def _first(name: str, count: int, seed: int = 0) -> list[Utterance]:
    return list(itertools.islice(SOURCES[name](np.random.default_rng(seed)), count))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(is_missing, reason=f"the system package of {name} is not installed")
        )
        for name, is_missing in MISSING.items()
    ],
)
def test_utterances_are_sound_with_phones_inside_it_and_come_again_with_the_seed(name: str) -> None:
    utterances = _first(name, 3)
    for utterance in utterances:
        assert utterance.voice.startswith(f"{name}/")
        assert 0.01 < np.abs(utterance.sound).max() <= 1.5
        assert {phone.viseme for phone in utterance.phones} <= set(VISEMES)
        assert sum(phone.viseme != "sil" for phone in utterance.phones) > 4
        assert utterance.phones[-1].end_s <= len(utterance.sound) / 16_000 + 0.3
    for first, second in zip(utterances, _first(name, 3), strict=True):
        # The sound itself may differ a little: espeak-ng has chance of its own.
        assert first.voice == second.voice
        assert [phone.viseme for phone in first.phones] == [phone.viseme for phone in second.phones]
