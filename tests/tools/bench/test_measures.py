"""Figures from curves whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench.measures import (
    block_jump_ratio,
    border_ratio,
    change_by_place,
    closure_opening,
    closure_rate,
    correlation,
    lag_correlations,
    motion_ratio,
    peak_lag,
    picture_similarity,
    psnr_db,
    quantiles,
)

pytestmark = pytest.mark.unit


def speech_like(count: int = 400) -> np.ndarray:
    return np.convolve(np.random.default_rng(0).normal(size=count), [0.25, 0.5, 0.25], "same")


def test_correlation_is_one_for_scaled_curves_and_zero_for_flat_ones() -> None:
    curve = speech_like()
    assert correlation(curve, 3 * curve + 1) == pytest.approx(1)
    assert correlation(curve, -curve) == pytest.approx(-1)
    assert correlation(curve, np.ones_like(curve)) == 0
    assert correlation(curve[:1], curve[:1]) == 0


@pytest.mark.parametrize("lag", [-3, 0, 5])
def test_a_late_motion_peaks_at_a_positive_lag(lag: int) -> None:
    target = speech_like()
    curve = lag_correlations(np.roll(target, lag), target)
    assert peak_lag(curve) == lag
    assert curve[lag] == pytest.approx(1)
    assert sorted(curve) == list(range(-8, 9))


def test_of_equal_peaks_the_one_nearest_to_zero_counts() -> None:
    assert peak_lag({-2: 0.5, -1: 0.9, 0: 0.2, 3: 0.9}) == -1


def test_the_closure_rate_counts_closed_lips_with_a_frame_of_tolerance() -> None:
    opening = np.full(100, 0.8)
    opening[:10] = 0
    opening[40:42] = 0.02
    opening[61] = 0.02
    opening[80:83] = 0.3
    closures = [(40, 41), (59, 60), (80, 82)]
    assert closure_rate(opening, closures) == pytest.approx(2 / 3)
    assert closure_rate(opening, [(57, 59)]) == 0
    assert np.isnan(closure_rate(opening, []))


def test_the_motion_ratio_compares_silence_with_speech() -> None:
    opening = np.concatenate([np.tile([0.0, 1.0], 50), np.tile([0.0, 0.05], 50)])
    is_silent = np.arange(200) >= 100
    assert motion_ratio(opening, is_silent) == pytest.approx(0.05)
    assert np.isnan(motion_ratio(opening, np.zeros(200, bool)))
    assert np.isnan(motion_ratio(opening, np.ones(200, bool)))


def test_averaging_takes_the_trackers_noise_out_of_the_motion_ratio() -> None:
    rng = np.random.default_rng(0)
    speech = 0.5 + 0.5 * np.sin(np.arange(500) * 2 * np.pi / 10)
    opening = np.concatenate([speech, np.zeros(500)]) + 0.02 * rng.normal(size=1000)
    is_silent = np.arange(1000) >= 500
    plain, averaged = motion_ratio(opening, is_silent), motion_ratio(opening, is_silent, 3)
    assert averaged < 0.5 * plain
    assert motion_ratio(np.tile(speech, 2), is_silent, 3) == pytest.approx(1, rel=0.01), "real motion stays"


def test_the_closure_opening_is_that_of_the_narrowest_frame() -> None:
    opening = np.full(100, 0.8)
    opening[:10] = 0
    opening[40], opening[81] = 0.2, 0.4
    assert closure_opening(opening, [(40, 41), (80, 82)]) == pytest.approx(0.3 / 0.8)
    assert np.isnan(closure_opening(opening, []))


@pytest.mark.parametrize("frames_per_part", [12, 4])
def test_the_border_ratio_finds_the_jumps_between_parts(frames_per_part: int) -> None:
    frames = np.arange(120)
    differences = np.where(frames[1:] % frames_per_part == 0, 3.0, 2.0)
    assert border_ratio(differences, frames_per_part) == pytest.approx(1.5)
    places = change_by_place(differences, frames_per_part)
    assert len(places) == frames_per_part
    assert places[0] / places[1] == pytest.approx(1.5)
    assert max(places[1:]) == pytest.approx(min(places[1:]))


def test_only_counted_differences_enter_the_border_ratio() -> None:
    frames = np.arange(120)
    differences = np.where(frames[1:] % 12 == 0, 3.0, 2.0)
    differences[60:] = 1.0
    assert border_ratio(differences, 12, frames[1:] < 60) == pytest.approx(1.5)


def test_steady_motion_makes_no_jump_and_a_jump_at_the_borders_shows() -> None:
    place = np.arange(120.0)
    steps = place + 0.5 * (np.arange(120) // 12) + 0.1 * np.cos(np.arange(120))

    def jumps(curve: np.ndarray) -> np.ndarray:
        change = np.diff(curve)
        return np.abs(change[1:-1] - (change[:-2] + change[2:]) / 2)

    assert block_jump_ratio(jumps(place + 0.1 * np.cos(np.arange(120))), 12) == pytest.approx(1, abs=0.2)
    assert block_jump_ratio(jumps(steps), 12) > 3


def test_psnr_is_that_of_the_definition_and_weights_select() -> None:
    truth = np.full((2, 8, 8, 3), 100, np.uint8)
    picture = truth.copy()
    picture[:, :4] += 10
    assert psnr_db(picture, truth) == pytest.approx(10 * np.log10(255**2 / 50))
    weight = np.zeros((2, 8, 8))
    weight[:, :4] = 1
    assert psnr_db(picture, truth, weight) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr_db(picture, truth, 1 - weight) == float("inf")


def test_similarity_ignores_brightness_and_contrast() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 8, 3)).astype(np.float32), rng.normal(size=(8, 8, 3)).astype(np.float32)
    assert picture_similarity(a, 2 * a + 5) == pytest.approx(1)
    assert abs(picture_similarity(a, b)) < 0.3


def test_quantiles_are_of_all_values() -> None:
    assert quantiles(list(range(101))) == {"p50": 50, "p99": 99, "mean": 50}
