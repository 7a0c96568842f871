"""Where the autoencoder is looked at closely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.models.embedded_vae import EmbeddedVAE
from tools.bench.heldout import SpokenPart
from tools.bench.vae import detail_mask, round_trip, round_trips
from tools.train import sizes

pytestmark = pytest.mark.unit


def test_the_mask_covers_mouth_and_eyes_and_little_else() -> None:
    """Landmarks of a face with eyes 64 px apart; the second frame is moved by 10 px."""
    points = {"mouth_left": (104, 220), "mouth_right": (152, 220), "eye_left": (96, 156), "eye_right": (160, 156)}
    face = np.zeros((8, 2), np.float32)
    face[:2] = points["mouth_left"], points["mouth_right"]
    face[4:6] = points["eye_left"], points["eye_right"]
    mask = detail_mask(np.stack([face, face + 10]), 384, 256)
    assert mask.shape == (2, 384, 256)
    for x, y in points.values():
        assert mask[0, y, x]
        assert mask[1, y + 10, x + 10]
    assert not mask[0, 188, 128]
    assert not mask[0, 20, 128]
    assert 0.04 < mask[0].mean() < 0.2
    assert np.array_equal(mask[0, :-10, :-10], mask[1, 10:, 10:])


def spoken(frames: NDArray[np.uint8]) -> SpokenPart:
    motion = np.linspace(0, 0.3, 7 * len(frames), dtype=np.float32).reshape(-1, 7)
    return SpokenPart(frames=frames, landmarks=np.zeros((len(frames), 8, 2), np.float32), motion=motion)


def test_a_round_trip_keeps_size_and_number_and_every_part_counts() -> None:
    """An untrained network need not keep the picture, but what it decodes depends on portrait and frames."""
    torch.manual_seed(0)
    vae = EmbeddedVAE(sizes.VAE).eval()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (8, 64, 64, 3), np.uint8)
    one = round_trip(vae, frames[0], spoken(frames))
    assert one.shape == frames.shape
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, round_trip(vae, frames[0], spoken(frames)))
    assert (one != round_trip(vae, frames[1], spoken(frames))).any()
    assert (one != round_trip(vae, frames[0], spoken(255 - frames))).any()


def test_a_stream_in_parts_is_the_stream_in_one_piece() -> None:
    torch.manual_seed(0)
    vae = EmbeddedVAE(sizes.VAE).eval()
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    part = spoken(frames)
    cut = [replace(part, frames=part.frames[here], motion=part.motion[here]) for here in (slice(4), slice(4, None))]
    whole = round_trip(vae, frames[0], part).astype(int)
    parts = np.concatenate(list(round_trips(vae, frames[0], cut)))
    assert np.abs(whole - parts).max() <= 1
