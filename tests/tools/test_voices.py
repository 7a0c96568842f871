"""Several speakers: sounds cut to one length, mixed to their mean, each with its part of the portrait."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, MediaError
from pipeline.media import EngineResampler
from pipeline.portrait import PortraitSource
from tools.voices import MixedSound, Voices, load_voices

pytestmark = pytest.mark.unit

SOURCE = PortraitSource(Image.new("RGB", (200, 100)), width_px=200, height_px=100)
REGIONS = ("0,0,0.5,1", "100,0,200,100")


def write(path: Path, num_samples: int, value: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.full(num_samples, value, "<i2").tobytes())
    return path


def test_voices_are_as_long_as_the_shortest_and_keep_their_places(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.wav", 20_000, 100), write(tmp_path / "b.wav", 12_000, 200)]
    voices = load_voices(paths, REGIONS, SOURCE)
    assert voices.sounds_VN.shape == (2, 12_000)
    assert voices.sounds_VN.mean(1).round().tolist() == [100, 200]
    assert voices.masks_VHW.shape == (2, 100, 200)
    assert voices.masks_VHW[0, :, :100].all()
    assert not (voices.masks_VHW[0] & voices.masks_VHW[1]).any()


def test_the_mix_is_the_mean() -> None:
    sounds = np.array([[100] * 9000, [32_000] * 9000, [1001] * 9000], np.int16)
    sound = MixedSound(Voices(sounds_VN=sounds, masks_VHW=np.ones((3, 1, 1), np.bool_)))
    assert sound.duration_s == 9000 / 16_000
    resampler = EngineResampler()
    with sound:
        heard = np.concatenate([resampler.push(frame) for frame in [*sound.frames(), None]])
    assert np.array_equal(heard, np.full(9000, 11_034))


def test_each_sound_needs_its_region(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 16_000, 1)
    with pytest.raises(ConfigError, match="number of --speaker is 1, but there are 2 sounds, and each needs one"):
        load_voices([path, path], REGIONS[:1], SOURCE)
    with pytest.raises(ConfigError, match="overlap of speakers 1 and 2"):
        load_voices([path, path], [REGIONS[0]] * 2, SOURCE)
    with pytest.raises(MediaError, match="nowhere.wav"):
        load_voices([path, tmp_path / "nowhere.wav"], REGIONS, SOURCE)
