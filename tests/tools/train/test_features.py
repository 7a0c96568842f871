"""Audio for training: the same columns that the front end makes of the whole source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models.audio_frontend import AudioFrontend, AudioFrontendConfig
from tools.train.features import AudioBank
from tools.train.speech.bank import BankSource, SpeechBank, dequantise_mel

pytestmark = pytest.mark.numerics


def make_source(seed: int, num_frames: int) -> BankSource:
    rng = np.random.default_rng(seed)
    return BankSource(
        mel_codes=rng.integers(0, 120, (4 * num_frames, 80), dtype=np.uint8),
        visemes=rng.integers(1, 255, (num_frames, 15), dtype=np.uint8),
        loudness=rng.integers(0, 255, num_frames, dtype=np.uint8),
        classes=rng.integers(0, 15, num_frames, dtype=np.uint8),
        utterances=np.array([[0, num_frames, 0, 0]], np.int32),
        voices=("nobody",),
    )


@pytest.fixture
def parts(tmp_path: Path) -> tuple[AudioBank, AudioFrontend, BankSource]:
    """A bank of two sources, its front end, and the second source."""
    torch.manual_seed(0)
    frontend = AudioFrontend(AudioFrontendConfig(dim=16))
    second = make_source(2, 90)
    SpeechBank({"a": make_source(1, 50), "b": second}).save(tmp_path / "bank.npz")
    return AudioBank(tmp_path / "bank.npz", frontend, "cpu"), frontend.eval(), second


def test_columns_are_those_of_the_source_at_the_clips_frames(
    parts: tuple[AudioBank, AudioFrontend, BankSource],
) -> None:
    bank, frontend, source = parts
    config = frontend.config
    columns = bank.columns(torch.tensor([[1, 45], [1, 50]]), 20, augment=False)
    assert columns.shape == (2, 1, 16, 20)
    mel = dequantise_mel(source.mel_codes)
    for row, first in enumerate((45, 50)):
        span = mel[4 * first - config.past_columns : 4 * (first + 20) + config.future_columns]
        with torch.no_grad():
            expected = frontend(torch.from_numpy(span)[None])[0].T
        assert float((columns[row, 0] - expected).norm() / expected.norm()) < 0.02


def test_the_first_and_the_last_frames_of_the_bank_have_columns_too(
    parts: tuple[AudioBank, AudioFrontend, BankSource],
) -> None:
    bank, _, _ = parts
    assert bool(bank.columns(torch.tensor([[0, 0], [1, 78]]), 12, augment=False).isfinite().all())


def test_augmentation_changes_the_columns(parts: tuple[AudioBank, AudioFrontend, BankSource]) -> None:
    bank, _, _ = parts
    where = torch.tensor([[1, 45]])
    plain, varied = (bank.columns(where, 12, augment=augment) for augment in (False, True))
    assert float((plain - varied).abs().mean()) > 0.01
