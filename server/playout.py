"""The one paced loop of a session: frames and sound of the same media time leave together.

Frames wait here until they are due. What comes too late is dropped and counted; what is missing is replaced as
pacing.py says; the sound goes on whatever the picture does. Used on the loop only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.api import FrameBatch, WindowLedger
from pipeline.geometry import FPS, FRAMES_PER_BLOCK
from server.clock import Clock
from server.pacing import TICKS_PER_FRAME, Pacing, Picture, Schedule, choose_picture, rest_index

__all__ = ["AudioSink", "Playout", "PlayoutEvents", "VideoSink"]

Frame = NDArray[np.uint8]

MAX_WAITING_FRAMES = 8 * FRAMES_PER_BLOCK
MAX_CATCH_UP_TICKS = 2 * FPS


class VideoSink(Protocol):
    """Where pictures go."""

    def put(self, frame: int, picture: Frame) -> None:
        """Take the picture of a frame."""


class AudioSink(Protocol):
    """Where sound goes."""

    def put(self, position: int, samples: NDArray[np.int16]) -> None:
        """Take a packet of sound."""


class PlayoutEvents(Protocol):
    """What the session wants to know; all calls are quick and come from the paced loop or from `add`."""

    def picture_left(self, picture: Picture, frame: int) -> None:
        """A picture was handed over for a frame. A rest before the first fresh frame is reported too."""

    def underrun(self) -> None:
        """A frame was due and not there while frames were flowing."""

    def frames_dropped(self, num_frames: int, reason: str) -> None:
        """Frames were made and not shown: "late", "epoch" or "loop"."""

    def window_done(self, ledger: WindowLedger, first_frame: int, paced_s: float, lead_s: float) -> None:
        """The last frame of a window was handed over, or came too late for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    picture: Frame
    window_start: int


class Playout:
    """Holds frames until they are due and releases them with their sound.

    Args:
        schedule: Relation of media time and clock.
        video: Where pictures go.
        audio: Where sound goes.
        sound: The original sound by media position and number of samples.
        packet_samples: Length of a packet of sound; half a frame.
        events: Who is told.
        still: Picture to show until there is a rest block, I420; None shows nothing.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        video: VideoSink,
        audio: AudioSink,
        sound: Callable[[int, int], NDArray[np.int16]],
        packet_samples: int,
        events: PlayoutEvents,
        still: Frame | None,
    ) -> None:
        self._schedule = schedule
        self._video = video
        self._audio = audio
        self._sound = sound
        self._packet_samples = packet_samples
        self._events = events
        self._waiting: dict[int, _Waiting] = {}
        self._ledgers: dict[int, WindowLedger] = {}
        self._leads: dict[int, float] = {}
        self._block: tuple[int, list[Frame]] = (0, [])
        self._rest_block: list[Frame] = [] if still is None else [still]
        self._rest_from = 0
        self._last: Frame | None = None
        self._pacing = Pacing()
        self._next_frame = 0
        self._muted_until_tick = 0
        self._epoch = 0

    def begin_stream(self) -> None:
        """Frames come from a new stream of the engine from now on; its epochs begin at 0."""
        self._epoch = 0

    def begin_epoch(self, epoch: int, *, now_tick: int) -> None:
        """Drop what is under way: waiting frames, later frames of older epochs, and sound that was not yet played.

        Args:
            epoch: The new epoch of the stream.
            now_tick: Tick of the media time that is being captured; sound before it stays unheard.
        """
        if self._waiting:
            self._events.frames_dropped(len(self._waiting), "epoch")
        self._waiting.clear()
        self._ledgers.clear()
        self._leads.clear()
        self._epoch = epoch
        self._muted_until_tick = now_tick
        self._pacing = Pacing()

    def change_still(self, still: Frame, *, first_frame: int) -> None:
        """Rest on another picture, because the portrait changed.

        Args:
            still: I420.
            first_frame: Frames before this one may still show the old portrait and make no rest block.
        """
        self._rest_block = [still]
        self._rest_from = first_frame

    def add(self, batch: FrameBatch, *, stream_start: int, is_quiet: bool, now_s: float) -> None:
        """Take frames from the engine.

        Args:
            batch: Frames of one window.
            stream_start: Media index of the stream's frame 0.
            is_quiet: Whether there was silence in the window; only looked at with the last batch of a window.
            now_s: Clock time.
        """
        if batch.epoch < self._epoch:
            self._events.frames_dropped(len(batch.frames), "epoch")
            return
        window_start = stream_start + batch.window * FRAMES_PER_BLOCK
        first = stream_start + batch.first_frame
        for index, picture in enumerate(batch.frames, start=first):
            if index >= self._next_frame:
                self._waiting[index] = _Waiting(picture=picture, window_start=window_start)
        num_late = min(max(0, self._next_frame - first), len(batch.frames))
        if num_late:
            self._events.frames_dropped(num_late, "late")
        self._collect(batch, window_start, is_quiet=is_quiet)
        self._bound()
        if batch.ledger is None:
            return
        batch.ledger.received_s = now_s
        if window_start + FRAMES_PER_BLOCK > self._next_frame:
            self._ledgers[window_start] = batch.ledger
        else:
            lead_s = self._leads.pop(window_start, 0.0)
            self._events.window_done(batch.ledger, window_start, now_s, lead_s)

    async def run(self, clock: Clock) -> None:
        """Release everything in its moment, until cancelled."""
        tick = 0
        while True:
            await clock.sleep_until_s(self._schedule.due_s(tick))
            newest = max(tick, self._schedule.newest_due(clock.now_s()))
            for due in range(max(tick, newest - MAX_CATCH_UP_TICKS), newest + 1):
                self._release(due, newest, clock.now_s())
            tick = newest + 1

    def _release(self, tick: int, newest_tick: int, now_s: float) -> None:
        """Release what belongs to a tick; of several that are due at once only the newest picture is shown."""
        frame, half = divmod(tick, TICKS_PER_FRAME)
        if half == 0:
            self._release_picture(frame, now_s, is_shown=frame == newest_tick // TICKS_PER_FRAME)
        position = tick * self._packet_samples
        samples = self._sound(position, self._packet_samples)
        if tick < self._muted_until_tick:
            samples = np.zeros_like(samples)
        self._audio.put(position, samples)

    def _release_picture(self, frame: int, now_s: float, *, is_shown: bool) -> None:
        self._next_frame = frame + 1
        waiting = self._waiting.pop(frame, None)
        before = self._pacing
        self._pacing, choice = choose_picture(before, is_ready=waiting is not None)
        if before.is_flowing and before.num_held == 0 and choice is Picture.HELD:
            self._events.underrun()
        picture = self._picture(choice, waiting)
        if not is_shown:
            if waiting is not None:
                self._events.frames_dropped(1, "loop")
        elif picture is not None:
            self._video.put(frame, picture)
            self._last = picture
            self._events.picture_left(choice, frame)
        if waiting is not None:
            self._account(frame, waiting.window_start, now_s)
        self._forget(frame)

    def _picture(self, choice: Picture, waiting: _Waiting | None) -> Frame | None:
        if waiting is not None:
            return waiting.picture
        if choice is Picture.HELD or not self._rest_block:
            return self._last
        return self._rest_block[rest_index(self._pacing.num_rested - 1, len(self._rest_block))]

    def _account(self, frame: int, window_start: int, now_s: float) -> None:
        """Note the lead at the first frame of a window, and close its ledger at the last."""
        if frame == window_start:
            lead = 0
            while frame + lead + 1 in self._waiting:
                lead += 1
            self._leads[window_start] = lead / FPS
        if frame == window_start + FRAMES_PER_BLOCK - 1:
            self._close_ledger(window_start, now_s)

    def _close_ledger(self, window_start: int, now_s: float) -> None:
        ledger = self._ledgers.pop(window_start, None)
        lead_s = self._leads.pop(window_start, 0.0)
        if ledger is not None:
            ledger.paced_s = now_s
            self._events.window_done(ledger, window_start, now_s, lead_s)

    def _forget(self, frame: int) -> None:
        """Drop the notes of windows whose last frame is past; it was not among those that were shown."""
        oldest = frame - 2 * FRAMES_PER_BLOCK
        for start in [start for start in {**self._leads, **self._ledgers} if start < oldest]:
            self._leads.pop(start, None)
            self._ledgers.pop(start, None)

    def _collect(self, batch: FrameBatch, window_start: int, *, is_quiet: bool) -> None:
        """Gather the frames of the current window; a whole silent one becomes the rest block."""
        start, frames = self._block
        if start != window_start or batch.first_frame == batch.window * FRAMES_PER_BLOCK:
            frames = []
        frames.extend(batch.frames)
        self._block = (window_start, frames)
        if (
            batch.ledger is not None
            and is_quiet
            and len(frames) == FRAMES_PER_BLOCK
            and window_start >= self._rest_from
        ):
            self._rest_block = list(frames)

    def _bound(self) -> None:
        """Keep at most MAX_WAITING_FRAMES; only a broken engine runs further ahead of the microphone."""
        surplus = len(self._waiting) - MAX_WAITING_FRAMES
        if surplus > 0:
            for index in sorted(self._waiting)[:surplus]:
                del self._waiting[index]
            self._events.frames_dropped(surplus, "late")
