"""Spectra varied for training: reproducible, bounded, each clip in its own way."""

from __future__ import annotations

import pytest
import torch

from pipeline.audio.mel import NUM_MELS, POWER_FLOOR
from tools.train.speech.augment import augment, augment_mel, log_of_power, power_of_log

pytestmark = pytest.mark.numerics


def _mel(batch: int = 6, columns: int = 60) -> torch.Tensor:
    mel = torch.randn(batch, columns, NUM_MELS, generator=torch.Generator().manual_seed(1)) * 2 - 8
    return mel.clamp_min(-13.8)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_logarithm_and_its_inverse_cancel() -> None:
    mel = _mel()
    torch.testing.assert_close(log_of_power(power_of_log(mel)), mel.clamp_min(float(torch.tensor(POWER_FLOOR).log())))


def test_the_same_seed_gives_the_same_batch_and_another_seed_another() -> None:
    assert torch.equal(augment_mel(_mel(), _generator(3)), augment_mel(_mel(), _generator(3)))
    assert not torch.equal(augment_mel(_mel(), _generator(3)), augment_mel(_mel(), _generator(4)))


def test_equal_clips_of_a_batch_are_varied_differently() -> None:
    varied = augment_mel(_mel(1).expand(4, -1, -1), _generator(0))
    assert all(not torch.allclose(varied[0], varied[i]) for i in range(1, 4))


def test_shape_and_range_survive() -> None:
    varied = augment_mel(_mel(), _generator(0))
    assert varied.shape == _mel().shape
    assert bool(varied.isfinite().all())
    assert float(varied.min()) >= float(torch.tensor(POWER_FLOOR).log()) - 1e-4


def test_speech_stays_recognisable_in_its_outline() -> None:
    mel = _mel(32, 200)
    mel = mel + 3 * torch.sin(torch.arange(200) / 8.0)[None, :, None]
    varied = augment_mel(mel, _generator(0))
    before, after = mel.mean(2), varied.mean(2)
    matches = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(before, after, strict=True)])
    assert float(matches.median()) > 0.7


def test_another_sound_is_mixed_into_some_clips_only() -> None:
    power = power_of_log(_mel(200, 20))
    other = torch.ones_like(power)
    plain, mixed = augment(power, None, _generator(0)), augment(power, other, _generator(0))
    assert plain.shape == mixed.shape
    loud = (augment(torch.zeros_like(power), other, _generator(0)).mean((1, 2)) > 0.02).float().mean()
    assert 0.05 < float(loud) < 0.4
