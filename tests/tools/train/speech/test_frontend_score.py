"""The figures that say how well a prediction follows its labels."""

from __future__ import annotations

import numpy as np
import pytest

from tools.train.speech.frontend_score import correlation, lag_curve, score_prediction
from tools.train.speech.visemes import VISEMES, Phone, jaw_opening, viseme_curves

pytestmark = pytest.mark.unit

PP = VISEMES.index("PP")


def _labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    phones, start_s = [], 0.2
    for _ in range(80):
        end_s = start_s + rng.uniform(0.05, 0.15)
        phones.append(Phone(start_s, end_s, VISEMES[rng.integers(15)]))
        start_s = end_s
    return viseme_curves(phones, 220)


def _score(weights: np.ndarray, labels: np.ndarray):  # type: ignore[no-untyped-def]
    loudness = np.ones(len(labels), np.float32)
    return score_prediction(weights, jaw_opening(weights, loudness), labels=labels, loudness=loudness)


def test_the_labels_themselves_score_full_marks() -> None:
    score = _score(_labels(), _labels())
    assert score.jaw_correlation == pytest.approx(1.0)
    assert score.rounding_correlation == pytest.approx(1.0)
    assert (score.best_lag_frames, score.closure_recall, score.closure_precision) == (0, 1.0, 1.0)
    assert score.jaw_ratio == pytest.approx(1.0)


@pytest.mark.parametrize("delay", [-3, -1, 2, 4])
def test_a_late_prediction_shows_its_lag(delay: int) -> None:
    assert _score(np.roll(_labels(), delay, axis=0), _labels()).best_lag_frames == delay


def test_a_mouth_that_never_closes_has_no_recall() -> None:
    weights = _labels()
    weights[:, PP] = 0.0
    score = _score(weights, _labels())
    assert (score.closure_recall, score.closure_precision) == (0.0, 0.0)


def test_a_mouth_that_is_always_closed_has_full_recall_and_little_precision() -> None:
    weights = np.zeros_like(_labels())
    weights[:, PP] = 1.0
    score = _score(weights, _labels())
    assert score.closure_recall == 1.0
    assert score.closure_precision < 0.5
    assert score.jaw_correlation == 0.0


def test_labels_without_closures_give_no_recall() -> None:
    labels = np.zeros((20, 15), np.float32)
    labels[:, 0] = 1.0
    assert _score(labels, labels).closure_recall == 0.0


def test_the_lag_curve_of_a_shifted_curve_peaks_at_its_shift() -> None:
    curve = np.random.default_rng(0).normal(size=300).astype(np.float32)
    found = lag_curve(np.roll(curve, 2), curve)
    assert found[2] == pytest.approx(1.0)
    assert abs(found[0]) < 0.3


def test_a_flat_curve_correlates_with_nothing() -> None:
    assert correlation(np.zeros(10, np.float32), np.arange(10, dtype=np.float32)) == 0.0
