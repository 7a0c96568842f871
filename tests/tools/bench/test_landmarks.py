"""Following a face: the points move with the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.bench.landmarks import EYE_CORNERS, FaceTracker, aligned_face, mouth_shape
from tools.bench.measures import picture_similarity

pytestmark = pytest.mark.numerics

FACE = Path(__file__).parents[2] / "data" / "face.png"


def framed(x: int = 60, y: int = 40, angle: float = 0, scale: float = 1) -> np.ndarray:
    """The test face (150 px) on a grey picture of 320x300 px."""
    face = Image.open(FACE).convert("RGB")
    side = round(150 * scale)
    canvas = Image.new("RGB", (320, 300), (140, 140, 140))
    canvas.paste(face.resize((side, side), Image.Resampling.LANCZOS), (x, y))
    return np.array(canvas.rotate(angle, Image.Resampling.BICUBIC, center=(160, 150), fillcolor=(140, 140, 140)))


def test_the_points_lie_on_the_eyes() -> None:
    """The irises of the test face are at (51, 75) and (98, 75): the corners of the eyes enclose them."""
    points = FaceTracker().points(framed())
    assert points is not None
    assert points.shape == (468, 2)
    left, right = points[EYE_CORNERS[0]], points[EYE_CORNERS[1]]
    assert left[0] < 60 + 51 < 60 + 98 < right[0]
    assert left[1] == pytest.approx(40 + 76, abs=6)
    assert right[1] == pytest.approx(40 + 76, abs=6)


def test_the_points_follow_a_moving_face() -> None:
    tracker = FaceTracker()
    still = tracker.points(framed())
    moved = tracker.points(framed(x=66, y=45))
    assert still is not None
    assert moved is not None
    assert np.median(moved - still, axis=0) == pytest.approx([6, 5], abs=1.0)


def test_size_and_turn_of_the_face_hardly_change_the_mouth() -> None:
    shapes = [framed(), framed(angle=12), framed(x=20, y=10, scale=1.6)]
    measured = [mouth_shape(points) for frame in shapes if (points := FaceTracker().points(frame)) is not None]
    assert len(measured) == 3
    for shape in measured[1:]:
        assert shape.width == pytest.approx(measured[0].width, rel=0.08)
        assert shape.opening == pytest.approx(measured[0].opening, abs=0.02)


def test_an_aligned_face_is_the_same_wherever_it_was() -> None:
    faces = []
    for frame in (framed(), framed(x=20, y=10, scale=1.6), framed(angle=10)):
        points = FaceTracker().points(frame)
        assert points is not None
        faces.append(aligned_face(frame, points))
    assert faces[0].shape == (64, 64, 3)
    assert picture_similarity(faces[0], faces[1]) > 0.93
    assert picture_similarity(faces[0], faces[2]) > 0.93
    assert picture_similarity(faces[0], faces[1][:, ::-1] * 0 + faces[0][::-1]) < 0.7


def test_without_a_face_there_are_no_points_and_a_lost_one_is_found_again() -> None:
    tracker = FaceTracker()
    assert tracker.points(np.full((300, 320, 3), 140, np.uint8)) is None
    assert tracker.points(framed()) is not None
    assert tracker.points(np.full((300, 320, 3), 140, np.uint8)) is None
    assert tracker.points(framed(x=150, y=120)) is not None
