"""Draw clips of talking heads with OpenGL: the same pictures from Mesa's software driver and from a GPU.

One `Renderer` per process. It owns an offscreen context; `close` frees it. Frames of a clip are drawn into one tall
texture and read back together, because waiting for the GPU after every frame would cost more than drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import moderngl
import numpy as np
from numpy.typing import NDArray

from tools.train.head.glasses import Frame
from tools.train.head.hair import SKULL_CENTRE, Strands
from tools.train.head.mesh import (
    DATA,
    LANDMARK_NAMES,
    NECK_HIGH_Y,
    NECK_LOW_Y,
    NECK_PIVOT,
    PART_CLOTH,
    PART_LASH,
    load_head,
    rotation,
)
from tools.train.head.person import Paint, Person
from tools.train.head.scene import Camera, Scene

__all__ = ["Clip", "Renderer", "create_context", "look_at"]

SHADERS = Path(__file__).parent / "shaders"
SHADOW_SIZE_PX = 1024
SHADOW_REACH = 2.1
CHUNK_FRAMES = 24
MAX_TALL_PX = 8192
CLOTH_OFFSET = 0.03


class Clip(NamedTuple):
    """Rendered frames and where the face lies in them."""

    frames: NDArray[np.uint8]
    """RGB, (T, H, W, 3)."""
    landmarks: NDArray[np.float32]
    """Points in pixels from the top left corner, (T, 8, 2), in the order of LANDMARK_NAMES."""


def create_context(device: int = 0) -> Any:
    """Open an offscreen context on one of the EGL devices; raises where no EGL driver is found."""
    create: Any = moderngl.create_standalone_context
    return create(backend="egl", device_index=device)


def look_at(eye: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    forward = (at - eye) / np.linalg.norm(at - eye)
    side = np.cross(forward, (0.0, 1.0, 0.0))
    side /= np.linalg.norm(side)
    view = np.eye(4)
    view[:3, :3] = side, np.cross(side, forward), -forward
    view[:3, 3] = -view[:3, :3] @ eye
    return view


def _light_projection(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    centre, near, far = np.array([0.0, 6.9, 0.3]), 0.1, 12.0
    ortho = np.diag([1 / SHADOW_REACH, 1 / SHADOW_REACH, -2 / (far - near), 1.0])
    ortho[2, 3] = -(far + near) / (far - near)
    return np.asarray(ortho @ look_at(centre + direction * 6, centre))


class Renderer:
    """Draws people.

    Args:
        size: Width and height of the pictures in pixels.
        supersampling: Rows and columns drawn for each one of the picture.
        device: Which EGL device draws.
    """

    def __init__(self, size: tuple[int, int] = (256, 384), *, supersampling: int = 2, device: int = 0) -> None:
        self.size = size
        self._ratio = supersampling
        self._chunk = max(1, min(CHUNK_FRAMES, MAX_TALL_PX // size[1]))
        self._head = load_head()
        self._context: Any = create_context(device)
        self._programs = self._compile()
        self._make_targets()
        self._make_head_buffers()
        self._strand_buffers: list[Any] = []

    def close(self) -> None:
        """Free the context; the renderer cannot be used afterwards."""
        self._context.release()

    @property
    def device(self) -> str:
        """Name of the OpenGL renderer."""
        return str(self._context.info["GL_RENDERER"])

    def _compile(self) -> dict[str, Any]:
        def program(vertex: str, fragment: str, *, shadow: bool = False) -> Any:
            def source(*names: str) -> str:
                define = "#define SHADOW\n" if shadow else ""
                return "#version 330\n" + define + "\n".join((SHADERS / name).read_text() for name in names)

            lit = (
                ["common.glsl"]
                if fragment in ("shadow.frag", "background.frag", "shrink.frag")
                else ["common.glsl", "light.glsl"]
            )
            placed = [] if vertex == "screen.vert" else ["place.glsl"]
            return self._context.program(vertex_shader=source(*placed, vertex), fragment_shader=source(*lit, fragment))

        return {
            "head": program("head.vert", "head.frag"),
            "strand": program("strand.vert", "strand.frag"),
            "rigid": program("rigid.vert", "rigid.frag"),
            "head_shadow": program("shadow.vert", "shadow.frag"),
            "strand_shadow": self._context.program(
                vertex_shader="#version 330\n#define SHADOW\n"
                + (SHADERS / "place.glsl").read_text()
                + (SHADERS / "strand.vert").read_text(),
                fragment_shader="#version 330\nvoid main() {}\n",
            ),
            "background": program("screen.vert", "background.frag"),
            "shrink": program("screen.vert", "shrink.frag"),
        }

    def _make_targets(self) -> None:
        context, (width, height), ratio = self._context, self.size, self._ratio
        self._big_texture = context.texture((width * ratio, height * ratio), 4)
        self._big = context.framebuffer(
            [self._big_texture], context.depth_renderbuffer((width * ratio, height * ratio))
        )
        self._tall = context.framebuffer([context.texture((width, height * self._chunk), 4)])
        self._shadow_texture = context.depth_texture((SHADOW_SIZE_PX, SHADOW_SIZE_PX))
        self._shadow_texture.compare_func = "<="
        self._shadow_texture.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._shadow_texture.repeat_x = self._shadow_texture.repeat_y = False
        self._shadow = context.framebuffer(depth_attachment=self._shadow_texture)
        masks = self._head.masks
        self._masks = context.texture((masks.shape[1], masks.shape[0]), 4, masks.tobytes())
        self._masks.build_mipmaps()
        screen = context.buffer(np.array([-1, -1, 3, -1, -1, 3], np.float32).tobytes())
        self._background_array = context.vertex_array(self._programs["background"], [(screen, "2f", "corner")])
        # The shrinking pass has no use for the corner's varying, so it may be optimised away.
        self._shrink_array = context.vertex_array(self._programs["shrink"], [(screen, "2f", "corner")])

    def _make_head_buffers(self) -> None:
        context, head = self._context, self._head
        occlusion = np.load(DATA / "occlusion.npz")["occlusion"].astype(np.float32) / 255
        fixed = np.concatenate([head.rest, head.uv, head.part[:, None], occlusion[:, None]], 1).astype(np.float32)
        self._posed = context.buffer(reserve=len(head.rest) * 24, dynamic=True)
        fixed_buffer = context.buffer(fixed.tobytes())
        lash = head.triangle_part == PART_LASH
        solid_index = context.buffer(head.triangles[~lash].tobytes())
        lash_index = context.buffer(head.triangles[lash].tobytes())
        layout = [
            (self._posed, "3f 3f", "pos", "nrm"),
            (fixed_buffer, "3f 2f 1f 1f", "rest", "uv", "part", "occlusion"),
        ]
        self._solid_array = context.vertex_array(self._programs["head"], layout, solid_index)
        self._lash_array = context.vertex_array(self._programs["head"], layout, lash_index)
        self._head_shadow_array = context.vertex_array(
            self._programs["head_shadow"],
            [(self._posed, "3f 12x", "pos"), (fixed_buffer, "3f 8x 1f 4x", "rest", "part")],
            solid_index,
        )

    def render(
        self, person: Person, scene: Scene, expression: NDArray[np.float32], head_pose: NDArray[np.float32]
    ) -> Clip:
        """Draw a clip.

        Args:
            person: Who is drawn.
            scene: Light, background and camera.
            expression: ARKit weights, (T, 52), in the order of ARKIT_NAMES.
            head_pose: Yaw (towards the person's left), pitch (down), roll in radians, (T, 3).

        Returns:
            Frames and landmarks.

        Raises:
            ValueError: The two arrays disagree about T, or have the wrong width.
        """
        num_frames = len(expression)
        if expression.shape != (num_frames, len(self._head.units)) or head_pose.shape != (num_frames, 3):
            raise ValueError(
                f"expression is {expression.shape} and head_pose {head_pose.shape}, "
                "but they have to be (T, 52) and (T, 3)"
            )
        with self._context:
            return self._render(person, scene, expression, head_pose)

    def _render(
        self, person: Person, scene: Scene, expression: NDArray[np.float32], head_pose: NDArray[np.float32]
    ) -> Clip:
        """Draw a clip; the context is current."""
        num_frames = len(expression)
        projection, eye = self._projection(scene.camera, person)
        self._set_clip_uniforms(person, scene, projection, eye)
        arrays = self._upload_person(person)
        width, height = self.size
        frames = np.empty((num_frames, height, width, 3), np.uint8)
        landmarks = np.empty((num_frames, len(LANDMARK_NAMES), 2), np.float32)
        turns = rotation(head_pose)
        for start in range(0, num_frames, self._chunk):
            part = slice(start, min(start + self._chunk, num_frames))
            vertices = self._head.pose(person.vertices, expression[part])
            packed = self._pack(vertices)
            for k in range(len(vertices)):
                self._draw(packed[k], turns[start + k], arrays, k)
            landmarks[part] = self._project(self._head.landmarks(vertices, head_pose[part]), projection)
            raw = self._tall.read(viewport=(0, 0, width, height * len(vertices)), components=4, alignment=1)
            frames[part] = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 4)[..., :3]
        for item in arrays.owned:
            item.release()
        return Clip(frames=frames, landmarks=landmarks)

    def _pack(self, vertices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Positions and normals of the render vertices, (T, R, 6)."""
        head = self._head
        normals = self._head.normals(vertices)
        both = np.concatenate([vertices, normals], 2)[:, head.render_to_base]
        cloth = head.part == PART_CLOTH
        both[:, cloth, :3] += CLOTH_OFFSET * both[:, cloth, 3:]
        return np.ascontiguousarray(both)

    def _projection(self, camera: Camera, person: Person) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """View and projection that put the eyes where the camera wants them, and the camera's place."""
        left, right = (person.vertices[index].mean(0).astype(np.float64) for index in self._head.landmark_vertices[4:6])
        middle, apart = (left + right) / 2, float(np.linalg.norm(left - right))
        azimuth, elevation = camera.azimuth, camera.elevation
        away = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
        eye = middle + camera.distance * away
        width, height = self.size
        zoom = 2 * camera.eye_distance * camera.distance / apart
        near, far = 3.0, 30.0
        projection = np.zeros((4, 4))
        projection[0, 0], projection[1, 1] = zoom, zoom * width / height
        # Shift the lens: w is -z, so a shift of the picture is a factor of -z.
        projection[0, 2], projection[1, 2] = -(2 * camera.eye_x - 1), -(1 - 2 * camera.eye_y)
        projection[2, 2], projection[2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
        projection[3, 2] = -1
        return projection @ look_at(eye, middle), eye

    def _project(self, points: NDArray[np.float32], projection: NDArray[np.float64]) -> NDArray[np.float32]:
        """Points to pixels, (..., 2)."""
        clip = points @ projection[:, :3].T + projection[:, 3]
        place = clip[..., :2] / clip[..., 3:]
        return ((place * (0.5, -0.5) + 0.5) * self.size).astype(np.float32)

    def _set(self, values: Paint, programs: Sequence[str]) -> None:
        for name in programs:
            program = self._programs[name]
            for key, value in values.items():
                if key in program:
                    program[key].value = value

    def _set_matrix(self, key: str, matrix: NDArray[np.floating]) -> None:
        data = np.ascontiguousarray(matrix.T, np.float32).tobytes()
        for program in self._programs.values():
            if key in program:
                program[key].write(data)

    def _set_clip_uniforms(
        self, person: Person, scene: Scene, projection: NDArray[np.float64], eye: NDArray[np.float64]
    ) -> None:
        lit = ("head", "strand", "rigid")
        self._set(person.paint, lit)
        self._set(scene.light, lit)
        self._set(scene.background, ("background",))
        places: Paint = {
            "camera": tuple(eye),
            "eye_point": tuple(eye),
            "pivot": tuple(float(x) for x in NECK_PIVOT),
            "neck_range": (NECK_LOW_Y, NECK_HIGH_Y),
            "hair_centre": tuple(float(x) for x in SKULL_CENTRE),
            "eye_height": float(person.vertices[np.concatenate(self._head.landmark_vertices[4:6]), 1].mean()),
            "shadow_map": 0,
            "masks": 1,
            "picture": 2,
        }
        self._set(places, list(self._programs))
        direction = np.array(scene.light["key_direction"], np.float64)
        self._set_matrix("view_projection", projection)
        self._set_matrix("light_projection", _light_projection(direction / np.linalg.norm(direction)))
        for slot, texture in enumerate((self._shadow_texture, self._masks, self._big_texture)):
            texture.use(slot)
        shrink = self._programs["shrink"]
        shrink["ratio"].value, shrink["height"].value = self._ratio, self.size[1]
        strand_shadow = self._programs["strand_shadow"]
        if "eye_point" in strand_shadow:
            strand_shadow["eye_point"].value = tuple(SKULL_CENTRE + 8 * direction)

    def _upload_person(self, person: Person) -> _PersonArrays:
        arrays = _PersonArrays()
        if person.strands is not None:
            arrays.add_strands(self._context, self._programs, person.strands)
        if person.frame is not None:
            arrays.add_frame(self._context, self._programs, person.frame)
            self._set({"frame_colour": person.frame.colour}, ("rigid",))
        return arrays

    def _draw(self, packed: NDArray[np.float32], turn: NDArray[np.float32], arrays: _PersonArrays, place: int) -> None:
        """Draw one frame into row `place` of the tall picture."""
        context, (width, height) = self._context, self.size
        self._posed.orphan()
        self._posed.write(packed)
        self._set_matrix("head_rotation", turn)
        context.disable(moderngl.CULL_FACE | moderngl.BLEND)
        self._shadow.use()
        self._shadow.clear(depth=1.0)
        context.enable(moderngl.DEPTH_TEST)
        self._head_shadow_array.render()
        if arrays.strand_shadow is not None:
            arrays.strand_shadow.render()
        self._big.use()
        self._big.clear(depth=1.0)
        self._solid_array.render()
        if arrays.strand is not None:
            arrays.strand.render()
        if arrays.frame is not None:
            arrays.frame.render()
        self._background_array.render(vertices=3)
        context.enable(moderngl.BLEND)
        self._big.depth_mask = False
        self._lash_array.render()
        self._big.depth_mask = True
        context.disable(moderngl.BLEND | moderngl.DEPTH_TEST)
        self._tall.use()
        self._tall.viewport = (0, height * place, width, height)
        self._programs["shrink"]["offset"].value = height * place
        self._shrink_array.render(vertices=3)


class _PersonArrays:
    """Vertex arrays that live as long as one clip."""

    def __init__(self) -> None:
        self.strand: Any = None
        self.strand_shadow: Any = None
        self.frame: Any = None
        self.owned: list[Any] = []

    def add_strands(self, context: Any, programs: dict[str, Any], strands: Strands) -> None:
        """Upload strands as ribbons that turn towards the viewer."""
        num, steps, _ = strands.points.shape
        along = np.broadcast_to(np.linspace(0, 1, steps, dtype=np.float32), (num, steps))
        chance = np.broadcast_to(strands.chance[:, None], (num, steps))
        data = np.empty((num, steps, 2, 10), np.float32)
        data[..., 0:3] = strands.points[:, :, None]
        data[..., 3:6] = strands.tangents[:, :, None]
        data[:, :, 0, 6], data[:, :, 1, 6] = -strands.half_width, strands.half_width
        for column, values in ((7, along), (8, chance), (9, strands.depth)):
            data[..., column] = values[:, :, None]
        corner = (np.arange(num)[:, None] * steps + np.arange(steps - 1)) * 2
        index = np.stack([corner, corner + 1, corner + 2, corner + 2, corner + 1, corner + 3], -1).astype(np.int32)
        vertices, indices = context.buffer(data), context.buffer(np.ascontiguousarray(index))
        # A third of the strands throws enough shadow.
        few = context.buffer(np.ascontiguousarray(index[::3]))
        self.strand = context.vertex_array(
            programs["strand"], [(vertices, "3f 3f 4f", "pos", "tangent", "trait")], indices
        )
        self.strand_shadow = context.vertex_array(
            programs["strand_shadow"], [(vertices, "3f 3f 4f", "pos", "tangent", "trait")], few
        )
        self.owned += [self.strand, self.strand_shadow, vertices, indices, few]

    def add_frame(self, context: Any, programs: dict[str, Any], frame: Frame) -> None:
        """Upload glasses."""
        data = np.concatenate([frame.points, frame.normals], 1).astype(np.float32)
        vertices, indices = context.buffer(data), context.buffer(np.ascontiguousarray(frame.triangles))
        self.frame = context.vertex_array(programs["rigid"], [(vertices, "3f 3f", "pos", "nrm")], indices)
        self.owned += [self.frame, vertices, indices]
