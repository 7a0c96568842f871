"""Tests of rendered clips; skipped where no EGL driver is installed."""

from dataclasses import replace

import numpy as np
import pytest

from tools.train.head.mesh import ARKIT_NAMES, LANDMARK_NAMES
from tools.train.head.person import Person, Wishes, sample_person
from tools.train.head.renderer import Clip, Renderer
from tools.train.head.scene import Scene, sample_scene
from tools.train.head.visemes import VISEMES, FaceMotion, expression_from

pytestmark = pytest.mark.contract

SIZE = (128, 192)


def subject(seed: int = 3) -> tuple[Person, Scene]:
    rng = np.random.default_rng(seed)
    person = sample_person(rng, Wishes(hair="crop"))
    return person, sample_scene(rng, person)


def rendered(renderer: Renderer, expression: np.ndarray, pose: np.ndarray | None = None, seed: int = 3) -> Clip:
    turn = np.zeros((len(expression), 3), np.float32) if pose is None else pose
    return renderer.render(*subject(seed), expression, turn)


def gaps_px(clip: Clip) -> np.ndarray:
    top, bottom = (clip.landmarks[:, LANDMARK_NAMES.index(f"lip_{side}_inner"), 1] for side in ("top", "bottom"))
    return bottom - top


def test_the_same_seed_draws_the_same_pixels(renderer: Renderer) -> None:
    expression = np.zeros((2, 52), np.float32)
    one, two = rendered(renderer, expression), rendered(renderer, expression)
    np.testing.assert_array_equal(one.frames, two.frames)
    assert (one.frames != rendered(renderer, expression, seed=4).frames).any()


def test_a_clip_longer_than_one_read_back_keeps_its_order(renderer: Renderer) -> None:
    expression = np.zeros((50, 52), np.float32)
    expression[:, ARKIT_NAMES.index("jawOpen")] = np.linspace(0, 1, 50)
    clip = rendered(renderer, expression)
    assert clip.frames.shape == (50, SIZE[1], SIZE[0], 3)
    assert clip.frames.dtype == np.uint8
    alone = rendered(renderer, expression[47:48])
    np.testing.assert_array_equal(clip.frames[47], alone.frames[0])


def test_landmarks_lie_in_the_picture_and_the_eyes_where_the_camera_wants_them(renderer: Renderer) -> None:
    for seed in range(4):
        person, scene = subject(seed)
        marks = renderer.render(person, scene, np.zeros((1, 52), np.float32), np.zeros((1, 3), np.float32)).landmarks[0]
        assert ((marks > 0) & (marks < SIZE)).all()
        left, right = marks[LANDMARK_NAMES.index("eye_left")], marks[LANDMARK_NAMES.index("eye_right")]
        middle = (left + right) / 2 / SIZE
        np.testing.assert_allclose(middle, (scene.camera.eye_x, scene.camera.eye_y), atol=0.01)
        assert (left - right)[0] / SIZE[0] == pytest.approx(scene.camera.eye_distance, abs=0.01)


def test_landmarks_follow_the_pixels_when_the_head_turns(renderer: Renderer) -> None:
    pose = np.array([[0, 0, 0], [0.3, 0, 0], [0, 0.2, 0]], np.float32)
    marks = rendered(renderer, np.zeros((3, 52), np.float32), pose).landmarks
    nose = marks[:, LANDMARK_NAMES.index("nose_tip")]
    assert nose[1, 0] > nose[0, 0] + 3
    assert nose[2, 1] > nose[0, 1] + 3


def test_the_mouth_opens_with_the_jaw(renderer: Renderer) -> None:
    expression = np.zeros((5, 52), np.float32)
    expression[:, ARKIT_NAMES.index("jawOpen")] = np.linspace(0, 1, 5)
    clip = rendered(renderer, expression)
    assert (np.diff(gaps_px(clip)) > 2).all()
    assert np.abs(clip.frames[-1].astype(int) - clip.frames[0]).max() > 60


def test_closed_lips_leave_less_than_a_pixel(renderer: Renderer) -> None:
    weights = np.zeros((2, len(VISEMES)), np.float32)
    weights[0, VISEMES.index("PP")] = weights[1, VISEMES.index("sil")] = 1
    for seed in range(4):
        assert (gaps_px(rendered(renderer, expression_from(weights, FaceMotion.still(2)), seed=seed)) < 1).all()


def test_glasses_change_the_picture_round_the_eyes_only(renderer: Renderer) -> None:
    rng = np.random.default_rng(1)
    person = sample_person(rng, Wishes(hair="bald", gender=1.0, glasses=True))
    scene, still = sample_scene(rng, person), np.zeros((1, 52), np.float32)
    with_frame = renderer.render(person, scene, still, np.zeros((1, 3), np.float32)).frames[0].astype(int)
    without = renderer.render(replace(person, frame=None), scene, still, np.zeros((1, 3), np.float32)).frames[0]
    rows = np.flatnonzero(np.abs(with_frame - without).max(2).max(1) > 25)
    assert len(rows) > 5
    assert rows.min() > 0.30 * SIZE[1]
    assert rows.max() < 0.60 * SIZE[1]


def test_arrays_of_the_wrong_shape_are_refused(renderer: Renderer) -> None:
    person, scene = subject()
    with pytest.raises(ValueError, match=r"\(2, 51\)"):
        renderer.render(person, scene, np.zeros((2, 51), np.float32), np.zeros((2, 3), np.float32))
