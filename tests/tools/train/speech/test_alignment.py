"""Forced alignment; skipped where pocketsphinx is missing."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import MediaError
from tools.train.speech.alignment import Aligner

pytestmark = pytest.mark.numerics

pytest.importorskip("pocketsphinx", reason="pocketsphinx (extra `train`) is not installed")


def test_a_word_that_the_dictionary_lacks_is_refused_with_the_text() -> None:
    with pytest.raises(MediaError, match="'qqxyzz' over 16000 samples, but text and sound have to match"):
        Aligner().align(np.zeros(16_000, np.int16), "Qqxyzz!")


def test_a_text_too_long_for_its_sound_is_refused() -> None:
    with pytest.raises(MediaError, match="text and sound have to match"):
        Aligner().align(np.zeros(1_600, np.int16), "one two three four five six seven eight nine ten")
