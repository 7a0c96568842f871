"""Tests of the way from visemes and motion to ARKit weights."""

import numpy as np
import pytest

from tools.train.head.mesh import ARKIT_NAMES
from tools.train.head.visemes import RECIPES, VISEMES, FaceMotion, expression_from

pytestmark = pytest.mark.unit


def one_hot(*names: str) -> np.ndarray:
    rows = np.zeros((len(names), len(VISEMES)), np.float32)
    rows[np.arange(len(names)), [VISEMES.index(name) for name in names]] = 1
    return rows


def unit(expression: np.ndarray, name: str) -> np.ndarray:
    return expression[:, ARKIT_NAMES.index(name)]


def test_every_viseme_has_a_recipe_of_known_units() -> None:
    assert set(RECIPES) == set(VISEMES)
    assert {name for recipe in RECIPES.values() for name in recipe} <= set(ARKIT_NAMES)
    assert len(ARKIT_NAMES) == 52


def test_silence_and_stillness_move_nothing() -> None:
    expression = expression_from(one_hot("sil", "sil"), FaceMotion.still(2))
    assert expression.shape == (2, 52)
    assert expression.dtype == np.float32
    assert not expression.any()


def test_the_jaw_gain_scales_the_jaw_and_nothing_else() -> None:
    still = FaceMotion.still(2)
    full = expression_from(one_hot("aa", "aa"), still)
    half = expression_from(one_hot("aa", "aa"), still, jaw_gain=np.array([0.5, 1.0], np.float32))
    assert unit(half, "jawOpen")[0] == pytest.approx(0.5 * unit(full, "jawOpen")[0])
    changed = np.flatnonzero(full[0] != half[0])
    assert [ARKIT_NAMES[k] for k in changed] == ["jawOpen"]
    np.testing.assert_array_equal(full[1], half[1])


def test_a_glance_to_the_left_turns_the_left_eye_outwards_and_the_right_eye_inwards() -> None:
    zero = np.zeros(1, np.float32)
    motion = FaceMotion(blink=zero, gaze_x=zero + 0.5, gaze_y=zero, brow=zero, smile=zero)
    expression = expression_from(one_hot("sil"), motion)
    assert unit(expression, "eyeLookOutLeft") == unit(expression, "eyeLookInRight") == 0.5
    assert unit(expression, "eyeLookInLeft") == unit(expression, "eyeLookOutRight") == 0


def test_a_blink_closes_both_eyes_and_never_overshoots() -> None:
    one = np.ones(1, np.float32)
    motion = FaceMotion(blink=one, gaze_x=0 * one, gaze_y=-one, brow=0 * one, smile=0 * one)
    expression = expression_from(one_hot("sil"), motion)
    assert unit(expression, "eyeBlinkLeft") == unit(expression, "eyeBlinkRight") == 1
