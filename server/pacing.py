"""When each frame leaves, and which picture stands in when there is none: pure functions of (state, input, now).

Invariant: media time advances with the clock, anchored to the start of the stream and never to the last send. Frame `i`
and the sound of `[i/25, (i+1)/25)` are due at `anchor_s + playout_delay_s + i/25`. The sound of a frame goes out as two
packets of 20 ms, the first with the frame and the second half a frame later: RTP ties media time to the moment of
sending, so sound that leaves early would be heard early.
"""

from dataclasses import dataclass, replace
from enum import Enum

from pipeline.geometry import FPS, FRAMES_PER_BLOCK, WINDOW_S

__all__ = [
    "TICKS_PER_FRAME",
    "Pacing",
    "Picture",
    "Schedule",
    "choose_picture",
    "choose_playout_delay_s",
    "rest_index",
]

TICKS_PER_FRAME = 2
"""Sound leaves in packets of half a frame."""

_FRAME_S = 1.0 / FPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The constant relation of media time and clock within a stream; a tick is half a frame."""

    anchor_s: float
    """Clock time of media time 0."""
    playout_delay_s: float
    """Capture of a sample to its release."""

    def due_s(self, tick: int) -> float:
        """Clock time at which a tick is due."""
        return self.anchor_s + self.playout_delay_s + tick * _FRAME_S / TICKS_PER_FRAME

    def newest_due(self, now_s: float) -> int:
        """Index of the newest tick that is due, negative before the first."""
        # The nudge keeps a clock that woke up exactly on time from missing its own tick by rounding.
        return int((now_s - self.anchor_s - self.playout_delay_s) / _FRAME_S * TICKS_PER_FRAME + 1e-6 + 1.0) - 1


class Picture(Enum):
    """Which picture leaves."""

    FRESH = "fresh"
    """The frame of this media time."""
    HELD = "held"
    """The last frame once more."""
    REST = "rest"
    """A frame of the rest block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """What the choice of the next picture depends on."""

    is_flowing: bool = False
    """Whether fresh frames were coming: only then is the last one worth holding."""
    num_held: int = 0
    """How many times in a row the last frame was held."""
    num_rested: int = 0
    """How many rest frames in a row were shown."""


def choose_picture(state: Pacing, *, is_ready: bool) -> tuple[Pacing, Picture]:
    """Choose the picture of the next frame.

    Args:
        state: Where the last choice left off.
        is_ready: Whether the frame of this media time has arrived.

    Returns:
        The new state and the choice: the fresh frame if there is one, else the last frame for at most one block, then
        the rest block.
    """
    if is_ready:
        return Pacing(is_flowing=True), Picture.FRESH
    if state.is_flowing and state.num_held < FRAMES_PER_BLOCK:
        return replace(state, num_held=state.num_held + 1), Picture.HELD
    return Pacing(num_rested=state.num_rested + 1), Picture.REST


def rest_index(num_rested: int, num_frames: int) -> int:
    """Index into a rest block that is played back and forth without repeating its ends.

    Args:
        num_rested: How many rest frames were shown before, counting from 0.
        num_frames: Length of the block, at least 1.

    Returns:
        0, 1, ... num_frames - 1, num_frames - 2, ... 1, 0, 1, ...
    """
    if num_frames == 1:
        return 0
    phase = num_rested % (2 * num_frames - 2)
    return min(phase, 2 * num_frames - 2 - phase)


def choose_playout_delay_s(
    *, right_context_s: float, compute_s: float, margin_s: float, budget_s: float, guard_s: float
) -> float:
    """Choose the playout delay of a session.

    The last frame of a window is due one frame before `playout_delay_s` after its last sample, so the window latency
    is the playout delay less 40 ms.

    Args:
        right_context_s: Audio that the engine waits for after the end of a window.
        compute_s: From then until the first frame of the window may leave, as measured.
        margin_s: Room for jitter of the network, the engine and the loop.
        budget_s: Limit on window latency.
        guard_s: How far below the budget the window latency is planned, at least.

    Returns:
        What the engine needs and the margin, cut where the budget has no room for all of the margin.
        An engine that needs more than the budget keeps its whole margin: late is better than torn.
    """
    need_s = WINDOW_S + right_context_s + compute_s
    limit_s = budget_s - guard_s + _FRAME_S
    return need_s + margin_s if need_s > limit_s else min(need_s + margin_s, limit_s)
