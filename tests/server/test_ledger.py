"""Tests of server/ledger.py: stages that add up, and percentiles."""

import pytest

from pipeline.api import WindowLedger
from server.ledger import HISTORY_WINDOWS, STAGES, History, WindowReport, percentile, report

pytestmark = pytest.mark.unit


def ledger(**changes: object) -> WindowLedger:
    values: dict[str, object] = {
        "window": 7,
        "epoch": 1,
        "captured_s": 10.0,
        "admitted_s": 10.08,
        "features_s": 10.09,
        "steps_s": (10.11, 10.13, 10.15, 10.17),
        "decoded_s": 10.23,
        "copied_s": 10.24,
    }
    return WindowLedger(**{**values, **changes})  # type: ignore[arg-type]


def summed(made: WindowLedger, *, paced_s: float = 10.7, lead_s: float = 0.2, budget_s: float = 0.8) -> WindowReport:
    out = report(made, paced_s=paced_s, lead_s=lead_s, level_dbfs=-20.0, budget_s=budget_s)
    assert out is not None
    return out


def test_the_stages_add_up_to_the_window_latency() -> None:
    window = summed(ledger())
    assert window.latency_s == pytest.approx(0.7)
    assert sum(window.stage_s.values()) == pytest.approx(0.7)
    assert list(window.stage_s) == list(STAGES)
    assert window.stage_s["wait"] == pytest.approx(0.08)
    assert window.steps_s == pytest.approx((0.02,) * 4)
    assert window.stage_s["pace"] == pytest.approx(0.46)
    assert window.compute_s == pytest.approx(0.16)


def test_a_stage_that_the_engine_left_open_takes_no_time() -> None:
    window = summed(ledger(features_s=None, steps_s=(), decoded_s=None))
    assert window.features_s == 0.0
    assert window.decode_s == 0.0
    assert window.stage_s["copy"] == pytest.approx(0.16)
    assert sum(window.stage_s.values()) == pytest.approx(window.latency_s)


def test_a_window_without_a_capture_has_no_report() -> None:
    assert report(ledger(captured_s=None), paced_s=11.0, lead_s=0.0, level_dbfs=0.0, budget_s=0.8) is None


def test_within_the_budget_nothing_is_missed() -> None:
    assert summed(ledger(), paced_s=10.799).missed is None


def test_a_late_window_blames_the_slowest_stage_of_the_engine() -> None:
    late = ledger(decoded_s=11.0, copied_s=11.01)
    assert summed(late, paced_s=11.1, lead_s=0.0).missed == "decode"


def test_a_window_that_was_ready_in_time_blames_the_pacing() -> None:
    assert summed(ledger(), paced_s=11.0, lead_s=0.3).missed == "pace"


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([5.0], 50) == 5.0
    assert percentile([], 50) is None


def test_a_history_counts_all_windows_and_remembers_the_last() -> None:
    history = History()
    assert history.latency_ms(50) is None
    for i in range(HISTORY_WINDOWS + 50):
        history.add(summed(ledger(window=i), paced_s=11.0 if i < 50 else 10.7, lead_s=0.3))
    assert history.num_windows == HISTORY_WINDOWS + 50
    assert history.misses["pace"] == 50
    assert history.latency_ms(100) == pytest.approx(700.0)
    assert history.pace_ms(50) == pytest.approx(160.0)
    assert len(history.reports) == HISTORY_WINDOWS
