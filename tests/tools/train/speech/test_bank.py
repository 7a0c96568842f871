"""The speech bank's file, its clips, and the choice of training and held-out stretches."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, WeightsError
from tools.train.speech.bank import BankSource, SpeechBank, dequantise_mel, quantise_mel

pytestmark = pytest.mark.unit


def _source(num_utterances: int = 4, seed: int = 0) -> BankSource:
    """Utterances of 10 frames; the second one is held out."""
    rng = np.random.default_rng(seed)
    num_frames = 10 * num_utterances
    visemes = rng.integers(0, 255, (num_frames, 15), dtype=np.uint8)
    return BankSource(
        mel_codes=rng.integers(0, 255, (4 * num_frames, 80), dtype=np.uint8),
        visemes=visemes,
        loudness=rng.integers(0, 255, num_frames, dtype=np.uint8),
        classes=rng.integers(0, 15, num_frames, dtype=np.uint8),
        utterances=np.array([[10 * i, 10, 0, i == 1] for i in range(num_utterances)], np.int32),
        voices=("one",),
    )


def test_a_file_brings_back_every_array(tmp_path: Path) -> None:
    bank = SpeechBank({"a": _source(seed=1), "b": _source(2, seed=2)})
    bank.save(tmp_path / "bank.npz")
    again = SpeechBank.load(tmp_path / "bank.npz")
    assert list(again.sources) == ["a", "b"]
    for name, source in bank.sources.items():
        for part in ("mel_codes", "visemes", "loudness", "classes", "utterances"):
            np.testing.assert_array_equal(getattr(again.sources[name], part), getattr(source, part))
        assert again.sources[name].voices == source.voices
    assert again.minutes == pytest.approx(60 / 25 / 60)


def test_quantised_spectra_are_off_by_half_a_step_at_most() -> None:
    mel = np.random.default_rng(0).uniform(-13.8, 5.0, (50, 80)).astype(np.float32)
    assert np.abs(dequantise_mel(quantise_mel(mel)) - mel).max() <= 0.1001


def test_a_clip_holds_four_spectrum_columns_per_frame_and_shares_of_one() -> None:
    source = _source()
    clip = source.clip(5, 12)
    np.testing.assert_array_equal(clip.mel, dequantise_mel(source.mel_codes[20:68]))
    np.testing.assert_allclose(clip.visemes.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(clip.loudness, source.loudness[5:17] / 85.0, rtol=1e-5)


def test_a_clip_outside_the_source_is_refused() -> None:
    with pytest.raises(IndexError, match=r"frames 35\.\.45 of 40"):
        _source().clip(35, 10)


def test_runs_join_neighbouring_utterances_and_stop_at_held_out_ones() -> None:
    source = _source()
    assert source.runs(held_out=False) == [(0, 10), (20, 20)]
    assert source.runs(held_out=True) == [(10, 10)]


def test_draws_stay_inside_what_may_be_trained_on() -> None:
    bank = SpeechBank({"a": _source(), "b": _source()})
    rng = np.random.default_rng(0)
    drawn = {bank.draw(rng, 8) for _ in range(300)}
    assert {index for index, _ in drawn} == {0, 1}
    assert all(first <= 2 or 20 <= first <= 32 for _, first in drawn)
    assert {first for _, first in drawn} >= {0, 2, 20, 32}


def test_draws_for_validation_stay_inside_what_is_held_out() -> None:
    bank = SpeechBank({"a": _source()})
    rng = np.random.default_rng(0)
    assert {bank.draw(rng, 9, held_out=True) for _ in range(50)} == {(0, 10), (0, 11)}


def test_a_length_that_no_run_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_frames is 21"):
        SpeechBank({"a": _source()}).draw(np.random.default_rng(0), 21)


def test_curves_are_those_of_the_clip() -> None:
    bank = SpeechBank({"a": _source(seed=1), "b": _source(seed=2)})
    visemes, loudness = bank.curves(1, 3, 7)
    clip = bank.sources["b"].clip(3, 7)
    np.testing.assert_array_equal(visemes, clip.visemes)
    np.testing.assert_array_equal(loudness, clip.loudness)


def test_a_spectrum_beyond_the_ends_is_silence() -> None:
    bank = SpeechBank({"a": _source()})
    codes = bank.spectrum(0, -3, 166)
    assert not codes[:3].any()
    assert not codes[163:].any()
    np.testing.assert_array_equal(codes[3:163], bank.sources["a"].mel_codes)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"bank\.npz: not a readable speech bank"):
        SpeechBank.load(tmp_path / "bank.npz")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.npz"
    SpeechBank({"a": _source()}).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not a readable speech bank"):
        SpeechBank.load(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bank.json", '{"format": 99, "voices": {}}')
    with pytest.raises(WeightsError, match="format 99 is not 1"):
        SpeechBank.load(path)
