"""Bake the ambient occlusion of the neutral head: `python -m tools.train.head.bake` writes data/occlusion.npz."""

from __future__ import annotations

import moderngl
import numpy as np
from numpy.typing import NDArray

from tools.train.head.mesh import DATA, PART_CLOTH, PART_LASH, load_head
from tools.train.head.renderer import create_context, look_at

__all__ = ["bake"]

SIZE_PX = 512
REACH = 3.2


def _directions(num: int) -> NDArray[np.float64]:
    """Points spread evenly over the sphere, (num, 3)."""
    k = np.arange(num) + 0.5
    z, angle = 1 - 2 * k / num, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), z, radius * np.sin(angle)], 1)


def _smooth(values: NDArray[np.float64], triangles: NDArray[np.int64], rounds: int = 3) -> NDArray[np.float64]:
    """Average each vertex with its neighbours, a few times."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    degree = np.maximum(np.bincount(edges[:, 0], minlength=len(values)), 1)
    for _ in range(rounds):
        around = np.bincount(edges[:, 0], values[edges[:, 1]], minlength=len(values)) / degree
        values = 0.5 * values + 0.5 * around
    return values


def bake(num_directions: int = 400) -> NDArray[np.uint8]:
    """Measure how much of the sky each vertex sees.

    Args:
        num_directions: Directions from which visibility is tested.

    Returns:
        Share of visible, cosine-weighted sky, 0 to 255, one value per render vertex.
    """
    head = load_head()
    context = create_context()
    program = context.program(
        vertex_shader="#version 330\nin vec3 pos; uniform mat4 m; void main() { gl_Position = m * vec4(pos, 1.0); }",
        fragment_shader="#version 330\nvoid main() {}",
    )
    vertices = head.base + head.identity_shift
    keep = (head.triangle_part != PART_LASH) & (head.triangle_part != PART_CLOTH)
    array = context.vertex_array(
        program,
        [(context.buffer(vertices.astype(np.float32).tobytes()), "3f", "pos")],
        context.buffer(head.base_triangles[keep].astype(np.int32).tobytes()),
    )
    depth = context.depth_texture((SIZE_PX, SIZE_PX))
    target = context.framebuffer(depth_attachment=depth)
    context.enable(moderngl.DEPTH_TEST)
    normals = head.normals(vertices[None])[0]
    seen, total = np.zeros(len(vertices)), np.zeros(len(vertices))
    centre = np.array([0.0, 6.8, 0.3])
    for direction in _directions(num_directions):
        ortho = np.diag([1 / REACH, 1 / REACH, -2 / 20.0, 1.0])
        ortho[2, 3] = -1.0
        matrix = ortho @ look_at(centre + direction * 10 + 1e-6, centre)
        program["m"].write(np.ascontiguousarray(matrix.T, np.float32).tobytes())
        target.use()
        target.clear(depth=1.0)
        array.render()
        nearest = np.frombuffer(depth.read(alignment=1), np.float32).reshape(SIZE_PX, SIZE_PX)
        raised = vertices + 0.012 * normals
        place = (raised @ matrix[:3, :3].T + matrix[:3, 3]) * 0.5 + 0.5
        column = np.clip((place[:, 0] * SIZE_PX).astype(int), 0, SIZE_PX - 1)
        row = np.clip((place[:, 1] * SIZE_PX).astype(int), 0, SIZE_PX - 1)
        cosine = np.maximum(normals @ direction, 0)
        seen += cosine * (nearest[row, column] > place[:, 2] - 0.0012)
        total += cosine
    context.release()
    share = _smooth(np.clip(seen / (total + 1e-9), 0, 1), head.base_triangles)
    return np.asarray(np.round(255 * share[head.render_to_base]), np.uint8)


if __name__ == "__main__":
    np.savez_compressed(DATA / "occlusion.npz", occlusion=bake())
    print(f"wrote {DATA / 'occlusion.npz'}")
