"""Several speakers in one movie: their sounds, their parts of the portrait, and the one sound that is heard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.geometry import SAMPLE_RATE_HZ
from pipeline.media import decode_audio
from pipeline.portrait import PortraitSource
from pipeline.speakers import Masks, draw_masks, parse_region

__all__ = ["MixedSound", "Voices", "load_voices"]

_CHUNK_SAMPLES = SAMPLE_RATE_HZ // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Voices:
    """What each of several speakers says, and where."""

    sounds_VN: NDArray[np.int16]
    """16 kHz mono, as long as the shortest."""
    masks_VHW: Masks
    """In pixels of the portrait."""


def load_voices(paths: Sequence[Path], regions: Sequence[str], source: PortraitSource) -> Voices:
    """Decode all sounds and draw all masks.

    Args:
        paths: A sound per speaker.
        regions: A box or the path of a mask per speaker, in the same order.
        source: The portrait.

    Returns:
        The voices.

    Raises:
        ConfigError: Not as many regions as sounds, or regions that cannot be.
        MediaError: A file cannot be used.
    """
    if len(paths) != len(regions):
        raise ConfigError("number of --speaker", len(regions), f"there are {len(paths)} sounds, and each needs one")
    masks_VHW = draw_masks(
        [parse_region(region) for region in regions], height_px=source.height_px, width_px=source.width_px
    )
    sounds = [np.concatenate(list(decode_audio(path))) for path in paths]
    shortest = min(map(len, sounds))
    return Voices(sounds_VN=np.stack([sound[:shortest] for sound in sounds]), masks_VHW=masks_VHW)


class MixedSound:
    """All voices as one sound, in the place of a file: their mean, as the published code mixes them (amix of FFmpeg).

    Args:
        voices: The voices.
    """

    rate_hz = SAMPLE_RATE_HZ
    num_channels = 1

    def __init__(self, voices: Voices) -> None:
        self._mixed_N = voices.sounds_VN.mean(0).round().astype(np.int16)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self._mixed_N) / SAMPLE_RATE_HZ

    def frames(self) -> Iterator[AudioFrame]:
        """Give the sound in chunks of half a second."""
        for start in range(0, len(self._mixed_N), _CHUNK_SAMPLES):
            frame = AudioFrame.from_ndarray(
                self._mixed_N[None, start : start + _CHUNK_SAMPLES], format="s16", layout="mono"
            )
            frame.sample_rate = SAMPLE_RATE_HZ
            yield frame

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
