"""Training of the audio front end, at toy size on a made-up language of tones: it learns, and it is reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.audio_frontend import AudioFrontend, AudioFrontendConfig, FrontendHeads
from tools.train.speech.bank import BankSource, SpeechBank, quantise_mel
from tools.train.speech.train_frontend import SpeechPool, TrainOptions, evaluate, train

pytestmark = pytest.mark.numerics

CONFIG = AudioFrontendConfig(dim=32, dilations=(1,))
CPU = torch.device("cpu")


def _tones(num_utterances: int, seed: int, *, is_quiet: bool = False) -> BankSource:
    """Every viseme sounds as a tone in bands of its own, for four frames; the last utterance is held out."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(rng.integers(0, 15, num_utterances * 10), 4).astype(np.uint8)
    if is_quiet:
        classes[:] = 0
    mel = np.full((len(classes) * 4, 80), -12.0, np.float32)
    for column, viseme in enumerate(np.repeat(classes, 4)):
        if viseme:
            mel[column, 5 * viseme : 5 * viseme + 5] = -2.0
    frames = np.arange(num_utterances) * 40
    utterances = np.stack([frames, np.full_like(frames, 40), 0 * frames, frames == frames[-1]], 1).astype(np.int32)
    return BankSource(
        mel_codes=quantise_mel(mel),
        visemes=(np.eye(15)[classes] * 255).astype(np.uint8),
        loudness=np.full(len(classes), 85, np.uint8),
        classes=classes,
        utterances=utterances,
        voices=("tones",),
    )


def _bank() -> SpeechBank:
    return SpeechBank({"tones": _tones(12, 0), "quiet": _tones(4, 1, is_quiet=True)})


def _options(steps: int) -> TrainOptions:
    return TrainOptions(
        steps=steps, max_s=50.0, batch=8, clip_frames=20, learning_rate=5e-3, seed=0, average_decay=0.9, log_every=1000
    )


def test_training_learns_a_language_of_tones_and_writes_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "frontend.safetensors"
    before = evaluate(AudioFrontend(CONFIG), FrontendHeads(CONFIG), SpeechPool([_bank()], CPU, context_columns=80))
    figures = train(CONFIG, [_bank()], _options(120), path=path, device=CPU)
    assert figures["tones"]["jaw_correlation"] > 0.8
    assert figures["tones"]["jaw_correlation"] > before["tones"]["jaw_correlation"] + 0.3
    assert figures["tones"]["best_lag_frames"] == 0
    assert figures["quiet"]["jaw"] < 0.2
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["step"] == 120
    assert AudioFrontend.load(path).config == CONFIG


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("first", "second"):
        train(CONFIG, [_bank()], _options(3), path=tmp_path / name, device=CPU)
    first, second = (AudioFrontend.load(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_pool_gives_back_spectra_and_labels_with_silence_round_each_source() -> None:
    bank = _bank()
    pool = SpeechPool([bank], CPU, context_columns=80)
    start = pool.starts(["quiet"], 40, held_out=False)[:1]
    mel = pool.mel(start, 3, CONFIG)
    assert mel.shape == (1, CONFIG.past_columns + 12 + CONFIG.future_columns, 80)
    assert float(mel[0, : CONFIG.past_columns].max()) == pytest.approx(float(np.log(1e-6)), abs=1e-4)
    tones = pool.starts(["tones"], 40, held_out=False)[:1]
    weights, classes, _ = pool.targets(tones, 20)
    assert torch.equal(weights[0].argmax(-1), classes[0])
    np.testing.assert_array_equal(classes[0].numpy(), bank.sources["tones"].classes[:20])


def test_clips_longer_than_any_run_are_refused() -> None:
    with pytest.raises(ConfigError, match="clip_frames is 1000"):
        SpeechPool([_bank()], CPU, context_columns=80).starts(["tones"], 1000, held_out=False)
