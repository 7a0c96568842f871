"""The sentence grammar."""

from __future__ import annotations

import numpy as np
import pytest

from tools.train.speech.text import sentence

pytestmark = pytest.mark.unit


def test_sentences_are_complete_and_varied() -> None:
    rng = np.random.default_rng(0)
    sentences = [sentence(rng) for _ in range(300)]
    assert len(set(sentences)) > 290
    for text in sentences:
        assert text[0].isupper()
        assert text[-1] in ".?!"
        assert "{" not in text
        assert 3 <= len(text.split()) <= 24


def test_the_same_seed_gives_the_same_sentences() -> None:
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    assert [sentence(first) for _ in range(20)] == [sentence(second) for _ in range(20)]


def test_closed_and_rounded_lips_are_frequent() -> None:
    rng = np.random.default_rng(1)
    letters = "".join(sentence(rng).lower() for _ in range(300))
    assert sum(letters.count(letter) for letter in "pbm") / len(letters) > 0.05
    assert sum(letters.count(letter) for letter in "ouw") / len(letters) > 0.1
