"""The CC0 head: identity, expression and normals as batched numpy products.

Everything lives in head space: x to the person's left (the right of the picture), y up, z out of the face; one unit is
about a decimetre, and the neutral head spans y 6.2 (chin) to 8.5 (crown) with the eyes at y 7.285. `rest` coordinates
are those of the neutral mesh: procedural paint (brows, stubble, hairline, clothes) is defined in them, so that it
follows every identity and expression.

Suffixes: T frames, V base vertices, R render vertices (split at UV seams), F triangles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ARKIT_NAMES",
    "LANDMARK_NAMES",
    "NECK_PIVOT",
    "HeadMesh",
    "Shape",
    "load_head",
    "neck_weight",
    "rotation",
]

DATA = Path(__file__).parent / "data"

PART_BODY, PART_EYE, PART_TEETH, PART_TONGUE, PART_LASH, PART_HULL, PART_CLOTH = range(7)

NECK_PIVOT = np.array([0.0, 6.35, 0.15], np.float32)
"""Point about which the head turns."""
NECK_LOW_Y, NECK_HIGH_Y = 5.85, 6.75

EYE_CENTRE = np.array([0.311, 7.285, 1.245], np.float32)
"""Centre of the left eyeball at rest; the right one mirrors it."""

LANDMARK_NAMES = (
    "mouth_left",
    "mouth_right",
    "lip_top_inner",
    "lip_bottom_inner",
    "eye_left",
    "eye_right",
    "nose_tip",
    "chin",
)
LANDMARK_POINTS = {
    "mouth_left": (0.25, 6.615, 1.374),
    "mouth_right": (-0.25, 6.615, 1.374),
    "lip_top_inner": (0.0, 6.608, 1.553),
    "lip_bottom_inner": (0.0, 6.601, 1.540),
    "nose_tip": (0.0, 6.938, 1.680),
    "chin": (0.0, 6.271, 1.483),
}
"""Where the landmarks lie on the neutral mesh; the eyes are the means of the eyeballs."""

_data = np.load(DATA / "head_cc0.npz")
ARKIT_NAMES: tuple[str, ...] = tuple(str(name) for name in _data["units_names"])
"""The 52 ARKit units in the order of every expression array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the macro targets are mixed from; every value runs from 0 to 1."""

    gender: float
    """0 female, 1 male."""
    age: float
    """0 young, 1 old."""
    ancestry: tuple[float, float, float]
    """European, African, Asian; sums to 1."""
    muscle: float = 0.5
    weight: float = 0.5


def rotation(head_pose: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make rotation matrices.

    Args:
        head_pose: Yaw (towards the person's left), pitch (down), roll in radians, (T, 3).

    Returns:
        Rotations that act on column vectors, (T, 3, 3).
    """
    cos, sin = np.cos(head_pose), np.sin(head_pose)
    one, zero = np.ones(len(head_pose)), np.zeros(len(head_pose))

    def stack(*rows: list[NDArray[np.floating]]) -> NDArray[np.floating]:
        return np.stack([np.stack(row, -1) for row in rows], -2)

    yaw = stack([cos[:, 0], zero, sin[:, 0]], [zero, one, zero], [-sin[:, 0], zero, cos[:, 0]])
    pitch = stack([one, zero, zero], [zero, cos[:, 1], -sin[:, 1]], [zero, sin[:, 1], cos[:, 1]])
    roll = stack([cos[:, 2], -sin[:, 2], zero], [sin[:, 2], cos[:, 2], zero], [zero, zero, one])
    return np.asarray(yaw @ pitch @ roll, np.float32)


def neck_weight(rest: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far points follow the turning head: 0 at the shoulders, 1 above the jaw.

    Args:
        rest: Rest coordinates, (..., 3).

    Returns:
        Weights, (...,).
    """
    height = rest[..., 1] + 0.55 * np.clip(rest[..., 2] - 0.2, 0, 1)
    t = np.clip((height - NECK_LOW_Y) / (NECK_HIGH_Y - NECK_LOW_Y), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _targets(kind: str, num_vertices: int) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Unpack one family of sparse targets into dense deltas, (targets, V, 3), and their index by name."""
    counts, index = _data[f"{kind}_n"], _data[f"{kind}_i"].astype(np.int64)
    delta = _data[f"{kind}_d"].astype(np.float32)
    dense = np.zeros((len(counts), num_vertices, 3), np.float32)
    owner = np.repeat(np.arange(len(counts)), counts)
    dense[owner, index] = delta
    return dense, {str(name): k for k, name in enumerate(_data[f"{kind}_names"])}


class HeadMesh:
    """The neutral mesh and its targets. Read-only after construction; share one per process."""

    def __init__(self) -> None:
        self.base: NDArray[np.float32] = _data["V0"].astype(np.float32)
        num_vertices = len(self.base)
        hull = _data["tpart"] == PART_HULL
        self.render_to_base: NDArray[np.int64] = _data["vi2"].astype(np.int64)
        self.uv: NDArray[np.float32] = _data["uv"].astype(np.float32)
        self.part: NDArray[np.uint8] = _data["part"]
        self.triangles: NDArray[np.int32] = _data["tri"].astype(np.int32)[~hull]
        self.triangle_part: NDArray[np.uint8] = _data["tpart"][~hull]
        self.masks: NDArray[np.uint8] = _data["mask"][::-1].copy()
        self.rest: NDArray[np.float32] = self.base[self.render_to_base]
        self.units, _ = _targets("units", num_vertices)
        self._local, self._local_index = _targets("local", num_vertices)
        self._macro, self._macro_index = _targets("macro", num_vertices)
        self._units_flat = np.ascontiguousarray(self.units.reshape(len(self.units), -1))
        self._normal_plan()
        original = _data["used"].astype(np.int64)
        self._eyes = np.flatnonzero((original >= 14598) & (original < 14742))
        self.identity_shift = self._mouth_interior(original)
        self.part_of_base = np.full(num_vertices, PART_HULL, np.uint8)
        self.part_of_base[self.render_to_base] = self.part
        self.landmark_vertices = self._landmark_vertices()

    def _normal_plan(self) -> None:
        """Prepare the gather that sums triangle normals per vertex."""
        self.base_triangles = self.render_to_base[self.triangles]
        corner = self.base_triangles.reshape(-1)
        order = np.argsort(corner, kind="stable")
        self._normal_faces = order // 3
        self._normal_vertices, self._normal_starts = np.unique(corner[order], return_index=True)

    @staticmethod
    def _mouth_interior(original: NDArray[np.int64]) -> NDArray[np.float32]:
        """Move the teeth and the tongue of the base mesh to where the lips expect them, (V, 3)."""
        shift = np.zeros((len(original), 3), np.float32)
        moves = (
            (15060, 15128, (0, -0.060, 0.0)),
            (14992, 15060, (0, -0.085, -0.06)),
            (13380, 13606, (0, -0.15, -0.06)),
        )
        for first, end, delta in moves:
            shift[(original >= first) & (original < end)] = delta
        return shift

    def _landmark_vertices(self) -> list[NDArray[np.int64]]:
        """Vertices whose mean is each landmark, in the order of LANDMARK_NAMES."""
        body = self.part_of_base == PART_BODY
        found: list[NDArray[np.int64]] = []
        for name in LANDMARK_NAMES:
            if name.startswith("eye"):
                side = 1.0 if name == "eye_left" else -1.0
                found.append(np.flatnonzero((self.part_of_base == PART_EYE) & (self.base[:, 0] * side > 0)))
            else:
                distance = np.linalg.norm(self.base - np.array(LANDMARK_POINTS[name], np.float32), axis=1)
                found.append(np.array([int(np.where(body, distance, np.inf).argmin())]))
        return found

    def identity(self, shape: Shape, local: dict[str, float]) -> NDArray[np.float32]:
        """Build the neutral face of one person.

        Args:
            shape: Mixture of the macro targets.
            local: Weights of local targets by name; names that do not exist raise KeyError.

        Returns:
            Vertices with the middle of the eyes at its place at rest, (V, 3).
        """
        vertices = self.base.copy()
        for name, weight in _macro_weights(shape).items():
            if name in self._macro_index and weight > 1e-4:
                vertices += weight * self._macro[self._macro_index[name]]
        for name, weight in local.items():
            vertices += weight * self._local[self._local_index[name]]
        vertices += self.base[self._eyes].mean(0) - vertices[self._eyes].mean(0)
        return vertices + self.identity_shift

    def local_pairs(self) -> list[tuple[str, str]]:
        """Local targets that are opposites of one another, (negative, positive), in a fixed order."""
        pairs: list[tuple[str, str]] = []
        for name in sorted(self._local_index):
            for low, high in (("-decr", "-incr"), ("-in", "-out"), ("-down", "-up"), ("-backward", "-forward")):
                partner = name[: -len(low)] + high
                if name.endswith(low) and partner in self._local_index:
                    pairs.append((name, partner))
        return pairs

    def pose(self, identity: NDArray[np.float32], expression: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply face units.

        Args:
            identity: Neutral vertices, (V, 3).
            expression: ARKit weights, (T, 52).

        Returns:
            Vertices, (T, V, 3), head not yet turned.
        """
        moved = expression.astype(np.float32) @ self._units_flat
        return moved.reshape(len(expression), -1, 3) + identity

    def normals(self, vertices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Smooth vertex normals.

        Args:
            vertices: Posed vertices, (T, V, 3).

        Returns:
            Unit normals, (T, V, 3); vertices outside every triangle get zero.
        """
        corners = self.base_triangles
        a = vertices[:, corners[:, 0]]
        u, v = vertices[:, corners[:, 1]] - a, vertices[:, corners[:, 2]] - a
        face = np.empty_like(a)
        face[..., 0] = u[..., 1] * v[..., 2] - u[..., 2] * v[..., 1]
        face[..., 1] = u[..., 2] * v[..., 0] - u[..., 0] * v[..., 2]
        face[..., 2] = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
        total = np.zeros_like(vertices)
        total[:, self._normal_vertices] = np.add.reduceat(face[:, self._normal_faces], self._normal_starts, axis=1)
        total /= np.sqrt((total * total).sum(-1, keepdims=True)) + 1e-9
        return total

    def landmarks(self, vertices: NDArray[np.float32], head_pose: NDArray[np.float32]) -> NDArray[np.float32]:
        """Landmarks in head space after turning the head.

        Args:
            vertices: Posed vertices, (T, V, 3).
            head_pose: Yaw, pitch, roll in radians, (T, 3).

        Returns:
            Points, (T, 8, 3), in the order of LANDMARK_NAMES.
        """
        points = np.stack([vertices[:, index].mean(1) for index in self.landmark_vertices], 1)
        weight = neck_weight(np.stack([self.base[index].mean(0) for index in self.landmark_vertices]))
        turned = np.einsum("tij,tkj->tki", rotation(head_pose), points - NECK_PIVOT) + NECK_PIVOT
        return np.asarray(points + weight[None, :, None] * (turned - points), np.float32)


def _macro_weights(shape: Shape) -> dict[str, float]:
    """Weights of the macro targets by name."""

    def thirds(name: str, x: float) -> dict[str, float]:
        return {
            f"min{name}": max(0.0, 1 - 2 * x),
            f"average{name}": 1 - abs(2 * x - 1),
            f"max{name}": max(0.0, 2 * x - 1),
        }

    weights: dict[str, float] = {}
    for gender, gender_weight in (("female", 1 - shape.gender), ("male", shape.gender)):
        for age, age_weight in (("young", 1 - shape.age), ("old", shape.age)):
            both = gender_weight * age_weight
            for people, share in zip(("caucasian", "african", "asian"), shape.ancestry, strict=True):
                weights[f"{people}-{gender}-{age}"] = both * share
            for muscle, muscle_weight in thirds("muscle", shape.muscle).items():
                for weight, weight_weight in thirds("weight", shape.weight).items():
                    weights[f"universal-{gender}-{age}-{muscle}-{weight}"] = both * muscle_weight * weight_weight
    return weights


@lru_cache(maxsize=1)
def load_head() -> HeadMesh:
    """The one mesh of this process."""
    return HeadMesh()
