"""People that no training has seen: how they look, and how they would speak if they followed the labels exactly.

Training draws its people from seeds (seed, worker, count) of three small numbers; those here have two, the first far
from any of them, so no person is ever both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.motion import MotionPlanner
from tools.train.head.person import Person, sample_person
from tools.train.head.renderer import Renderer
from tools.train.head.scene import Scene, sample_scene
from tools.train.head.visemes import VISEMES, FaceMotion, expression_from

__all__ = ["HELD_OUT_SEED", "Sitter", "SpokenPart", "draw_portrait", "draw_speaking", "open_renderer", "sample_sitter"]

HELD_OUT_SEED = 10_000
CHUNK_FRAMES = 48
# An upload looks at the camera, but never quite straight.
POSE_STD_RAD = (0.05, 0.03, 0.02)
SMILE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitter:
    """One person in one place."""

    person: Person
    scene: Scene
    pose: NDArray[np.float32]
    """Yaw, pitch and roll of the head in the portrait, in radians, (3,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenPart:
    """Some frames of a speaking person."""

    frames: NDArray[np.uint8]
    """(T, H, W, 3)."""
    landmarks: NDArray[np.float32]
    """(T, 8, 2), in the order of `LANDMARK_NAMES`, px."""
    motion: NDArray[np.float32]
    """(T, 7), the plan that the head followed."""


def open_renderer(width_px: int, height_px: int) -> Renderer | None:
    """Open a renderer; None where this machine has no EGL driver."""
    try:
        return Renderer((width_px, height_px))
    except Exception:  # noqa: BLE001 - glcontext raises bare exceptions; a machine without EGL is no failure here
        return None


def sample_sitter(number: int) -> Sitter:
    """Draw a person by number."""
    rng = np.random.default_rng((HELD_OUT_SEED, number))
    person = sample_person(rng)
    scene = sample_scene(rng, person)
    return Sitter(person=person, scene=scene, pose=(rng.normal(size=3) * POSE_STD_RAD).astype(np.float32))


def draw_portrait(renderer: Renderer, sitter: Sitter) -> NDArray[np.uint8]:
    """Draw a person at rest.

    Args:
        renderer: Draws.
        sitter: Who.

    Returns:
        RGB, (height_px, width_px, 3).
    """
    motion = FaceMotion.still(1)
    motion.smile[:] = SMILE
    expression = expression_from(np.zeros((1, len(VISEMES)), np.float32), motion)
    return np.asarray(renderer.render(sitter.person, sitter.scene, expression, sitter.pose[None]).frames[0], np.uint8)


def draw_speaking(
    renderer: Renderer, sitter: Sitter, visemes: NDArray[np.float32], loudness: NDArray[np.float32]
) -> Iterator[SpokenPart]:
    """Draw a person whose mouth follows the labels, and whose head the motion planner moves as in a stream.

    Args:
        renderer: Draws.
        sitter: Who.
        visemes: Weights, (num_frames, 15).
        loudness: 1 in normal speech, (num_frames,).

    Yields:
        Parts of the clip, in order.
    """
    motion = MotionPlanner(0).plan(loudness, StreamParams())
    face = FaceMotion(
        blink=motion[:, 3],
        gaze_x=motion[:, 4],
        gaze_y=motion[:, 5],
        brow=motion[:, 6],
        smile=np.full(len(motion), SMILE, np.float32),
    )
    # Loud speech opens wider, as in training's clips, which are wider than life all in all (tools/train/clips.py).
    jaw_gain = (0.72 + 0.33 * np.clip(loudness, 0, 1.3)).astype(np.float32)
    expression = expression_from(visemes, face, jaw_gain=jaw_gain)
    pose = (sitter.pose + motion[:, :3]).astype(np.float32)
    for start in range(0, len(visemes), CHUNK_FRAMES):
        part = slice(start, start + CHUNK_FRAMES)
        drawn = renderer.render(sitter.person, sitter.scene, expression[part], pose[part])
        yield SpokenPart(frames=drawn.frames, landmarks=drawn.landmarks, motion=motion[part])
