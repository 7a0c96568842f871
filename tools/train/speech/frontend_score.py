"""How well features tell the mouth what to do: figures over labelled speech."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.train.speech.visemes import VISEMES, jaw_opening, rounding

__all__ = ["LAGS", "FrontendScore", "correlation", "lag_curve", "score_prediction"]

FloatArray = NDArray[np.float32]

LAGS = tuple(range(-5, 6))
_CLOSED = VISEMES.index("PP")
_FULL_CLOSURE = 0.9
_SEEN_CLOSURE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendScore:
    """Figures of one set of speech."""

    jaw_correlation: float
    """Of predicted with labelled jaw opening, frame by frame."""
    best_lag_frames: int
    """Shift of the prediction at which that correlation is largest; positive if the prediction is late."""
    rounding_correlation: float
    """Of predicted with labelled rounding."""
    closure_recall: float
    """Share of p, b and m in which the predicted closure exceeds one half."""
    closure_precision: float
    """Share of frames with such a prediction that are in or beside a labelled closure."""
    jaw_ratio: float
    """Spread of the predicted jaw opening, relative to the labelled one."""


def correlation(a: FloatArray, b: FloatArray) -> float:
    """Pearson's correlation of two curves, 0 where one of them is flat."""
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def lag_curve(predicted: FloatArray, labelled: FloatArray) -> dict[int, float]:
    """Correlate with the prediction shifted earlier by each of `LAGS` frames: a late one peaks at a positive lag."""
    count = len(labelled)
    curve = {}
    for lag in LAGS:
        late, early = predicted[max(0, lag) : count + min(0, lag)], labelled[max(0, -lag) : count - max(0, lag)]
        curve[lag] = correlation(late, early)
    return curve


def score_prediction(
    weights: FloatArray, jaw: FloatArray, *, labels: FloatArray, loudness: FloatArray
) -> FrontendScore:
    """Compare predictions with labels.

    Args:
        weights: Predicted viseme weights, (num_frames, NUM_VISEMES).
        jaw: Predicted opening of the jaw, (num_frames,).
        labels: Labelled viseme weights, of the same shape.
        loudness: Level of each frame, (num_frames,).

    Returns:
        The figures.
    """
    true_jaw = jaw_opening(labels, loudness)
    curve = lag_curve(jaw, true_jaw)
    is_closed = labels[:, _CLOSED] > _FULL_CLOSURE
    is_seen = weights[:, _CLOSED] > _SEEN_CLOSURE
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_closed.astype(np.int8), [0]])))
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    near = is_closed.copy()
    near[:-1] |= is_closed[1:]
    near[1:] |= is_closed[:-1]
    return FrontendScore(
        jaw_correlation=curve[0],
        best_lag_frames=max(curve, key=lambda lag: curve[lag]),
        rounding_correlation=correlation(rounding(weights), rounding(labels)),
        closure_recall=float(np.mean([is_seen[first:end].any() for first, end in spans])) if spans else 0.0,
        closure_precision=float(near[is_seen].mean()) if is_seen.any() else 0.0,
        jaw_ratio=float(jaw.std() / max(1e-6, true_jaw.std())),
    )
