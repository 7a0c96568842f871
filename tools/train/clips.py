"""One training clip: a person nobody has seen, a piece of speech from the bank, planned motion, and the rendered
frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.motion import MotionPlanner
from tools.train.head.mesh import LANDMARK_NAMES
from tools.train.head.person import sample_person
from tools.train.head.renderer import Renderer
from tools.train.head.scene import sample_scene
from tools.train.head.visemes import FaceMotion, expression_from
from tools.train.speech.bank import SpeechBank

__all__ = ["EYE_LANDMARKS", "MOUTH_LANDMARKS", "NUM_LANDMARKS", "Clip", "ClipMaker"]

NUM_LANDMARKS = len(LANDMARK_NAMES)
MOUTH_LANDMARKS = slice(0, 4)
EYE_LANDMARKS = slice(4, 6)
OPEN_REFERENCE_SHARE = 0.15
"""Share of the people whose portrait does not rest its mouth: people upload such pictures."""
JAW_GAIN = (0.95, 1.35)
"""Range of how wide people open their mouths. Wider than life: where the sound leaves several openings possible, the
transformer shows their mean, and all in all two thirds of what it was shown.
"""
WARM_UP_FRAMES = 100
"""Frames that the planner runs before the clip, so that clips do not all begin in the rest pose."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What one slot of the farm holds; see `farm.ClipShape` for shapes."""

    frames: NDArray[np.uint8]
    motion: NDArray[np.float32]
    visemes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    audio: tuple[int, int]


class ClipMaker:
    """Draws and renders clips.

    Args:
        bank: Speech with viseme curves.
        size: Width and height in px.
        num_frames: Frames of speech per clip.
        device: Which EGL device draws.
    """

    def __init__(self, bank: SpeechBank, *, size: tuple[int, int], num_frames: int, device: int = 0) -> None:
        self._bank = bank
        self._num_frames = num_frames
        self._renderer = Renderer(size=size, supersampling=2, device=device)

    def make(self, rng: np.random.Generator) -> Clip:
        """Draw one clip and render it.

        Args:
            rng: Everything random comes from here.

        Returns:
            The clip.
        """
        person = sample_person(rng)
        scene = sample_scene(rng, person)
        source, first = self._bank.draw(rng, self._num_frames)
        visemes, loudness = self._bank.curves(source, first, self._num_frames)
        motion, reference_pose, reference_motion = _plan(rng, loudness)

        smile = np.float32(np.clip(rng.normal(0.03, 0.1), 0, 0.3))
        jaw_gain = (rng.uniform(*JAW_GAIN) * (0.72 + 0.33 * np.clip(loudness, 0, 1.3))).astype(np.float32)
        still_visemes = np.zeros((1, visemes.shape[1]), np.float32)
        if rng.random() < OPEN_REFERENCE_SHARE:
            still_visemes[0, rng.integers(visemes.shape[1])] = rng.uniform(0.3, 1.0)
        expression = np.concatenate(
            [
                expression_from(still_visemes, _face(reference_motion[None], smile)),
                expression_from(visemes, _face(motion, smile), jaw_gain=jaw_gain),
            ]
        )
        pose = np.concatenate([reference_pose[None], reference_pose + motion[:, :3]])
        frames, landmarks = self._renderer.render(person, scene, expression, pose.astype(np.float32))
        labels = np.concatenate([visemes, jaw_gain[:, None]], 1).astype(np.float32)
        return Clip(frames, motion, labels, landmarks.astype(np.float32), (source, first))


def _face(motion: NDArray[np.float32], smile: np.float32) -> FaceMotion:
    return FaceMotion(
        blink=motion[:, 3],
        gaze_x=motion[:, 4],
        gaze_y=motion[:, 5],
        brow=motion[:, 6],
        smile=np.full(len(motion), smile),
    )


def _plan(
    rng: np.random.Generator, loudness: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Plan a clip's motion, mostly about as lively as live streams are, sometimes much more.

    Args:
        rng: Source of chance.
        loudness: Of each frame, (T,).

    Returns:
        The motion relative to the reference pose (T, 7), the reference's head pose (3,), and the reference's own
        motion (7,).
    """
    params = StreamParams(
        liveliness=float(rng.choice([rng.uniform(0.2, 1.5), rng.uniform(1.5, 3.0)], p=[0.75, 0.25])),
        look_at_camera=float(rng.uniform(0.3, 1.0)),
    )
    planner = MotionPlanner(int(rng.integers(2**31)))
    before = np.resize(loudness[::-1], WARM_UP_FRAMES)
    motion = planner.plan(np.concatenate([before, loudness]), params)[WARM_UP_FRAMES:]
    if rng.random() < 0.3:
        motion[:, :3] += (rng.normal(size=3) * (0.08, 0.04, 0.03)).astype(np.float32)
    pose = (rng.normal(size=3) * (0.11, 0.05, 0.03)).astype(np.float32)
    reference = np.zeros(7, np.float32)
    reference[4:6] = rng.normal(size=2) * 0.05 - pose[:2] * (1.0, -1.0) * rng.choice([0.0, 1.3])
    return motion, pose, reference
