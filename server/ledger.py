"""What became of each window, and the figures over many: pure, times on the machine-wide monotonic clock.

The window latency is `paced_s - captured_s`; its stages are published with it and add up to it.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.api import WindowLedger

__all__ = ["STAGES", "History", "WindowReport", "percentile", "report"]

STAGES = ("wait", "features", "steps", "decode", "copy", "pace")
"""In the order in which they happen."""
HISTORY_WINDOWS = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReport:
    """One window from its last sample at the engine to its last frame at the track, in seconds."""

    window: int
    """Index of the window in its stream."""
    epoch: int
    """Epoch it belongs to."""
    latency_s: float
    """Window latency: the sum of the stages."""
    wait_s: float
    """Last sample at the engine to admission: right context, and a worker that was busy."""
    features_s: float
    """Admission to audio features ready."""
    steps_s: tuple[float, ...]
    """Each denoising step that ran."""
    decode_s: float
    """Last step to the last frame decoded."""
    copy_s: float
    """Decoded to all frames in the frame ring."""
    pace_s: float
    """Frame ring to the last frame handed to the track: transport, and waiting for its moment."""
    compute_s: float
    """Admission to all frames in the ring: the pace of the engine."""
    lead_s: float
    """Media that was ready but not due when the first frame left; 0 when the window was late."""
    level_dbfs: float
    """Level of the window's sound."""
    missed: str | None
    """The stage that broke the budget, or None."""

    @property
    def stage_s(self) -> dict[str, float]:
        """Duration of every stage by name; the steps summed up."""
        return {
            "wait": self.wait_s,
            "features": self.features_s,
            "steps": sum(self.steps_s),
            "decode": self.decode_s,
            "copy": self.copy_s,
            "pace": self.pace_s,
        }


def report(
    ledger: WindowLedger, *, paced_s: float, lead_s: float, level_dbfs: float, budget_s: float
) -> WindowReport | None:
    """Sum up one window.

    Args:
        ledger: As the engine filled it. A stage that it left open takes no time.
        paced_s: When the last frame was handed to the track, or should have been, had it come in time.
        lead_s: Media that was ready but not due when the window's first frame left.
        level_dbfs: Level of the window's sound.
        budget_s: Limit on window latency.

    Returns:
        The report, or None when the engine did not say when the window was captured.
    """
    if ledger.captured_s is None:
        return None
    marks = [ledger.captured_s]
    for mark in (ledger.admitted_s, ledger.features_s, *ledger.steps_s, ledger.decoded_s, ledger.copied_s, paced_s):
        marks.append(marks[-1] if mark is None else max(mark, marks[-1]))
    wait_s, features_s, *steps_s, decode_s, copy_s, pace_s = (b - a for a, b in zip(marks, marks[1:], strict=False))
    latency_s = marks[-1] - marks[0]
    engine_s = {"wait": wait_s, "features": features_s, "steps": sum(steps_s), "decode": decode_s, "copy": copy_s}
    is_engine_late = lead_s <= 0.0
    slowest = max(engine_s, key=lambda stage: engine_s[stage]) if is_engine_late else "pace"
    return WindowReport(
        window=ledger.window,
        epoch=ledger.epoch,
        latency_s=latency_s,
        wait_s=wait_s,
        features_s=features_s,
        steps_s=tuple(steps_s),
        decode_s=decode_s,
        copy_s=copy_s,
        pace_s=pace_s,
        compute_s=features_s + sum(steps_s) + decode_s + copy_s,
        lead_s=lead_s,
        level_dbfs=level_dbfs,
        missed=slowest if latency_s > budget_s else None,
    )


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank).

    Args:
        values: Any number of values, in any order.
        percent: Above 0, up to 100.

    Returns:
        One of the values, or None when there are none.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100.0 * len(ordered)) - 1)]


class History:
    """The last 250 windows and utterances of a session, and its misses since it began. Used on the loop only."""

    def __init__(self) -> None:
        self._reports: deque[WindowReport] = deque(maxlen=HISTORY_WINDOWS)
        self._ttffs_s: deque[float] = deque(maxlen=HISTORY_WINDOWS)
        self.num_windows = 0
        """Windows since the session began."""
        self.misses = dict.fromkeys(STAGES, 0)
        """Windows over budget since the session began, by the stage that broke it."""

    @property
    def reports(self) -> Sequence[WindowReport]:
        """The windows that are still remembered, oldest first."""
        return tuple(self._reports)

    def add(self, window: WindowReport) -> None:
        """Remember a window; the oldest one goes when there are more than 250."""
        self._reports.append(window)
        self.num_windows += 1
        if window.missed is not None:
            self.misses[window.missed] += 1

    def add_ttff(self, ttff_s: float) -> None:
        """Remember the time to the first frame of an utterance, in seconds."""
        self._ttffs_s.append(ttff_s)

    def ttff_ms(self, percent: float) -> float | None:
        """Percentile of the time to the first frame, in milliseconds, or None before the first utterance."""
        return _ms(percentile(self._ttffs_s, percent))

    def latency_ms(self, percent: float) -> float | None:
        """Percentile of the window latency, in milliseconds, or None before the first window."""
        return _ms(percentile((r.latency_s for r in self._reports), percent))

    def pace_ms(self, percent: float) -> float | None:
        """Percentile of the compute time per window, in milliseconds, or None before the first window."""
        return _ms(percentile((r.compute_s for r in self._reports), percent))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 1)
