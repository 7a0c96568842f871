"""Glasses: two rims, a bridge and two temples as thin tubes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.train.head.mesh import EYE_CENTRE, PART_BODY, load_head

__all__ = ["Frame", "sample_frame"]

SIDES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A rigid triangle mesh in head space."""

    points: NDArray[np.float32]
    """(N, 3)."""
    normals: NDArray[np.float32]
    """(N, 3)."""
    triangles: NDArray[np.int32]
    """(M, 3)."""
    colour: tuple[float, float, float]
    """Linear light."""


def _tube(
    path: NDArray[np.float32], radius: float, *, closed: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """A tube round a path: points, normals and triangles."""
    around = np.concatenate([path[-1:], path, path[:1]]) if closed else np.concatenate([path[:1], path, path[-1:]])
    tangent = around[2:] - around[:-2]
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    helper = np.where(np.abs(tangent[:, 2:]) > 0.7, np.array([[0.0, 1.0, 0.0]]), np.array([[0.0, 0.0, 1.0]]))
    first = np.cross(tangent, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangent, first)
    angle = np.arange(SIDES) / SIDES * 2 * np.pi
    normals = np.cos(angle)[None, :, None] * first[:, None] + np.sin(angle)[None, :, None] * second[:, None]
    points = path[:, None] + radius * normals
    rings = len(path)
    a = np.arange(rings if closed else rings - 1)[:, None]
    b, k = (a + 1) % rings, np.arange(SIDES)[None]
    n = (k + 1) % SIDES
    quad = [a * SIDES + k, b * SIDES + k, b * SIDES + n, a * SIDES + n]
    triangles = np.concatenate(
        [
            np.stack([quad[0], quad[1], quad[2]], -1).reshape(-1, 3),
            np.stack([quad[0], quad[2], quad[3]], -1).reshape(-1, 3),
        ]
    )
    return (
        points.reshape(-1, 3).astype(np.float32),
        normals.reshape(-1, 3).astype(np.float32),
        triangles.astype(np.int32),
    )


def sample_frame(vertices: NDArray[np.float32], rng: np.random.Generator) -> Frame:
    """Draw glasses that fit a face.

    Args:
        vertices: Neutral vertices of the person, (V, 3).
        rng: Source of randomness.

    Returns:
        The glasses.
    """
    half_width, half_height = rng.uniform(0.205, 0.24), rng.uniform(0.15, 0.20)
    power, radius = rng.uniform(2.0, 4.2), rng.uniform(0.010, 0.020)
    skin = vertices[load_head().part_of_base == PART_BODY]
    face = skin[(np.abs(skin[:, 0]) < 0.45) & (skin[:, 1] > 7.15) & (skin[:, 1] < 7.5)]
    z = float(face[:, 2].max()) + 0.05
    x, y = float(EYE_CENTRE[0]) + 0.012, float(EYE_CENTRE[1]) - 0.02
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    rim_x = half_width * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / power)
    rim_y = half_height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / power)
    parts = []
    temple = (np.abs(skin[:, 1] - 7.32) < 0.12) & (np.abs(skin[:, 2] - 0.68) < 0.15)
    reach = float(np.abs(skin[temple, 0]).max())
    for side in (-1.0, 1.0):
        curve = z - 0.10 * (np.abs(x + rim_x * 1.0) - 0.1) ** 2 * 2.0
        rim = np.stack([side * (x + rim_x), y + rim_y, curve], 1).astype(np.float32)
        parts.append(_tube(rim, radius, closed=True))
        hinge = np.array([side * (x + half_width), y + 0.4 * half_height, z - 0.07])
        bend = np.array([side * (reach - 0.055), y + 0.06, z - 0.45])
        ear = np.array([side * (reach - 0.06), y + 0.05, 0.10])
        line = np.concatenate([np.linspace(hinge, bend, 5)[:-1], np.linspace(bend, ear, 6)]).astype(np.float32)
        parts.append(_tube(line, radius * 0.9, closed=False))
    inner = x - half_width
    t = np.linspace(-1, 1, 9)
    bridge = np.stack([t * inner, y + 0.03 + 0.035 * (1 - t * t), z - 0.0 * t], 1).astype(np.float32)
    parts.append(_tube(bridge, radius * 0.9, closed=False))
    starts = np.cumsum([0] + [len(p[0]) for p in parts[:-1]])
    colours = [
        (0.012, 0.011, 0.011),
        (0.05, 0.022, 0.010),
        (0.30, 0.27, 0.22),
        (0.015, 0.02, 0.05),
        (0.10, 0.012, 0.015),
    ]
    return Frame(
        points=np.concatenate([p[0] for p in parts]),
        normals=np.concatenate([p[1] for p in parts]),
        triangles=np.concatenate([p[2] + s for p, s in zip(parts, starts, strict=True)]).astype(np.int32),
        colour=colours[int(rng.integers(len(colours)))],
    )
