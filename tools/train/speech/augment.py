"""Makes clean spectra sound like the world: other levels, microphones, rooms, voices and noises, all in the mel domain.

Works on batches of power spectra on any device; shape suffixes as in pipeline/models/audio_frontend.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.audio.mel import NUM_MELS, POWER_FLOOR

__all__ = ["augment", "augment_mel", "log_of_power", "power_of_log"]

_GAIN_DB = 12.0
_DB = math.log(10.0) / 10.0
# Bands outside a telephone's 300 to 3400 Hz, on the mel scale from 50 to 7600 Hz.
_TELEPHONE_BANDS = (9, 56)
_REVERB_COLUMNS = 40


def power_of_log(mel_BTM: Tensor) -> Tensor:
    """Undo the logarithm and the floor of log-mel; same shape."""
    return (mel_BTM.exp() - POWER_FLOOR).clamp_min(0.0)


def log_of_power(power_BTM: Tensor) -> Tensor:
    """Take the logarithm above the floor; same shape."""
    return (power_BTM + POWER_FLOOR).log()


def augment_mel(mel_BTM: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Vary a batch of log-mel spectra, each clip in its own way, without mixing in other sounds.

    Args:
        mel_BTM: Log-mel of speech at the usual level.
        generator: Source of chance, on the same device; without it, PyTorch's own.

    Returns:
        Log-mel of the same shape.
    """
    return log_of_power(augment(power_of_log(mel_BTM), None, generator))


def augment(power_BTM: Tensor, other_BTM: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Vary a batch, each clip in its own way.

    Args:
        power_BTM: Power spectra of speech at the usual level.
        other_BTM: Spectra of other sounds, of the same shape, some of which are mixed in.
        generator: Source of chance, on the same device; without it, PyTorch's own.

    Returns:
        Power spectra of the same shape.
    """
    power_BTM = _shift_bands(power_BTM, generator)
    power_BTM = _reverberate(power_BTM, generator)
    power_BTM = power_BTM * _curve(power_BTM, 4.0, generator)
    if other_BTM is not None:
        is_mixed = _chance(power_BTM, 0.2, generator)
        power_BTM = power_BTM + other_BTM * is_mixed * _from_db(power_BTM, -20.0, 3.0, generator)
    power_BTM = power_BTM + _noise(power_BTM, generator)
    power_BTM = _telephone(_drop_bands(power_BTM, generator), generator)
    return power_BTM * _from_db(power_BTM, -_GAIN_DB, _GAIN_DB, generator)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    drawn = torch.rand(like.shape[0], 1, 1, generator=generator, device=like.device)
    return low + (high - low) * drawn


def _from_db(like: Tensor, low_db: float, high_db: float, generator: torch.Generator | None) -> Tensor:
    return (_DB * _uniform(like, low_db, high_db, generator)).exp()


def _chance(like: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    return (_uniform(like, 0.0, 1.0, generator) < share).float()


def _curve(like: Tensor, spread_db: float, generator: torch.Generator | None) -> Tensor:
    """Draw a smooth random colouring over the bands, (B, 1, M)."""
    place = torch.linspace(0.0, math.pi, NUM_MELS, device=like.device)
    waves = torch.stack([torch.cos(k * place) / k**0.5 for k in range(1, 6)])
    heights = torch.randn(like.shape[0], 1, len(waves), generator=generator, device=like.device)
    return (_DB * spread_db * heights @ waves).exp()


def _shift_bands(power_BTM: Tensor, generator: torch.Generator | None) -> Tensor:
    """Stretch the bands a little, as another length of throat would."""
    bands = torch.arange(NUM_MELS, device=power_BTM.device, dtype=torch.float32)
    stretch = _uniform(power_BTM, 0.9, 1.1, generator)
    place = (bands * stretch + _uniform(power_BTM, -2.0, 2.0, generator)).clamp(0, NUM_MELS - 1)
    lower = place.floor().long().clamp_max(NUM_MELS - 2).expand(power_BTM.shape)
    share = (place - place.floor()).expand(power_BTM.shape)
    return power_BTM.gather(2, lower) * (1 - share) + power_BTM.gather(2, lower + 1) * share


def _reverberate(power_BTM: Tensor, generator: torch.Generator | None) -> Tensor:
    """Add decaying echoes of the past, in four in ten clips."""
    batch, columns, _ = power_BTM.shape
    decay = _uniform(power_BTM, 0.05, 0.2, generator)
    lag = torch.arange(_REVERB_COLUMNS, device=power_BTM.device, dtype=torch.float32).view(1, 1, -1)
    tail = (-lag / (decay * 100)).exp() * _from_db(power_BTM, -24.0, -9.0, generator)
    tail = tail * _chance(power_BTM, 0.4, generator)
    tail[..., 0] = 1.0
    padded_MBT = torch.nn.functional.pad(power_BTM.permute(2, 0, 1), (_REVERB_COLUMNS - 1, 0))
    echoed_MBT = torch.nn.functional.conv1d(padded_MBT, tail.flip(-1), groups=batch)
    return echoed_MBT[..., :columns].permute(1, 2, 0)


def _noise(power_BTM: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw steady coloured noise, 5 to 50 dB below the usual level of speech, in seven in ten clips."""
    shape = _curve(power_BTM, 7.0, generator) * _chance(power_BTM, 0.7, generator)
    grain = torch.rand(power_BTM.shape, generator=generator, device=power_BTM.device).clamp_min(1e-4).log().neg()
    return 0.0064 * _from_db(power_BTM, -50.0, -5.0, generator) * shape * (0.4 + 0.6 * grain)


def _drop_bands(power_BTM: Tensor, generator: torch.Generator | None) -> Tensor:
    """Take out up to a tenth of the bands, in four in ten clips."""
    band = torch.arange(NUM_MELS, device=power_BTM.device)
    first = _uniform(power_BTM, 0.0, NUM_MELS, generator)
    count = _uniform(power_BTM, 1.0, NUM_MELS / 10, generator) * _chance(power_BTM, 0.4, generator)
    return power_BTM * (1 - 0.999 * ((band >= first) & (band < first + count)).float())


def _telephone(power_BTM: Tensor, generator: torch.Generator | None) -> Tensor:
    """Cut the lowest and highest bands of one clip in seven."""
    band = torch.arange(NUM_MELS, device=power_BTM.device)
    is_outside = ((band < _TELEPHONE_BANDS[0]) | (band > _TELEPHONE_BANDS[1])).float()
    loss = is_outside * _chance(power_BTM, 0.15, generator)
    return power_BTM * (1 - 0.9999 * loss)
