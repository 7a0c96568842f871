"""From visemes, blinks and glances to the 52 ARKit weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.train.head.mesh import ARKIT_NAMES

__all__ = ["RECIPES", "VISEMES", "FaceMotion", "expression_from"]

VISEMES = ("sil", "PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR", "aa", "E", "I", "O", "U")
"""The 15 Oculus visemes, in the order of every viseme array."""


def _both(**weights: float) -> dict[str, float]:
    """Weights of units that come in a left and a right version."""
    return {f"{name}{side}": weight for name, weight in weights.items() for side in ("Left", "Right")}


RECIPES: dict[str, dict[str, float]] = {
    "sil": {},
    "PP": {
        "mouthRollLower": 0.42,
        "mouthRollUpper": 0.38,
        "mouthShrugLower": 0.12,
        **_both(mouthPress=0.5),
    },
    "FF": {"jawOpen": 0.08, "mouthRollLower": 0.75, "mouthShrugLower": 0.30, **_both(mouthUpperUp=0.55)},
    "TH": {"jawOpen": 0.22, "tongueOut": 0.38, **_both(mouthLowerDown=0.40, mouthUpperUp=0.20)},
    "DD": {"jawOpen": 0.20, **_both(mouthLowerDown=0.45, mouthUpperUp=0.25)},
    "kk": {"jawOpen": 0.30, **_both(mouthLowerDown=0.40, mouthStretch=0.15, mouthUpperUp=0.15)},
    "CH": {"jawOpen": 0.11, "mouthFunnel": 0.80, "mouthPucker": 0.45, **_both(mouthLowerDown=0.25)},
    "SS": {"jawOpen": 0.07, **_both(mouthLowerDown=0.50, mouthUpperUp=0.28, mouthStretch=0.40, mouthSmile=0.24)},
    "nn": {"jawOpen": 0.17, **_both(mouthLowerDown=0.35, mouthUpperUp=0.20)},
    "RR": {"jawOpen": 0.17, "mouthFunnel": 0.60, "mouthPucker": 0.40, **_both(mouthLowerDown=0.15)},
    "aa": {"jawOpen": 0.85, **_both(mouthLowerDown=0.45, mouthUpperUp=0.40)},
    "E": {"jawOpen": 0.46, **_both(mouthStretch=0.45, mouthLowerDown=0.42, mouthSmile=0.36, mouthUpperUp=0.25)},
    "I": {"jawOpen": 0.22, **_both(mouthSmile=0.55, mouthStretch=0.42, mouthLowerDown=0.45, mouthUpperUp=0.22)},
    "O": {"jawOpen": 0.50, "mouthFunnel": 0.70, "mouthPucker": 0.62, **_both(mouthLowerDown=0.30)},
    "U": {"jawOpen": 0.13, "mouthFunnel": 0.35, "mouthPucker": 1.40, **_both(mouthLowerDown=0.20)},
}
"""Weights of the ARKit units at full strength; more than 1 exaggerates a unit."""

_INDEX = {name: k for k, name in enumerate(ARKIT_NAMES)}
_MATRIX = np.zeros((len(VISEMES), len(ARKIT_NAMES)), np.float32)
for _row, _viseme in enumerate(VISEMES):
    for _unit, _weight in RECIPES[_viseme].items():
        _MATRIX[_row, _INDEX[_unit]] = _weight


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceMotion:
    """What the face does beside speaking; every array is float32, (T,)."""

    blink: NDArray[np.float32]
    """0 open, 1 closed."""
    gaze_x: NDArray[np.float32]
    """Towards the person's left is positive; 1 is far to the side."""
    gaze_y: NDArray[np.float32]
    """Up is positive."""
    brow: NDArray[np.float32]
    """Raised is positive, -1 to 1."""
    smile: NDArray[np.float32]
    """0 neutral, 1 broad."""

    @staticmethod
    def still(num_frames: int) -> FaceMotion:
        """Open eyes that look straight ahead, for `num_frames` frames."""
        zero = np.zeros(num_frames, np.float32)
        return FaceMotion(blink=zero, gaze_x=zero, gaze_y=zero, brow=zero, smile=zero)


def expression_from(
    visemes: NDArray[np.float32], motion: FaceMotion, *, jaw_gain: float | NDArray[np.float32] = 1.0
) -> NDArray[np.float32]:
    """Combine speech and motion.

    Args:
        visemes: Viseme weights, (T, 15), 0 to 1, in the order of VISEMES.
        motion: Blink, gaze, brow and smile, T values each.
        jaw_gain: Scale of the jaw, one number or one per frame.

    Returns:
        ARKit weights, float32, (T, 52), in the order of ARKIT_NAMES.
    """
    weights = visemes.astype(np.float32) @ _MATRIX
    weights[:, _INDEX["jawOpen"]] *= jaw_gain

    def add(name: str, values: NDArray[np.floating]) -> None:
        weights[:, _INDEX[name]] += values

    right, left = np.maximum(-motion.gaze_x, 0), np.maximum(motion.gaze_x, 0)
    up, down = np.maximum(motion.gaze_y, 0), np.maximum(-motion.gaze_y, 0)
    raised, lowered = np.maximum(motion.brow, 0), np.maximum(-motion.brow, 0)
    for side, outwards, inwards in (("Left", left, right), ("Right", right, left)):
        add(f"eyeBlink{side}", np.clip(motion.blink + 0.25 * down, 0, 1))
        add(f"eyeLookOut{side}", outwards)
        add(f"eyeLookIn{side}", inwards)
        add(f"eyeLookUp{side}", up)
        add(f"eyeLookDown{side}", down)
        add(f"eyeWide{side}", 0.25 * raised)
        add(f"browOuterUp{side}", 0.8 * raised)
        add(f"browDown{side}", 0.8 * lowered)
        add(f"mouthSmile{side}", motion.smile)
        add(f"cheekSquint{side}", 0.25 * motion.smile)
    add("browInnerUp", 0.7 * raised)
    return weights
