"""Measure a trained front end on held-out real speech: `python -m tools.train.speech.measure_frontend FILE`.

Goes the way of a live stream, from samples to features, at several levels and noises, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.audio.features import EmbeddedFeatures
from pipeline.audio.mel import samples_to_float
from pipeline.geometry import SAMPLE_RATE_HZ
from pipeline.models.audio_frontend import AudioFrontend, FrontendHeads
from tools.train.speech.frontend_score import FrontendScore, score_prediction
from tools.train.speech.librivox import HeldOutClip, load_librivox
from tools.train.speech.sounds import coloured_noise

__all__ = ["main", "mean_opening", "score_speech"]

FloatArray = NDArray[np.float32]

_LEVELS_DB = (-20, -10, 0, 10)
_NOISE_RATIOS_DB = (30, 20, 10)
_SPEECH_RMS = 0.06


def _predict(features: EmbeddedFeatures, heads: FrontendHeads, sound: FloatArray) -> tuple[FloatArray, FloatArray]:
    pcm = (np.clip(sound, -1.0, 1.0) * 32767).astype(np.int16)
    with torch.inference_mode():
        logits_BFV, _, jaw_BF = heads(features.from_file(pcm).transpose(1, 2))
    return logits_BFV[0].softmax(-1).numpy(), jaw_BF[0].numpy()


def score_speech(
    features: EmbeddedFeatures,
    heads: FrontendHeads,
    clips: list[HeldOutClip],
    *,
    gain_db: float = 0.0,
    noise_ratio_db: float | None = None,
) -> FrontendScore:
    """Score all clips played one after the other, as one stream.

    Args:
        features: What to measure.
        heads: Its training heads.
        clips: Labelled speech.
        gain_db: How much louder than recorded.
        noise_ratio_db: Level of the speech above added pink noise; None for no noise.

    Returns:
        The figures.
    """
    sound = samples_to_float(np.concatenate([clip.pcm for clip in clips]))
    if noise_ratio_db is not None:
        noise = coloured_noise(np.random.default_rng(0), len(sound), 1.0)
        sound = sound + noise * np.float32(_SPEECH_RMS * 10 ** (-noise_ratio_db / 20))
    weights, jaw = _predict(features, heads, sound * np.float32(10 ** (gain_db / 20)))
    return score_prediction(
        weights,
        jaw,
        labels=np.concatenate([clip.visemes for clip in clips]),
        loudness=np.concatenate([clip.loudness for clip in clips]),
    )


def mean_opening(features: EmbeddedFeatures, heads: FrontendHeads, sound: FloatArray) -> float:
    """Measure how far the jaw opens on average, from the second second on."""
    return float(_predict(features, heads, sound)[1][25:].mean())


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure an audio front end on held-out real speech.")
    parser.add_argument("file", type=Path, help="weights with heads, as train_frontend.py writes them")
    path = parser.parse_args(arguments).file
    features, heads = EmbeddedFeatures(AudioFrontend.load(path)), FrontendHeads.load(path)
    clips = load_librivox()
    figures: dict[str, object] = {"right_context_ms": 1000 * features.right_context_samples / SAMPLE_RATE_HZ}
    for gain_db in _LEVELS_DB:
        figures[f"gain {gain_db} dB"] = asdict(score_speech(features, heads, clips, gain_db=gain_db))
    for ratio_db in _NOISE_RATIOS_DB:
        figures[f"noise {ratio_db} dB below"] = asdict(score_speech(features, heads, clips, noise_ratio_db=ratio_db))
    speech = samples_to_float(np.concatenate([clip.pcm for clip in clips]))
    noise = coloured_noise(np.random.default_rng(0), 10 * SAMPLE_RATE_HZ, 1.0)
    figures["mean opening"] = {
        "speech": mean_opening(features, heads, speech),
        "silence": mean_opening(features, heads, np.zeros(10 * SAMPLE_RATE_HZ, np.float32)),
    } | {
        f"noise {db} dBFS": mean_opening(features, heads, noise * np.float32(10 ** (db / 20))) for db in (-60, -40, -25)
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
