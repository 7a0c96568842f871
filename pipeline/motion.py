"""The motion planner of the embedded avatar: head pose, blinks, gaze and brows, made on the fly from loudness and
chance.

The embedded model does not invent head motion; it is told, frame by frame, and the planner is what tells it. Seven
numbers per video frame (`MOTION_CHANNELS`): head rotation relative to the portrait in radians, blink 0 to 1 (closed),
gaze in units of the ARKit eye-look shapes (positive: towards the viewer's right, up), brow -0.2 to 1 (raised).

The planner is causal and deterministic: the same seed, loudness and parameters give the same motion however the
frames are cut into calls. Pure numpy; one object per stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.geometry import FPS

__all__ = ["MOTION_CHANNELS", "MotionPlanner"]

MOTION_CHANNELS = ("yaw", "pitch", "roll", "blink", "gaze_x", "gaze_y", "brow")

POSE_STD_RAD = np.array([0.050, 0.026, 0.020])
"""Standard deviation of the poses that the head moves between at liveliness 1."""
SPRING_RATE_HZ = np.array([0.75, 0.85, 0.6])
"""Natural frequency of the critically damped springs that carry the head to its next pose."""
NOD_RAD = 0.022
"""Pitch added by a stressed syllable."""
BLINK_SHAPE = (0.35, 0.9, 1.0, 0.75, 0.4, 0.12)
EYE_PER_HEAD = 1.3
"""Gaze units that turn the eyes back by one radian of head rotation: the eyes stay on the viewer while the head
moves.
"""


@dataclass(slots=True)
class _Countdown:
    """Frames until the next random event."""

    frames: int

    def tick(self) -> bool:
        self.frames -= 1
        return self.frames <= 0


class MotionPlanner:
    """Plans motion frame by frame.

    Args:
        seed: Seed of everything random in it.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pose = np.zeros(3)
        self._speed = np.zeros(3)
        self._target = np.zeros(3)
        self._next_pose = _Countdown(8)
        self._gaze = np.zeros(2)
        self._gaze_target = np.zeros(2)
        self._next_gaze = _Countdown(20)
        self._blink_frame = len(BLINK_SHAPE)
        self._next_blink = _Countdown(int(self._rng.uniform(15, 60)))
        self._brow = 0.0
        self._brow_target = 0.0
        self._slow_loudness = 0.0
        self._fast_loudness = 0.0

    def plan(self, loudness: NDArray[np.float32], params: StreamParams) -> NDArray[np.float32]:
        """Plan the next frames.

        Args:
            loudness: One number per frame, about 0 in silence and 1 in normal speech, (num_frames,).
            params: Liveliness and looking at the camera.

        Returns:
            The motion, (num_frames, 7), in the order of `MOTION_CHANNELS`.
        """
        return np.stack([self._frame(float(level), params) for level in loudness]).astype(np.float32)

    def _frame(self, loudness: float, params: StreamParams) -> NDArray[np.float64]:
        self._fast_loudness += 0.45 * (loudness - self._fast_loudness)
        self._slow_loudness += 0.03 * (loudness - self._slow_loudness)
        stress = float(np.clip(self._fast_loudness - self._slow_loudness, -0.6, 1.2))
        talking = min(1.0, self._slow_loudness / 0.4)
        pose = self._move_head(stress, talking) * params.liveliness
        gaze = self._move_eyes(params) - EYE_PER_HEAD * pose[:2] * np.array([1.0, -1.0])
        brow = self._move_brows(stress, talking) * min(params.liveliness, 1.5)
        return np.concatenate([pose, [self._blink()], np.clip(gaze, -0.6, 0.6), [brow]])

    def _move_head(self, stress: float, talking: float) -> NDArray[np.float64]:
        if self._next_pose.tick():
            reach = 0.45 + 0.55 * talking
            self._target = np.clip(self._rng.normal(size=3), -1.8, 1.8) * POSE_STD_RAD * reach
            self._next_pose = _Countdown(int(self._rng.uniform(18, 70) / (0.6 + 0.4 * talking)))
        omega = 2 * math.pi * SPRING_RATE_HZ
        self._speed += (omega**2 * (self._target - self._pose) - 2 * omega * self._speed) / FPS
        self._pose = self._pose + self._speed / FPS
        return self._pose + np.array([0.0, NOD_RAD * stress, 0.0])  # type: ignore[no-any-return]

    def _move_eyes(self, params: StreamParams) -> NDArray[np.float64]:
        if self._next_gaze.tick():
            away = self._rng.random() >= params.look_at_camera
            spread = np.array([0.24, 0.11]) * min(params.liveliness, 1.5) if away else np.array([0.02, 0.012])
            self._gaze_target = self._rng.normal(size=2) * spread
            self._next_gaze = _Countdown(int(self._rng.uniform(9, 26) if away else self._rng.uniform(20, 75)))
            if away and self._rng.random() < 0.4:
                self._next_blink.frames = min(self._next_blink.frames, 1)
        self._gaze = self._gaze + 0.75 * (self._gaze_target - self._gaze)
        return self._gaze

    def _move_brows(self, stress: float, talking: float) -> float:
        if stress > 0.45 and self._rng.random() < 0.12:
            self._brow_target = float(self._rng.uniform(0.15, 0.6))
        elif self._rng.random() < 0.06:
            self._brow_target = float(self._rng.uniform(-0.06, 0.10)) * talking
        self._brow += 0.18 * (self._brow_target - self._brow)
        return self._brow

    def _blink(self) -> float:
        if self._blink_frame < len(BLINK_SHAPE):
            value = BLINK_SHAPE[self._blink_frame]
            self._blink_frame += 1
            return value
        if self._next_blink.tick():
            self._blink_frame = 0
            self._next_blink = _Countdown(int(min(self._rng.gamma(4.0, 22.0) + 18, 220)))
        return 0.0
