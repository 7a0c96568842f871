"""Hair as strands: roots on the scalp, combed over the skull, tied to the turning head.

Strands do not follow the expression (the scalp hardly moves), so that one buffer serves a whole clip; the renderer
turns them with the head. Suffixes: N strands, K points along a strand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tools.train.head.mesh import PART_BODY, HeadMesh, load_head

__all__ = ["HAIRLINE_ANGLES", "STYLES", "HairStyle", "Strands", "grow", "hairline_heights", "sample_style"]

HAIRLINE_ANGLES = np.array([0.0, 0.45, 0.75, 0.95, 1.15, 1.35, 1.70, 2.10, 2.50, 3.15], np.float32)
"""Angles round the head, from the forehead (0) to the nape, at which the hairline is given; head.frag has the same."""

STYLES = ("bald", "buzz", "crop", "side", "quiff", "afro", "curly", "bob", "long", "tied", "bun")

SKULL_CENTRE = np.array([0.0, 7.35, 0.25], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class HairStyle:
    """One haircut; lengths in head units (about a decimetre)."""

    name: str
    top_length: float = 0.0
    side_length: float = 0.0
    num_strands: int = 0
    num_points: int = 10
    width: float = 0.012
    volume: float = 0.05
    """Thickness of the hair over the skull."""
    lift: float = 0.3
    """How far strands leave the skull before they lie down, 0 to 1."""
    comb: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Direction the top is combed to: left, up, forward."""
    part_x: float | None = None
    """Where the parting lies; strands fall away from it."""
    gravity: float = 0.0
    curl_radius: float = 0.0
    curl_turns: float = 0.0
    wave: float = 0.0
    fringe: float = 0.0
    """Share of the forehead that the fringe covers; 0 for none."""
    clump: float = 0.4
    roughness: float = 0.1
    anchor: tuple[float, float, float] | None = None
    """Where tied hair is gathered."""
    front: float = 8.02
    """Height of the hairline at the forehead."""
    recede: float = 0.0
    """How much the temples have receded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strands:
    """Strand points in head space."""

    points: NDArray[np.float32]
    """(N, K, 3)."""
    tangents: NDArray[np.float32]
    """Unit tangents, (N, K, 3)."""
    half_width: NDArray[np.float32]
    """(N, K)."""
    chance: NDArray[np.float32]
    """One random number per strand, 0 to 1, (N,)."""
    depth: NDArray[np.float32]
    """0 deep in the hair, 1 at its surface, (N, K)."""


def hairline_heights(style: HairStyle) -> NDArray[np.float32]:
    """Heights of the hairline at HAIRLINE_ANGLES, (10,)."""
    front, recede = style.front, style.recede
    line = [front, front - 0.02 + recede, front - 0.10 + 1.3 * recede, 7.66 + 0.5 * recede]
    return np.array([*line, 7.14, 7.06, 7.28, 6.93, 6.70, 6.64], np.float32)


class _Skull:
    """Root candidates and the skull's radius by direction; built once from the neutral mesh."""

    AROUND, UP = 72, 40

    def __init__(self, head: HeadMesh) -> None:
        body = head.base_triangles[head.triangle_part == PART_BODY]
        centre = head.base[body].mean(1)
        near = (centre[:, 1] > 6.45) & ~((np.abs(centre[:, 0]) > 0.70) & (centre[:, 1] < 7.48) & (centre[:, 2] > 0.02))
        body = body[near & (centre[:, 2] < 1.35)]
        rng = np.random.default_rng(7)
        a, b, c = (head.base[body[:, k]] for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        chosen = rng.choice(len(body), 60_000, p=area / area.sum())
        u, v = rng.random((2, len(chosen)))
        flip = u + v > 1
        u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
        self.corners = body[chosen]
        self.shares = np.stack([1 - u - v, u, v], 1).astype(np.float32)
        self.rest = self.on(head.base)
        self._radius_plan(head)

    def on(self, vertices: NDArray[np.float32], which: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float32]:
        """Interpolate a vertex array at root candidates, (candidates, 3)."""
        return np.asarray((vertices[self.corners[which]] * self.shares[which][..., None]).sum(1), np.float32)

    def _radius_plan(self, head: HeadMesh) -> None:
        outside = np.flatnonzero((head.part_of_base == PART_BODY) & (head.base[:, 1] > 6.2))
        inner = (np.abs(head.base[outside, 0]) < 0.35) & (head.base[outside, 1] < 7.0) & (head.base[outside, 2] < 1.5)
        outside = outside[~(inner & (head.base[outside, 2] > 0.55))]
        away = head.base[outside] - SKULL_CENTRE
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        around = (np.arange(self.AROUND) / self.AROUND * 2 - 1) * np.pi
        up = (np.arange(self.UP) / (self.UP - 1) - 0.5) * np.pi
        grid_up, grid_around = np.meshgrid(up, around, indexing="ij")
        rays = np.stack(
            [np.cos(grid_up) * np.sin(grid_around), np.sin(grid_up), np.cos(grid_up) * np.cos(grid_around)], -1
        ).reshape(-1, 3)
        near = np.argpartition(-(rays.astype(np.float32) @ away.T), 3, axis=1)[:, :3]
        self.neighbours = outside[near]

    def radius(self, vertices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distance of the skin from SKULL_CENTRE by direction, (UP, AROUND)."""
        far = np.linalg.norm(vertices[self.neighbours] - SKULL_CENTRE, axis=2)
        field = far.mean(1).reshape(self.UP, self.AROUND)
        smooth = field
        for _ in range(2):
            smooth = (np.roll(smooth, 1, 1) + np.roll(smooth, -1, 1) + 2 * smooth) / 4
            padded = np.pad(smooth, ((1, 1), (0, 0)), "edge")
            smooth = (padded[:-2] + padded[2:] + 2 * smooth) / 4
        return np.asarray(np.maximum(smooth, 0.3 * smooth + 0.7 * field), np.float32)

    def lookup(self, field: NDArray[np.float32], direction: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bilinear value of a field at unit directions, (...,)."""
        x = (np.arctan2(direction[..., 0], direction[..., 2]) / np.pi + 1) / 2 * self.AROUND
        y = (np.arcsin(np.clip(direction[..., 1], -1, 1)) / np.pi + 0.5) * (self.UP - 1)
        x0, y0 = np.floor(x).astype(np.int64), np.clip(np.floor(y).astype(np.int64), 0, self.UP - 2)
        fx, fy = x - x0, y - y0
        left, right = x0 % self.AROUND, (x0 + 1) % self.AROUND
        low = field[y0, left] * (1 - fx) + field[y0, right] * fx
        high = field[y0 + 1, left] * (1 - fx) + field[y0 + 1, right] * fx
        return np.asarray(low * (1 - fy) + high * fy, np.float32)


@lru_cache(maxsize=1)
def _skull() -> _Skull:
    return _Skull(load_head())


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-7), np.float32)


def _roots(style: HairStyle, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose root candidates behind the hairline, with a soft, irregular edge."""
    rest = _skull().rest
    phi = np.abs(np.arctan2(rest[:, 0], rest[:, 2] - 0.35))
    inside = rest[:, 1] - np.interp(phi, HAIRLINE_ANGLES, hairline_heights(style))
    ear = (np.abs(rest[:, 0]) > 0.60) & (rest[:, 1] < 7.30) & (rest[:, 2] > -0.10)
    inside = np.where(ear, -1.0, inside)
    chance = np.clip((inside + 0.03 + 0.03 * rng.normal(size=len(rest))) / 0.10, 0, 1)
    chosen = np.flatnonzero(rng.random(len(rest)) < chance)
    return rng.permutation(chosen)[: style.num_strands]


def _wanted_direction(
    style: HairStyle, points: NDArray[np.float32], normals: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Where the hair wants to go at the given points, along the skull, (N, 3)."""
    if style.anchor is not None:
        wanted = np.array(style.anchor, np.float32) - points
    else:
        top = np.clip((points[:, 1:2] - 7.65) / 0.45, 0, 1)
        behind_face = np.clip(points[:, 2] - 0.30, 0, 1) * np.clip((7.9 - points[:, 1]) / 0.4, 0, 1)
        inwards = -0.05 - 0.16 * np.clip((7.2 - points[:, 1]) / 0.5, 0, 1) * (np.abs(points[:, 0]) > 0.55)
        down = np.stack([inwards * points[:, 0], -np.ones(len(points)), -0.03 - 0.9 * behind_face], 1)
        wanted = top * np.array(style.comb, np.float32) + (1 - top) * down
        if style.part_x is not None:
            side = np.tanh((points[:, :1] - style.part_x) / 0.05)
            fall = np.concatenate([side, np.full_like(side, -0.5), np.full_like(side, -0.10)], 1)
            wanted = wanted + top * fall
    # Above the ears hair follows the skull, below it hangs.
    follows = 1.0 if style.anchor is not None else np.clip((points[:, 1:2] - 7.0) / 0.5, 0, 1)
    along = wanted - follows * (wanted * normals).sum(-1, keepdims=True) * normals
    return _unit(along.astype(np.float32))


SHOULDER_X, SHOULDER_Y = (0.5, 0.65, 1.0, 1.6, 2.2), (6.14, 6.04, 5.90, 5.76, 5.5)
BELOW_SHOULDER = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4)
CHEST_Z = (0.10, 0.32, 0.50, 0.72, 0.92, 1.02, 1.12, 1.22)
BACK_Z = (-0.12, -0.26, -0.36, -0.44, -0.52, -0.58, -0.64, -0.70)


def _torso(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Push points out of the neck, shoulders and chest, to the front or to the back, (N, 3)."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    below = np.interp(np.abs(x), SHOULDER_X, SHOULDER_Y) - y
    chest, back = np.interp(below, BELOW_SHOULDER, CHEST_Z), np.interp(below, BELOW_SHOULDER, BACK_Z)
    chest = np.maximum(chest, np.interp(np.abs(x), (0.45, 0.80), (0.74, 0.10)))
    pushed = np.where(z > np.interp(np.abs(x), (0.60, 0.90), (0.25, -0.06)), np.maximum(z, chest), np.minimum(z, back))
    inside = (below > 0) & (np.abs(x) < 2.4)
    neck = (y > 5.9) & (y < 6.7) & ~inside
    reach = np.sqrt((x / 0.56) ** 2 + ((z - 0.12) / 0.60) ** 2)
    widen = np.where(neck & (reach < 1), 1 / np.maximum(reach, 0.2), 1)
    z = np.where(inside, pushed, 0.12 + (z - 0.12) * widen)
    return np.stack([x * widen, y, z], -1).astype(np.float32)


def _lengths(style: HairStyle, roots: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Length of each strand: from side to top, shorter near the hairline at the temples and the nape, (N,)."""
    top = np.clip((roots[:, 1] - 7.45) / 0.5, 0, 1)
    length = style.side_length + (style.top_length - style.side_length) * top * top * (3 - 2 * top)
    return np.asarray(length * np.clip(1 + 0.13 * rng.normal(size=len(roots)), 0.5, 1.4), np.float32)


def _curl(points: NDArray[np.float32], style: HairStyle, rng: np.random.Generator) -> NDArray[np.float32]:
    """Add helices and waves round the strands, (N, K, 3)."""
    num, steps, _ = points.shape
    tangent = _unit(np.gradient(points, axis=1).astype(np.float32))
    first = _unit(np.cross(tangent, np.array([0.31, 0.2, 0.93], np.float32)))
    second = np.cross(tangent, first)
    u = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
    ramp = np.minimum(1, 3.5 * u)
    phase = 2 * np.pi * rng.random((num, 1, 1))
    turns = style.curl_turns * np.clip(1 + 0.2 * rng.normal(size=(num, 1, 1)), 0.5, 1.6)
    angle = phase + 2 * np.pi * turns * u
    offset = style.curl_radius * ramp * (np.cos(angle) * first + np.sin(angle) * second)
    if style.wave > 0:
        slow = 0.35 * phase + 2 * np.pi * 2.6 * u + 4 * points[:, :1, :1]
        offset = offset + style.wave * ramp * np.sin(slow) * first
    return np.asarray(points + offset, np.float32)


def _clump(points: NDArray[np.float32], style: HairStyle) -> NDArray[np.float32]:
    """Draw strands towards their nearest guide, more so at the tips."""
    num, steps, _ = points.shape
    guides = points[: max(1, num // 14)]
    roots, guide_roots = points[:, 0], guides[:, 0]
    distance = (roots**2).sum(1)[:, None] - 2 * roots @ guide_roots.T + (guide_roots**2).sum(1)[None]
    nearest = distance.argmin(1)
    u = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
    pull = style.clump * u**0.8
    return np.asarray(points * (1 - pull) + guides[nearest] * pull, np.float32)


def _path(
    style: HairStyle,
    roots: NDArray[np.float32],
    normals: NDArray[np.float32],
    field: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Walk every strand over the skull, (N, K, 3)."""
    skull = _skull()
    length = _lengths(style, roots, rng)
    fringe = (
        (roots[:, 2] > 0.55)
        & (roots[:, 1] > 7.72)
        & (np.abs(roots[:, 0]) < 0.50 + 0.07 * rng.normal(size=len(roots)))
        & (style.fringe > 0)
    )
    brow = np.stack([roots[:, 0] * 1.05, np.full(len(roots), 8.35 - 0.85 * style.fringe), np.full(len(roots), 1.30)], 1)
    to_brow = np.linalg.norm(roots - brow, axis=1) * np.clip(1.06 + 0.05 * rng.normal(size=len(roots)), 0.9, 1.2)
    length = np.where(fringe, to_brow, length)
    step = (length / (style.num_points - 1))[:, None].astype(np.float32)
    jitter = (style.roughness * rng.normal(size=roots.shape)).astype(np.float32)
    layer = (0.012 + style.volume * rng.random(len(roots)) ** 0.7).astype(np.float32)
    down = np.array([0.0, -1.0, 0.0], np.float32)
    lean = 0.30 * roots[:, 0] - 0.35 * (style.part_x or 0.0)
    forward = _unit(np.stack([lean, np.full(len(roots), -0.55), np.ones(len(roots))], 1).astype(np.float32))
    point, normal, points = roots, normals, [roots]
    for k in range(1, style.num_points):
        u = k / (style.num_points - 1)
        wanted = _wanted_direction(style, point, normal)
        wanted = np.where(fringe[:, None], _unit(forward - 0.9 * u * np.array([0, 1, 0], np.float32)), wanted)
        rise = style.lift * (1 - u) ** 1.5
        # On the forehead gravity would draw the hair over the face.
        front = np.clip((point[:, 2:] - 0.35) / 0.4, 0, 1) * np.clip((point[:, 1:2] - 7.35) / 0.2, 0, 1)
        fall = style.gravity * (0.25 + u) * (1 - front * ~fringe[:, None]) * down
        direction = _unit(wanted * (1 - rise) + normal * rise + fall + jitter)
        point = point + direction * step
        away = point - SKULL_CENTRE
        far = np.linalg.norm(away, axis=1)
        normal = _unit(away)
        floor = skull.lookup(field, normal) + layer * min(1.0, 4 * u)
        cling = 0.75 * max(0.0, 1 - 2 * style.lift) * np.clip((point[:, 1] - 7.35) / 0.35, 0, 1)
        out = np.where(far < floor, np.where(point[:, 1] > 6.55, floor, far), far + cling * (floor - far))
        point = _torso((SKULL_CENTRE + normal * out[:, None]).astype(np.float32))
        points.append(point)
    return np.stack(points, 1)


def _clear_of_face(points: NDArray[np.float32], style: HairStyle) -> NDArray[np.bool_]:
    """Whether each strand stays off the face (a fringe may cover the forehead), (N,)."""
    lowest = 8.26 - 0.85 * style.fringe if style.fringe > 0 else style.front - 0.20
    x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2]
    on_face = (z > 0.72) & (x < 0.64) & (y < lowest)
    at_throat = (z > 0.50) & (x < 0.50) & (y < 6.5)
    return np.asarray(~(on_face | at_throat).any(1))


def grow(style: HairStyle, vertices: NDArray[np.float32], rng: np.random.Generator) -> Strands | None:
    """Grow the hair of one person.

    Args:
        style: The haircut.
        vertices: Neutral vertices of the person, (V, 3).
        rng: Source of randomness.

    Returns:
        Strands, or None for a style without any.
    """
    if style.num_strands == 0:
        return None
    head, skull = load_head(), _skull()
    chosen = _roots(style, rng)
    normals = _unit(skull.on(head.normals(vertices[None])[0], chosen))
    roots = skull.on(vertices, chosen)
    field = skull.radius(vertices)
    points = _path(style, roots, normals, field, rng)
    if style.clump > 0:
        points = _clump(points, style)
    if style.curl_radius > 0 or style.wave > 0:
        points = _curl(points, style, rng)
    points = points[_clear_of_face(points, style)]
    if style.name == "bun":
        points = np.concatenate([points, _bun(style, rng)])
    return _finish(points.astype(np.float32), style, field, rng)


def _bun(style: HairStyle, rng: np.random.Generator) -> NDArray[np.float32]:
    """Strands wound into a ball at the anchor, (N, K, 3)."""
    num, steps = style.num_strands // 4, style.num_points
    centre = np.array(style.anchor, np.float32) + np.array([0, 0.17, -0.05], np.float32)
    axis = _unit(rng.normal(size=(num, 3)).astype(np.float32) * np.array([0.35, 0.35, 1.0], np.float32))
    first = _unit(np.cross(axis, rng.normal(size=(num, 3)).astype(np.float32)))
    second = np.cross(axis, first)
    angle = rng.random((num, 1, 1)) * 6.28 + np.linspace(0, 3.6, steps)[None, :, None]
    radius = (0.30 * (0.86 + 0.14 * rng.random((num, 1, 1)))).astype(np.float32)
    return np.asarray(centre + radius * (np.cos(angle) * first[:, None] + np.sin(angle) * second[:, None]), np.float32)


def _finish(
    points: NDArray[np.float32], style: HairStyle, field: NDArray[np.float32], rng: np.random.Generator
) -> Strands:
    """Add tangents, widths and depth."""
    num, steps, _ = points.shape
    u = np.linspace(0, 1, steps, dtype=np.float32)[None]
    taper = (
        np.clip(1.25 - u**3, 0.25, 1)
        * np.clip(0.4 + 4 * u, 0, 1)
        * np.clip(1 + 0.25 * rng.normal(size=(num, 1)), 0.5, 1.6)
    )
    away = points - SKULL_CENTRE
    far = np.linalg.norm(away, axis=2)
    height = far - _skull().lookup(field, _unit(away))
    reference = np.quantile(height, 0.9) + 0.01
    depth = np.clip(0.25 + 0.75 * height / reference, 0, 1)
    return Strands(
        points=points,
        tangents=_unit(np.gradient(points, axis=1).astype(np.float32)),
        half_width=(0.5 * style.width * taper).astype(np.float32),
        chance=np.asarray(rng.random(num), np.float32),
        depth=depth.astype(np.float32),
    )


def sample_style(name: str, rng: np.random.Generator, *, receding: float = 0.0) -> HairStyle:
    """Draw one haircut of a family.

    Args:
        name: One of STYLES.
        rng: Source of randomness.
        receding: How much the hairline has receded, 0 to 1.

    Returns:
        The haircut.

    Raises:
        ValueError: The name is not in STYLES.
    """
    if name not in STYLES:
        raise ValueError(f"hair style is {name!r}, but it has to be one of {', '.join(STYLES)}")
    side = float(rng.choice([-1.0, 1.0]))
    front = float(rng.uniform(7.88, 7.99) + 0.12 * receding)
    base = HairStyle(name=name, front=front, recede=float(0.03 + 0.06 * rng.random() + 0.22 * receding))
    short = replace(base, num_strands=10000, roughness=0.2, clump=0.4)
    middle = float(rng.choice([0.0, 0.20, 0.34])) * side
    u = rng.uniform
    if name == "bald":
        return base
    if name == "buzz":
        return replace(
            replace(short, num_strands=13000),
            top_length=0.06,
            side_length=0.035,
            num_points=3,
            width=0.009,
            lift=0.6,
            comb=(0, 0, 0.5),
            clump=0,
        )
    if name == "crop":
        comb = (0.5 * side, 0.0, float(u(0.2, 1.0)))
        return replace(
            short, top_length=u(0.16, 0.30), side_length=u(0.06, 0.12), num_points=6, lift=u(0.15, 0.32), comb=comb,
            gravity=0.2, volume=u(0.03, 0.06),
        )  # fmt: skip
    if name == "side":
        return replace(
            short, top_length=u(0.55, 0.8), side_length=u(0.12, 0.22), num_points=10, lift=u(0.20, 0.35),
            comb=(-0.6 * side, 0, -0.35), part_x=0.36 * side, gravity=0.2, volume=u(0.05, 0.10), roughness=0.08,
        )  # fmt: skip
    if name == "quiff":
        return replace(
            short, top_length=u(0.40, 0.60), side_length=u(0.08, 0.16), num_points=10, lift=u(0.22, 0.34),
            comb=(0.25 * side, 0, -1.0), gravity=0.05, volume=u(0.08, 0.16), roughness=0.10, clump=0.5,
        )  # fmt: skip
    if name == "afro":
        length = float(u(0.22, 0.75))
        return replace(
            base, top_length=length, side_length=0.85 * length, num_strands=9000, num_points=14, width=0.013, lift=1.0,
            comb=(0, 0, 0.1), roughness=0.18, curl_radius=0.030, curl_turns=u(4, 6), clump=0.2,
        )  # fmt: skip
    if name == "curly":
        return replace(
            base, top_length=u(0.6, 0.95), side_length=u(0.35, 1.3), num_strands=7000, num_points=20, width=0.014,
            lift=0.55, comb=(0.3 * side, 0, 0.1), part_x=0.3 * side, gravity=0.5, roughness=0.20,
            curl_radius=u(0.030, 0.045), curl_turns=u(2.5, 4.5), clump=0.75, volume=0.12,
        )  # fmt: skip
    if name in ("bob", "long"):
        far, fringe = name == "long", rng.random() < 0.28
        return replace(
            base, top_length=u(2.4, 3.3) if far else u(1.55, 1.95), side_length=u(1.7, 2.5) if far else u(0.85, 1.15),
            num_strands=8000, num_points=18 if far else 14, width=0.016, lift=0.12, comb=(0, 0.25, -0.6), part_x=middle,
            gravity=0.5, roughness=0.03, wave=0.0 if fringe else float(rng.choice([0.0, 0.02, 0.05])), clump=0.5,
            fringe=0.85 if fringe else 0.0, volume=u(0.10, 0.18),
        )  # fmt: skip
    anchor = (0.0, 8.40, -0.40) if name == "bun" else (0.0, 7.35, -0.85)
    return replace(
        base, top_length=1.35, side_length=0.95, num_strands=8000, num_points=11, width=0.013, lift=0.06, anchor=anchor,
        roughness=0.03, clump=0.3, volume=0.03,
    )  # fmt: skip
