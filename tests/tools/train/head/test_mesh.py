"""Tests of the head mesh: identities, expressions, normals, turning."""

import numpy as np
import pytest

from tools.train.head.mesh import LANDMARK_NAMES, PART_BODY, Shape, load_head, neck_weight, rotation
from tools.train.head.visemes import VISEMES, FaceMotion, expression_from

pytestmark = pytest.mark.unit

SHAPE = Shape(gender=0.3, age=0.3, ancestry=(0.5, 0.3, 0.2))


def mouth(viseme: str) -> tuple[float, float]:
    """Width of the mouth and gap between the lips, in head units."""
    head = load_head()
    weights = np.zeros((1, len(VISEMES)), np.float32)
    weights[0, VISEMES.index(viseme)] = 1
    posed = head.pose(head.identity(SHAPE, {}), expression_from(weights, FaceMotion.still(1)))
    points = dict(zip(LANDMARK_NAMES, head.landmarks(posed, np.zeros((1, 3), np.float32))[0], strict=True))
    width = np.linalg.norm(points["mouth_left"] - points["mouth_right"])
    return float(width), float(points["lip_top_inner"][1] - points["lip_bottom_inner"][1])


def test_identities_differ_but_keep_the_eyes_in_their_place() -> None:
    head = load_head()
    one = head.identity(SHAPE, {})
    other = head.identity(Shape(gender=0.9, age=0.8, ancestry=(0.0, 0.0, 1.0)), {"nose-hump-incr": 0.5})
    eyes = np.concatenate(head.landmark_vertices[4:6])
    assert np.abs(one - other).max() > 0.05
    np.testing.assert_allclose(one[eyes].mean(0), other[eyes].mean(0), atol=1e-5)


def test_an_unknown_local_shape_is_refused() -> None:
    with pytest.raises(KeyError):
        load_head().identity(SHAPE, {"nose-of-cleopatra": 1.0})


def test_normals_are_unit_vectors_that_point_out_of_the_head() -> None:
    head = load_head()
    normals = head.normals(head.base[None])[0]
    skin = np.unique(head.base_triangles[head.triangle_part == PART_BODY])
    np.testing.assert_allclose(np.linalg.norm(normals[skin], axis=1), 1, atol=1e-3)
    crown, nose = int(head.base[:, 1].argmax()), head.landmark_vertices[LANDMARK_NAMES.index("nose_tip")][0]
    top = skin[head.base[skin, 1].argmax()]
    assert crown >= 0
    assert normals[top, 1] > 0.9
    assert normals[nose, 2] > 0.9


def test_a_batch_of_normals_equals_one_at_a_time() -> None:
    head = load_head()
    posed = head.pose(head.base, np.random.default_rng(0).random((3, 52), np.float32) * 0.3)
    np.testing.assert_allclose(head.normals(posed)[1], head.normals(posed[1:2])[0], atol=1e-6)


def test_visemes_open_close_and_round_the_mouth() -> None:
    gap = {name: mouth(name)[1] for name in VISEMES}
    width = {name: mouth(name)[0] for name in VISEMES}
    assert gap["aa"] > 0.30
    assert gap["aa"] > gap["E"] > gap["I"] > gap["PP"]
    assert gap["PP"] < 0.01
    assert max(width["O"], width["U"]) < 0.82 * min(width["E"], width["I"])


def test_turning_the_head_moves_the_face_and_leaves_the_shoulders() -> None:
    weight = neck_weight(np.array([[0, 7.3, 1.3], [1.5, 5.5, 0.0]], np.float32))
    np.testing.assert_allclose(weight, [1, 0])
    turn = rotation(np.array([[0.3, 0, 0], [0, 0.3, 0], [0, 0, 0]], np.float32))
    forward = np.array([0, 0, 1], np.float32)
    assert (turn[0] @ forward)[0] > 0.2
    assert (turn[1] @ forward)[1] < -0.2
    np.testing.assert_allclose(turn[2], np.eye(3), atol=1e-6)
