"""The live level: quiet and loud speakers come out alike, silence and noise are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audio.level import SPEECH_LEVEL_DB, LevelTracker, LoudnessMeter
from pipeline.audio.mel import HOP_SAMPLES
from pipeline.geometry import SAMPLES_PER_FRAME

pytestmark = pytest.mark.unit


def _power(*levels_db: float) -> np.ndarray:
    return (10 ** (np.array(levels_db) / 10)).astype(np.float32)


def _speech(level_db: float, num_columns: int, floor_db: float = -75.0, seed: int = 0) -> np.ndarray:
    """Syllables of 200 ms with 50 ms between them, their level spread by 3 dB."""
    rng = np.random.default_rng(seed)
    levels_db = level_db + rng.normal(0, 3, num_columns)
    levels_db[np.arange(num_columns) % 25 >= 20] = floor_db
    return _power(*levels_db)


def _gains_db(tracker: LevelTracker, power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(tracker.gains(power))


@pytest.mark.parametrize("level_db", [-44.0, -34.0, -24.0, -14.0])
def test_speech_of_any_level_comes_out_at_the_usual_one_within_three_seconds(level_db: float) -> None:
    gains_db = _gains_db(LevelTracker(), _speech(level_db, 300))
    assert level_db + gains_db[-1] == pytest.approx(SPEECH_LEVEL_DB, abs=3.0)


def test_very_quiet_speech_is_raised_by_at_most_24_db() -> None:
    gains_db = _gains_db(LevelTracker(), _speech(-58.0, 3000, floor_db=-90.0))
    assert gains_db.max() <= 24.0
    assert gains_db.max() > 20.0


def test_digital_silence_changes_nothing() -> None:
    assert np.all(LevelTracker().gains(np.zeros(500, np.float32)) == 1.0)


@pytest.mark.parametrize("level_db", [-80.0, -60.0, -45.0, -30.0])
def test_steady_noise_is_never_amplified(level_db: float) -> None:
    noise = _power(*(level_db + np.random.default_rng(1).normal(0, 1, 1000)))
    assert LevelTracker().gains(noise).max() <= 1.0 + 1e-6


def test_the_gain_is_held_through_a_pause() -> None:
    tracker = LevelTracker()
    before = _gains_db(tracker, _speech(-40.0, 1000))[-1]
    after = _gains_db(tracker, _power(*[-75.0] * 1000))[-1]
    assert before > 10.0
    assert after == pytest.approx(before, abs=0.5)


def test_noise_under_quiet_speech_stays_far_below_the_level_of_speech() -> None:
    gains_db = _gains_db(LevelTracker(), _speech(-45.0, 2000, floor_db=-60.0))
    assert (-60.0 + gains_db).max() <= -47.9


def test_the_gain_never_jumps() -> None:
    gains_db = _gains_db(LevelTracker(), np.concatenate([_speech(-50.0, 200), _speech(-5.0, 200)]))
    assert np.abs(np.diff(gains_db)).max() <= 0.5 + 1e-4


def test_gains_do_not_depend_on_how_the_sound_is_cut() -> None:
    power = _speech(-40.0, 200)
    tracker = LevelTracker()
    pieces = [tracker.gains(piece) for piece in np.array_split(power, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), LevelTracker().gains(power))


def test_a_copy_looks_ahead_without_moving_its_origin() -> None:
    power = _speech(-40.0, 600)
    tracker = LevelTracker()
    tracker.gains(power[:250])
    looked_ahead = tracker.copy().gains(power[250:])
    np.testing.assert_array_equal(tracker.gains(power[250:]), looked_ahead)


def _sound(power: np.ndarray, seed: int = 0) -> np.ndarray:
    """Noise with these mean squares, one per column, int16; whole frames."""
    noise = np.random.default_rng(seed).normal(size=len(power) * HOP_SAMPLES)
    return (32768 * noise * np.sqrt(power).repeat(HOP_SAMPLES)).clip(-32768, 32767).astype(np.int16)


SILENCE = _sound(_power(*[-75.0] * 1000))


@pytest.mark.parametrize("level_db", [-44.0, -34.0, -24.0, -14.0])
def test_quiet_and_loud_speakers_are_about_equally_loud_within_three_seconds(level_db: float) -> None:
    loudness = LoudnessMeter().push(_sound(_speech(level_db, 600)))
    assert loudness.shape == (150,)
    assert 0.6 < loudness[75:].mean() < 1.2


def test_silence_and_quiet_noise_are_not_loud_before_after_and_between_speech() -> None:
    meter = LoudnessMeter()
    assert meter.push(np.zeros(100 * SAMPLES_PER_FRAME, np.int16)).max() == 0.0
    assert meter.push(SILENCE).max() < 0.1
    meter.push(_sound(_speech(-44.0, 1000)))
    assert meter.push(SILENCE).max() < 0.1


def test_after_a_pause_a_quiet_speaker_is_as_loud_as_before() -> None:
    meter = LoudnessMeter()
    before = meter.push(_sound(_speech(-40.0, 1000)))[-50:].mean()
    meter.push(SILENCE)
    assert meter.push(_sound(_speech(-40.0, 200, seed=1)))[:25].mean() == pytest.approx(before, rel=0.2)


def test_a_raised_voice_is_louder_than_the_same_voice_before_but_never_above_three() -> None:
    meter = LoudnessMeter()
    before = meter.push(_sound(_speech(-30.0, 1000)))[-50:].mean()
    assert meter.push(_sound(_speech(-24.0, 100, seed=1))).mean() > 1.5 * before
    assert meter.push(_sound(_speech(-1.0, 100, seed=2))).max() == 3.0


def test_loudness_does_not_depend_on_how_the_sound_is_cut() -> None:
    sound = _sound(_speech(-40.0, 400))
    meter = LoudnessMeter()
    pieces = [meter.push(piece) for piece in np.split(sound, [12 * SAMPLES_PER_FRAME, 15 * SAMPLES_PER_FRAME])]
    np.testing.assert_array_equal(np.concatenate(pieces), LoudnessMeter().push(sound))
