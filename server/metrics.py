"""What the server publishes at /metrics.

Every metric says from which event to which it measures; all times are on the monotonic clock of this machine. A total
is published together with its parts: `window_latency_seconds` is the sum of `stage_seconds` over the stages.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from server.ledger import WindowReport

__all__ = ["Metrics"]

_LATENCY_BUCKETS = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0)
_LEAD_BUCKETS = (0.0, 0.04, 0.08, 0.16, 0.24, 0.36, 0.48, 0.72, 0.96)
_DRIFT_BUCKETS = (-0.08, -0.04, -0.02, -0.01, -0.001, 0.001, 0.01, 0.02, 0.04, 0.08)


class Metrics:
    """The metrics of one server, in a registry of their own. Used on the loop only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.window_latency = Histogram(
            "window_latency_seconds",
            "Last audio sample of a window at the engine to its last frame handed to the track",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.stage = Histogram(
            "stage_seconds",
            "Parts of the window latency, from the end of one stage to the end of the next",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.pace = Histogram(
            "pace_seconds",
            "Admission of a window by the engine to all its frames in the frame ring",
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.lead = Histogram(
            "lead_seconds",
            "Media that was ready but not due when the first frame of a window left",
            buckets=_LEAD_BUCKETS,
            registry=self.registry,
        )
        self.drift = Histogram(
            "drift_seconds",
            "Media time of the video minus media time of the sound last taken by the sender, once per window",
            buckets=_DRIFT_BUCKETS,
            registry=self.registry,
        )
        self.ttff = Histogram(
            "ttff_seconds",
            "First sound of an utterance at the server to the first frame that shows it handed to the track",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.misses = Counter(
            "windows_missed", "Windows over budget by the stage that broke it", ["stage"], registry=self.registry
        )
        self.skipped = Counter(
            "windows_skipped", "Windows that the late policy dropped before they were made", registry=self.registry
        )
        self.reduced = Counter(
            "windows_reduced", "Windows that the late policy made with fewer steps", registry=self.registry
        )
        self.underruns = Counter(
            "underruns", "Times a frame was due and not there while frames were flowing", registry=self.registry
        )
        self.frames = Counter(
            "frames_sent", "Frames handed to the track by kind (fresh, held, rest)", ["kind"], registry=self.registry
        )
        self.dropped = Counter(
            "frames_dropped", "Frames that were made and not handed on", ["reason"], registry=self.registry
        )
        self.loop_lag = Histogram(
            "event_loop_lag_seconds",
            "Moment a timer of the event loop was due to the moment it ran, every quarter of a second",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            registry=self.registry,
        )
        self.sessions = Gauge("sessions", "Sessions that are open", registry=self.registry)
        self.refused = Counter("sessions_refused", "Offers that were refused", ["code"], registry=self.registry)
        self.restarts = Counter("worker_restarts", "Restarts of a worker", ["rank"], registry=self.registry)
        self.is_ready = Gauge("engine_ready", "1 while the engine takes streams", registry=self.registry)

    def observe_window(self, window: WindowReport) -> None:
        """Count one window."""
        self.window_latency.observe(window.latency_s)
        for stage, duration_s in window.stage_s.items():
            self.stage.labels(stage).observe(duration_s)
        self.pace.observe(window.compute_s)
        self.lead.observe(window.lead_s)
        if window.missed is not None:
            self.misses.labels(window.missed).inc()

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
