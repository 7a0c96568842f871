"""What is counted of one session: for its viewer, and in the metrics of the server."""

from dataclasses import replace

from pipeline.api import StreamCounters
from server.control import Counters
from server.ledger import History, WindowReport
from server.metrics import Metrics

__all__ = ["Tally"]


class Tally:
    """Counts for one session. Used on the loop only.

    Args:
        metrics: Of the server.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.history = History()
        """Its last windows, and its misses."""
        self.counters = Counters()
        """Everything else since it began."""
        self._counted = StreamCounters()

    def window(self, window: WindowReport) -> None:
        """Count a window that is done."""
        self.history.add(window)
        self._metrics.observe_window(window)

    def first_frame(self, ttff_s: float) -> None:
        """Count an utterance whose first frame was handed to the track.

        Args:
            ttff_s: From its first sound at the server, in seconds.
        """
        self.history.add_ttff(ttff_s)
        self._metrics.ttff.observe(ttff_s)

    def begin_stream(self) -> None:
        """Windows come from a new stream of the engine from now on."""
        self._counted = StreamCounters()

    def late_windows(self, so_far: StreamCounters) -> None:
        """Count what the late policy did to windows since the last call.

        Args:
            so_far: Of the stream.
        """
        num_skipped = so_far.skipped_windows - self._counted.skipped_windows
        num_reduced = so_far.reduced_windows - self._counted.reduced_windows
        self._counted = replace(so_far)
        self.counters.skipped_windows += num_skipped
        self.counters.reduced_windows += num_reduced
        self._metrics.skipped.inc(num_skipped)
        self._metrics.reduced.inc(num_reduced)

    def picture(self, kind: str) -> None:
        """Count a picture that was handed to the track.

        Args:
            kind: "fresh", "held", "rest", or "still" for the portrait before the first of them.
        """
        self.counters.held_frames += kind == "held"
        self.counters.rest_frames += kind == "rest"
        self._metrics.frames.labels(kind).inc()

    def underrun(self) -> None:
        """Count a frame that was due and not there while frames were flowing."""
        self.counters.underruns += 1
        self._metrics.underruns.inc()

    def dropped(self, num_frames: int, reason: str) -> None:
        """Count frames that nobody sees."""
        self.counters.dropped_frames += num_frames
        self._metrics.dropped.labels(reason).inc(num_frames)
