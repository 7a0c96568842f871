"""Measuring a front end through the live path, with an untrained network and made-up recordings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.audio.features import EmbeddedFeatures
from pipeline.models.audio_frontend import AudioFrontend, AudioFrontendConfig, FrontendHeads
from tools.train.speech.librivox import HeldOutClip
from tools.train.speech.measure_frontend import mean_opening, score_speech
from tools.train.speech.visemes import Phone, closure_spans, viseme_curves

pytestmark = pytest.mark.numerics

CONFIG = AudioFrontendConfig(dim=16, dilations=(1,))


def _untrained() -> tuple[EmbeddedFeatures, FrontendHeads]:
    torch.manual_seed(0)
    return EmbeddedFeatures(AudioFrontend(CONFIG).eval()), FrontendHeads(CONFIG).eval()


def _clip(seed: int) -> HeldOutClip:
    """Noise that is loud in open vowels and faint in closures."""
    rng = np.random.default_rng(seed)
    phones = [Phone(0.2 * i, 0.2 * i + 0.2, ("aa", "PP")[i % 2]) for i in range(15)]
    loudness = np.repeat([1.0, 0.05] * 8, 3200)[: 75 * 640]
    return HeldOutClip(
        name=f"clip{seed}",
        text="papa",
        pcm=(rng.normal(0, 3000, 75 * 640) * loudness).astype(np.int16),
        phones=tuple(phones),
        visemes=viseme_curves(phones, 75),
        loudness=np.ones(75, np.float32),
        closures=tuple(closure_spans(phones, 75)),
    )


def test_untrained_heads_do_not_close_the_lips() -> None:
    features, heads = _untrained()
    score = score_speech(features, heads, [_clip(0), _clip(1)], noise_ratio_db=20)
    assert score.closure_recall == 0.0
    assert score.jaw_ratio < 0.5


def test_the_level_of_the_recording_matters_little() -> None:
    features, heads = _untrained()
    usual, quiet = (score_speech(features, heads, [_clip(0), _clip(1)], gain_db=gain_db) for gain_db in (0, -12))
    assert usual.jaw_correlation == pytest.approx(quiet.jaw_correlation, abs=0.2)


def test_the_opening_is_that_of_the_jaw_head() -> None:
    features, heads = _untrained()
    with torch.no_grad():
        heads.jaw.weight.zero_()
        heads.jaw.bias.fill_(3.0)
    expected = float(torch.nn.functional.softplus(torch.tensor(3.0)))
    assert mean_opening(features, heads, np.zeros(32_000, np.float32)) == pytest.approx(expected, abs=1e-5)
