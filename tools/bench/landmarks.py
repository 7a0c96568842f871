"""Follow a face through frames with MediaPipe's Face Mesh (pipeline/weights/face) and measure its mouth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.face import find_face, load_face_net

__all__ = ["FaceTracker", "MouthShape", "aligned_face", "mouth_shape"]

Points = NDArray[np.float32]
"""(468, 2): places in pixels of the frame."""

INPUT_PX = 192
# The network wants the face with a quarter of its size around it.
MARGIN = 1.5
MIN_SCORE = 0.5

# Numbers of the mesh's points.
UPPER_LIP, LOWER_LIP, MOUTH_CORNERS = 13, 14, (61, 291)
FOREHEAD, CHIN, EYE_CORNERS = 10, 152, (33, 263)
ALIGNED_PX = 64


@dataclass(frozen=True, slots=True)
class MouthShape:
    """Size of the mouth, relative to the face."""

    opening: float
    """Distance of the inner lips, relative to the height of the face."""
    width: float
    """Distance of the corners of the mouth, relative to that of the outer corners of the eyes."""


class FaceTracker:
    """Finds the points of one face, frame after frame; looks near the last place first."""

    def __init__(self) -> None:
        self._square: tuple[float, float, float, float] | None = None

    def points(self, frame: NDArray[np.uint8]) -> Points | None:
        """Find the face.

        Args:
            frame: RGB, (height_px, width_px, 3).

        Returns:
            Its points, or None if there is no face.
        """
        image = Image.fromarray(frame)
        found = self._fit(image, self._square) if self._square is not None else None
        if found is None:
            face = find_face(image)
            if face is None:
                self._square = None
                return None
            (left_x, left_y), (right_x, right_y) = face.left_eye, face.right_eye
            angle = float(np.arctan2(right_y - left_y, right_x - left_x))
            x, y = (left_x + right_x + face.mouth[0] * 2) / 4, (left_y + right_y + face.mouth[1] * 2) / 4
            found = self._fit(image, (x, y, MARGIN * face.width_px, angle))
            # The detector's box is coarse: fit again where the points are.
            if found is not None:
                found = self._fit(image, _square_around(found))
        self._square = None if found is None else _square_around(found)
        return found

    def _fit(self, image: Image.Image, square: tuple[float, float, float, float]) -> Points | None:
        """Run the network on a turned square (centre x, y, side, angle)."""
        x, y, side, angle = square
        step = side / INPUT_PX
        cos, sin = np.cos(angle) * step, np.sin(angle) * step
        half = INPUT_PX / 2
        turn = (cos, -sin, x - half * (cos - sin), sin, cos, y - half * (sin + cos))
        part = image.transform((INPUT_PX, INPUT_PX), Image.Transform.AFFINE, turn, Image.Resampling.BICUBIC)
        mesh, score = load_face_net("landmarks")(np.asarray(part, np.float32) / np.float32(255))
        if 1 / (1 + np.exp(-float(score.reshape(())))) < MIN_SCORE:
            return None
        u, v = mesh.reshape(-1, 3)[:, :2].T
        return np.stack([turn[0] * u + turn[1] * v + turn[2], turn[3] * u + turn[4] * v + turn[5]], -1)


def _square_around(points: Points) -> tuple[float, float, float, float]:
    (left_x, left_y), (right_x, right_y) = points[EYE_CORNERS[0]], points[EYE_CORNERS[1]]
    low, high = points.min(0), points.max(0)
    x, y = (low + high) / 2
    return float(x), float(y), MARGIN * float((high - low).max()), float(np.arctan2(right_y - left_y, right_x - left_x))


def mouth_shape(points: Points) -> MouthShape:
    """Measure the mouth."""

    def distance(a: int, b: int) -> float:
        return float(np.hypot(*(points[a] - points[b])))

    return MouthShape(
        opening=distance(UPPER_LIP, LOWER_LIP) / distance(FOREHEAD, CHIN),
        width=distance(*MOUTH_CORNERS) / distance(*EYE_CORNERS),
    )


def aligned_face(frame: NDArray[np.uint8], points: Points) -> NDArray[np.float32]:
    """Cut out the face, turned upright and scaled by its eyes and chin.

    Args:
        frame: RGB, (height_px, width_px, 3).
        points: Of the face.

    Returns:
        (64, 64, 3), 0 to 255: from above the brows to below the chin.
    """
    left, right, chin = points[EYE_CORNERS[0]], points[EYE_CORNERS[1]], points[CHIN]
    middle = (left + right) / 2
    across = (right - left) / 0.5
    down = (chin - middle) / 0.6
    turn = np.stack([across, down], 1) / ALIGNED_PX
    start = middle - turn @ np.array([0.5 * ALIGNED_PX, 0.3 * ALIGNED_PX])
    data = (turn[0, 0], turn[0, 1], start[0], turn[1, 0], turn[1, 1], start[1])
    image = Image.fromarray(frame).transform(
        (ALIGNED_PX, ALIGNED_PX), Image.Transform.AFFINE, tuple(map(float, data)), Image.Resampling.BICUBIC
    )
    return np.asarray(image, np.float32)
