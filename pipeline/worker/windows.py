"""The sound of one stream, cut into windows. Pure.

Windows lie on the grid of media time: window `n` is samples `[n * WINDOW_SAMPLES, (n + 1) * WINDOW_SAMPLES)`. It is
complete when its right context has arrived too. The first window of an epoch is the one that holds the first sample
pushed in that epoch; nothing is made of what lies before it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import WINDOW_SAMPLES

__all__ = ["AudioWindow", "WindowAssembler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioWindow:
    """A complete window."""

    index: int
    """Index in the stream."""
    pcm: NDArray[np.int16]
    """The window and its right context, (WINDOW_SAMPLES + right_context_samples,); the receiver's own."""
    captured_s: float
    """When its last own sample reached the engine."""
    complete_s: float
    """When its right context was complete."""


class WindowAssembler:
    """Collects samples and hands out windows.

    Args:
        right_context_samples: Audio after the end of a window that belongs to it.
        capacity_samples: Audio that can wait, at most; the pusher keeps to it.
    """

    def __init__(self, *, right_context_samples: int, capacity_samples: int) -> None:
        self._right_context_samples = right_context_samples
        # Twice the capacity, so that moving the live part to the front happens once per `capacity_samples`.
        longest = capacity_samples + 2 * WINDOW_SAMPLES + right_context_samples
        self._samples = np.zeros(2 * longest, np.int16)
        self._origin = 0
        self._end = 0
        self._arrivals: deque[tuple[int, float]] = deque()
        self._is_fresh = True
        self._is_ended = False
        self.next_window = 0
        """Index of the window that comes next."""

    @property
    def num_complete(self) -> int:
        """How many windows are complete and not handed out."""
        if self._is_fresh:
            return 0
        if self._is_ended:
            num_windows = -(-self._end // WINDOW_SAMPLES)
        else:
            num_windows = (self._end - self._right_context_samples) // WINDOW_SAMPLES
        return max(0, num_windows - self.next_window)

    @property
    def is_drained(self) -> bool:
        """Whether the audio has ended and every window was handed out."""
        return self._is_ended and self.num_complete == 0

    def push(self, pcm: NDArray[np.int16], *, pts: int, captured_s: float) -> None:
        """Add samples.

        Args:
            pcm: 16 kHz mono, (num_samples,), not empty.
            pts: Index of the first sample, not before the end of what is there. A gap becomes silence.
            captured_s: When they reached the engine.
        """
        assert not self._is_ended, "sound after the end"
        assert pts >= self._end, (pts, self._end)
        if self._is_fresh:
            self._start_epoch(pts)
        self._append(np.zeros(pts - self._end, np.int16))
        self._append(pcm)
        self._arrivals.append((self._end, captured_s))

    def end(self) -> None:
        """The audio ends here; the last window is filled up with silence when it is handed out."""
        self._is_ended = True

    def interrupt(self) -> None:
        """A new epoch begins with the next pushed sample; windows that were not handed out are dropped."""
        self._is_fresh = True
        self.next_window = max(self.next_window, self._end // WINDOW_SAMPLES)
        self._forget_arrivals()

    def oldest_complete_s(self) -> float:
        """When the next window was complete; there has to be one."""
        return self._arrival_s(self._window_end(self.next_window) + self._right_context_samples)

    def take(self) -> AudioWindow:
        """Hand out the next window; there has to be a complete one."""
        assert self.num_complete > 0, "no window is complete"
        index = self.next_window
        end = self._window_end(index)
        pcm = np.zeros(WINDOW_SAMPLES + self._right_context_samples, np.int16)
        first = index * WINDOW_SAMPLES - self._origin
        present = self._samples[first : min(first + len(pcm), self._end - self._origin)]
        pcm[: len(present)] = present
        window = AudioWindow(index=index, pcm=pcm, captured_s=self._arrival_s(end), complete_s=self.oldest_complete_s())
        self.next_window += 1
        self._forget_arrivals()
        return window

    def _forget_arrivals(self) -> None:
        while len(self._arrivals) > 1 and self._arrivals[0][0] < self.next_window * WINDOW_SAMPLES:
            self._arrivals.popleft()

    def _start_epoch(self, pts: int) -> None:
        self._is_fresh = False
        self.next_window = max(self.next_window, pts // WINDOW_SAMPLES)
        first = self.next_window * WINDOW_SAMPLES
        if first > self._end:
            # Nothing that is there belongs to the new epoch: begin with an empty ring at the start of the window.
            # The silence between there and `pts` is no gap in the sound.
            self._origin = self._end = first
            self._arrivals.clear()
            self._append(np.zeros(pts - first, np.int16))

    def _append(self, pcm: NDArray[np.int16]) -> None:
        if self._end - self._origin + len(pcm) > len(self._samples):
            kept = self._samples[self.next_window * WINDOW_SAMPLES - self._origin : self._end - self._origin].copy()
            assert len(kept) + len(pcm) <= len(self._samples), (len(kept), len(pcm), len(self._samples))
            self._samples[: len(kept)] = kept
            self._origin = self._end - len(kept)
        self._samples[self._end - self._origin : self._end - self._origin + len(pcm)] = pcm
        self._end += len(pcm)

    def _window_end(self, index: int) -> int:
        return (index + 1) * WINDOW_SAMPLES

    def _arrival_s(self, end_sample: int) -> float:
        """When the samples before `end_sample` were all there; past the end of the audio, when its last was."""
        for end, arrival_s in self._arrivals:
            if end >= end_sample:
                return arrival_s
        return self._arrivals[-1][1]
