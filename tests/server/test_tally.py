"""Tests of server/tally.py: what a viewer is told and what /metrics says are the same."""

import pytest

from pipeline.api import StreamCounters
from server.metrics import Metrics
from server.tally import Tally

pytestmark = pytest.mark.unit


def test_pictures_are_counted_by_kind_and_the_portrait_before_them_is_none() -> None:
    metrics = Metrics()
    tally = Tally(metrics)
    for kind in ("still", "fresh", "held", "rest", "rest"):
        tally.picture(kind)
    assert (tally.counters.held_frames, tally.counters.rest_frames) == (1, 2)
    sent = {kind: metrics.registry.get_sample_value("frames_sent_total", {"kind": kind}) for kind in ("still", "rest")}
    assert sent == {"still": 1.0, "rest": 2.0}


def test_the_time_to_the_first_frame_is_counted_for_the_viewer_and_the_server() -> None:
    metrics = Metrics()
    tally = Tally(metrics)
    assert tally.history.ttff_ms(50) is None
    for ttff_s in (0.8, 0.82, 0.9):
        tally.first_frame(ttff_s)
    assert (tally.history.ttff_ms(50), tally.history.ttff_ms(95)) == (820.0, 900.0)
    assert metrics.registry.get_sample_value("ttff_seconds_count") == 3.0


def test_what_goes_wrong_is_counted_for_the_viewer_and_the_server() -> None:
    metrics = Metrics()
    tally = Tally(metrics)
    tally.underrun()
    tally.dropped(12, "late")
    assert (tally.counters.underruns, tally.counters.dropped_frames) == (1, 12)
    assert metrics.registry.get_sample_value("underruns_total") == 1.0
    assert metrics.registry.get_sample_value("frames_dropped_total", {"reason": "late"}) == 12.0


def test_what_the_late_policy_did_is_counted_once_over_all_streams() -> None:
    metrics = Metrics()
    tally = Tally(metrics)
    counters = StreamCounters(skipped_windows=2)
    tally.late_windows(counters)
    counters.skipped_windows, counters.reduced_windows = 3, 1
    tally.late_windows(counters)
    tally.late_windows(counters)
    tally.begin_stream()
    tally.late_windows(StreamCounters(skipped_windows=1))
    assert (tally.counters.skipped_windows, tally.counters.reduced_windows) == (4, 1)
    assert metrics.registry.get_sample_value("windows_skipped_total") == 4.0
    assert metrics.registry.get_sample_value("windows_reduced_total") == 1.0
