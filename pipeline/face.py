"""Find the face in a picture, with a small network in plain numpy.

The networks are MediaPipe's (pipeline/weights/face/NOTICE.md); tools/facenets.py makes their files. They are tiny, so
numpy is enough: the server can align an uploaded portrait without torch and without a further package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Face", "FaceNet", "find_face", "load_face_net"]

WEIGHTS_DIR = Path(__file__).parent / "weights" / "face"
INPUT_PX = 128
# A candidate becomes a face when a second look, at a square of this many face widths around it, is surer.
MIN_SCORE_FIRST = 0.5
MIN_SCORE = 0.7
SECOND_LOOK = 2.2
# Anchors of the detector: (cells per side, anchors per cell).
ANCHOR_GRIDS = ((16, 2), (8, 6))
NUM_KEYPOINTS = 6

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A face in a picture; all places are (x, y) in pixels of that picture."""

    score: float
    """How sure the network is, 0 to 1."""
    width_px: float
    """Width of the face, from the chin's sides."""
    left_eye: tuple[float, float]
    """The eye on the left side of the picture."""
    right_eye: tuple[float, float]
    """The eye on the right side of the picture."""
    nose: tuple[float, float]
    """Tip of the nose."""
    mouth: tuple[float, float]
    """Centre of the mouth."""


class FaceNet:
    """A small convolutional network, run operator by operator.

    Args:
        weights: The arrays of a file made by tools/facenets.py.
    """

    def __init__(self, weights: dict[str, NDArray[Any]]) -> None:
        graph = json.loads(weights["graph"].tobytes())
        self._input: int = graph["input"]
        self._outputs: list[int] = graph["outputs"]
        self._operators: list[dict[str, Any]] = graph["operators"]
        self._constants = {
            int(name[1:]): array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in weights.items()
            if name != "graph"
        }

    def __call__(self, picture: Array) -> list[Array]:
        """Run the network.

        Args:
            picture: (height_px, width_px, 3) in the range and size that the network was trained with.

        Returns:
            Its outputs, each (1, ...).
        """
        values: dict[int, Any] = {**self._constants, self._input: picture[None].astype(np.float32)}
        for operator in self._operators:
            values[operator["out"]] = _run(operator, [values[i] for i in operator["in"]])
        return [values[i] for i in self._outputs]


@cache
def load_face_net(name: str) -> FaceNet:
    """Load a network: "detector" or "landmarks"."""
    with np.load(WEIGHTS_DIR / f"{name}.npz") as file:
        return FaceNet(dict(file))


def find_face(image: Image.Image) -> Face | None:
    """Find the most prominent face.

    Looks at the whole picture first and, if there is none, at overlapping squares of it, because the network only sees
    faces that fill more than about an eighth of what it is given.

    Args:
        image: RGB, upright.

    Returns:
        The largest face found, or None.
    """
    for squares in _squares(*image.size):
        candidates = [face for square in squares for face in _find_in_square(image, square)]
        faces = [face for candidate in candidates if (face := _look_again(image, candidate)) is not None]
        if faces:
            return max(faces, key=lambda face: face.width_px * face.score)
    return None


def _look_again(image: Image.Image, candidate: Face) -> Face | None:
    """Return the candidate as seen from near, or None if it is no face after all."""
    side = SECOND_LOOK * candidate.width_px
    square = (candidate.nose[0] - side / 2, candidate.nose[1] - side / 2, side)
    best = max(_find_in_square(image, square), key=lambda face: face.score, default=None)
    return best if best is not None and best.score >= MIN_SCORE else None


def _squares(width_px: int, height_px: int) -> Iterator[list[tuple[float, float, float]]]:
    """Yield rounds of squares (left, top, side) to look at: whole, then short side, then half of that."""
    side = max(width_px, height_px)
    yield [((width_px - side) / 2, (height_px - side) / 2, side)]
    short = min(width_px, height_px)
    for side_px in (short, short / 2):
        yield [
            (left, top, side_px)
            for top in _offsets(height_px - side_px, side_px / 2)
            for left in _offsets(width_px - side_px, side_px / 2)
        ]


def _offsets(room_px: float, stride_px: float) -> list[float]:
    """Spread the starts of squares evenly over the room they have; at most six."""
    count = min(6, 1 + int(np.ceil(room_px / stride_px)))
    return [float(offset) for offset in np.linspace(0, room_px, count)]


def _find_in_square(image: Image.Image, square: tuple[float, float, float]) -> list[Face]:
    """Run the detector on one square of the picture, which may reach over its edges."""
    left, top, side = square
    canvas = Image.new("RGB", (INPUT_PX, INPUT_PX), (128, 128, 128))
    inside = (max(left, 0), max(top, 0), min(left + side, image.width), min(top + side, image.height))
    if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
        return []
    scale = INPUT_PX / side
    size = (max(1, round((inside[2] - inside[0]) * scale)), max(1, round((inside[3] - inside[1]) * scale)))
    part = image.resize(size, Image.Resampling.BILINEAR, box=inside, reducing_gap=2.0)
    canvas.paste(part, (round((inside[0] - left) * scale), round((inside[1] - top) * scale)))
    boxes, scores = load_face_net("detector")(np.asarray(canvas, np.float32) / 127.5 - 1)
    logits = np.clip(scores[0, :, 0], -50, 50)
    found = _merge(boxes[0], (1 / (1 + np.exp(-logits))).astype(np.float32))
    origin = np.array([left, top])
    faces = []
    for score, box, points in found:
        places = [tuple((origin + point * side).tolist()) for point in points]
        eyes = sorted(places[:2])
        width_px = float(box[0] * side)
        faces.append(
            Face(score=score, width_px=width_px, left_eye=eyes[0], right_eye=eyes[1], nose=places[2], mouth=places[3])
        )
    return faces


@cache
def _anchors() -> Array:
    """Return the centres of the detector's anchors, (num_anchors, 2), in 0..1."""
    centres = []
    for cells, per_cell in ANCHOR_GRIDS:
        y, x = np.mgrid[:cells, :cells]
        centres.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), per_cell, 0) / cells + 0.5 / cells)
    return np.concatenate(centres).astype(np.float32)


def _merge(boxes: Array, scores: Array) -> list[tuple[float, Array, Array]]:
    """Group overlapping detections and average each group.

    Args:
        boxes: Raw network output, (num_anchors, 16).
        scores: 0 to 1, (num_anchors,).

    Returns:
        Score, (width, height) and keypoints (6, 2) of each face, in units of the network's input.
    """
    points = boxes.reshape(-1, 2 + NUM_KEYPOINTS, 2) / INPUT_PX
    centres = points[:, 0] + _anchors()
    keypoints = points[:, 2:] + _anchors()[:, None]
    sizes = points[:, 1]
    left = [int(i) for i in np.argsort(-scores) if scores[i] >= MIN_SCORE_FIRST]
    found = []
    while left:
        best = left[0]
        near = [i for i in left if np.abs(centres[i] - centres[best]).max() < 0.5 * sizes[best].max()]
        weights = (scores[near] / scores[near].sum())[:, None]
        mean_size = (weights * sizes[near]).sum(0)
        mean_points = (weights[:, :, None] * keypoints[near]).sum(0)
        found.append((float(scores[best]), mean_size, mean_points))
        left = [i for i in left if i not in near]
    return found


def _run(operator: dict[str, Any], inputs: list[Any]) -> Array:
    """Run one operator on arrays in (batch, height, width, channels) layout."""
    match operator["op"]:
        case "conv":
            result = _conv(inputs[0], inputs[1], stride=operator["stride"], same=operator["same"]) + inputs[2]
        case "depthwise":
            result = _depthwise(inputs[0], inputs[1], stride=operator["stride"], same=operator["same"]) + inputs[2]
        case "max_pool":
            batch, height, width, channels = inputs[0].shape
            result = inputs[0].reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
        case "add":
            result = inputs[0] + inputs[1]
        case "relu":
            result = np.maximum(inputs[0], 0)
        case "prelu":
            result = np.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])
        case "pad":
            result = np.pad(inputs[0], inputs[1])
        case "reshape":
            result = inputs[0].reshape(operator["shape"])
        case "concat":
            result = np.concatenate(inputs, operator["axis"])
        case unknown:
            raise AssertionError(f"operator {unknown}")
    return np.asarray(np.maximum(result, 0) if operator.get("relu") else result, np.float32)


def _windows(x: Array, kernel: int, stride: int, same: bool) -> Array:
    """Return the patches under a kernel, (batch, out_height, out_width, channels, kernel, kernel), without copying."""
    if same:
        pads = []
        for extent in x.shape[1:3]:
            total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
            pads.append((total // 2, total - total // 2))
        x = np.pad(x, ((0, 0), pads[0], pads[1], (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))
    return np.asarray(patches[:, ::stride, ::stride], np.float32)


def _conv(x: Array, weight_OHWI: Array, *, stride: int, same: bool) -> Array:
    """Convolve; the weight is (out, kernel, kernel, in)."""
    if weight_OHWI.shape[1] == 1:
        return np.asarray(x[:, ::stride, ::stride] @ weight_OHWI[:, 0, 0].T, np.float32)
    patches = _windows(x, weight_OHWI.shape[1], stride, same)
    return np.asarray(np.tensordot(patches, weight_OHWI.transpose(3, 1, 2, 0), axes=3), np.float32)


def _depthwise(x: Array, weight_IHWC: Array, *, stride: int, same: bool) -> Array:
    """Convolve each channel by itself; the weight is (1, kernel, kernel, channels)."""
    patches = _windows(x, weight_IHWC.shape[1], stride, same)
    kernel = range(weight_IHWC.shape[1])
    total = sum(patches[..., i, j] * weight_IHWC[0, i, j] for i in kernel for j in kernel)
    return np.asarray(total, np.float32)
