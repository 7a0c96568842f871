"""Held-out real English speech: five clips of a LibriVox reader (public domain), with phone times.

The clips come with the Debian package pocketsphinx-testdata; nothing in training has heard them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.errors import MediaError
from pipeline.geometry import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from tools.train.speech.alignment import Aligner
from tools.train.speech.visemes import Phone, closure_spans, viseme_curves

__all__ = ["LIBRIVOX_FOLDER", "HeldOutClip", "load_librivox"]

FloatArray = NDArray[np.float32]

LIBRIVOX_FOLDER = Path("/usr/share/pocketsphinx/test/data/librivox")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutClip:
    """One recording with what its mouth should do."""

    name: str
    """Name of the recording."""
    text: str
    """What is said."""
    pcm: NDArray[np.int16]
    """16 kHz mono samples, a whole number of video frames, (640 * num_frames,)."""
    phones: tuple[Phone, ...]
    """What is said when."""
    visemes: FloatArray
    """Weights that sum to 1, (num_frames, NUM_VISEMES)."""
    loudness: FloatArray
    """Level of each frame, 1 at the mean level of the clip's speech, (num_frames,)."""
    closures: tuple[tuple[int, int], ...]
    """First and last frame of every p, b and m."""


def load_librivox(folder: Path = LIBRIVOX_FOLDER) -> list[HeldOutClip]:
    """Read and label the clips.

    Args:
        folder: Where the package put them.

    Returns:
        The five clips, 25 s in all.

    Raises:
        MediaError: They are not there.
    """
    transcription = folder / "transcription"
    if not transcription.is_file():
        rule = "the Debian package pocketsphinx-testdata has to be installed"
        raise MediaError("held-out speech", f"absent from {folder}", rule)
    aligner = Aligner()
    clips = []
    for line in transcription.read_text().splitlines():
        text, name = line.rsplit(" (", 1)
        name = name.rstrip(") ")
        text = text.replace("<s>", "").replace("</s>", "").strip()
        pcm, rate_hz = soundfile.read(folder / f"{name}.wav", dtype="int16")
        if rate_hz != SAMPLE_RATE_HZ:
            raise MediaError(f"held-out speech {name}", f"{rate_hz} Hz", f"it has to be {SAMPLE_RATE_HZ} Hz")
        clips.append(_label(name, text, pcm, aligner))
    return clips


def _label(name: str, text: str, pcm: NDArray[np.int16], aligner: Aligner) -> HeldOutClip:
    phones = aligner.align(pcm, text)
    num_frames = -(-len(pcm) // SAMPLES_PER_FRAME)
    pcm = np.pad(pcm, (0, num_frames * SAMPLES_PER_FRAME - len(pcm)))
    rms = np.sqrt(np.mean((pcm.astype(np.float32) / 32768).reshape(num_frames, -1) ** 2, axis=1))
    speech_rms = np.sqrt(np.mean(rms[rms > rms.max() * 10**-1.25] ** 2))
    return HeldOutClip(
        name=name,
        text=text,
        pcm=pcm,
        phones=tuple(phones),
        visemes=viseme_curves(phones, num_frames),
        loudness=np.convolve(rms / speech_rms, (0.25, 0.5, 0.25), "same").astype(np.float32),
        closures=tuple(closure_spans(phones, num_frames)),
    )
