"""Speakers: endless or finite streams of speech with phone times, all at 16 kHz.

| source | what it is | licence |
|---|---|---|
| espeak | formant synthesis, 65 voice variants and several accents | the program is GPL-3, its sound is free |
| flite | four synthetic voices made from recordings | BSD-like |
| hibari | one natural female voice, a small neural network | Apache-2.0 |
| russian | 99 minutes of a real speaker (Debian festvox-ru), labelled by its makers | MIT-like |
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import MediaError
from pipeline.geometry import SAMPLE_RATE_HZ
from tools.train.speech.alignment import Aligner
from tools.train.speech.espeak import ACCENTS, VARIANTS, Espeak
from tools.train.speech.text import sentence
from tools.train.speech.visemes import RUSSIAN_VISEMES, Phone, viseme_of_arpabet

__all__ = [
    "HELD_OUT_ESPEAK_VARIANTS",
    "RUSSIAN_FOLDER",
    "SOURCES",
    "Utterance",
    "espeak_speech",
    "flite_speech",
    "hibari_speech",
    "russian_speech",
]

FloatArray = NDArray[np.float32]

HELD_OUT_ESPEAK_VARIANTS = ("f4", "m6", "Alicia", "Denis", "klatt3")
"""Voices that only validation hears."""
RUSSIAN_FOLDER = Path("/usr/share/festival/voices/russian/msu_ru_nsh_clunits")
_FLITE_VOICES = ("slt", "awb", "rms", "kal16")
_FLITE_TIMEOUT_S = 30.0
# Of the sources whose voices are few, every so many-th sentence is held out.
_HELD_OUT_EVERY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One spoken sentence."""

    sound: FloatArray
    """Samples in about [-1, 1] at 16 kHz, (num_samples,)."""
    phones: list[Phone]
    """What is said when, in order of time."""
    voice: str
    """Name of the voice, unique among all sources."""
    is_held_out: bool
    """Whether it is kept from training."""


def _to_16_khz(sound: FloatArray, rate_hz: float) -> FloatArray:
    if rate_hz == SAMPLE_RATE_HZ:
        return sound.astype(np.float32)
    result: FloatArray = soxr.resample(sound.astype(np.float32), rate_hz, SAMPLE_RATE_HZ)
    return result


def espeak_speech(rng: np.random.Generator) -> Iterator[Utterance]:
    """Speak random sentences by random voices of espeak-ng, for ever."""
    espeak = Espeak()
    while True:
        variant = VARIANTS[rng.integers(len(VARIANTS))]
        voice = f"{ACCENTS[rng.integers(len(ACCENTS))]}+{variant}"
        sound, phones = espeak.synthesise(
            sentence(rng),
            voice=voice,
            rate_wpm=int(rng.integers(120, 205)),
            pitch=int(rng.integers(20, 80)),
            pitch_range=int(rng.integers(30, 80)),
        )
        yield Utterance(
            sound=_to_16_khz(sound, espeak.sample_rate_hz),
            phones=phones,
            voice=f"espeak/{voice}",
            is_held_out=variant in HELD_OUT_ESPEAK_VARIANTS,
        )


def flite_speech(rng: np.random.Generator) -> Iterator[Utterance]:
    """Speak random sentences by the voices of flite, for ever."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        count = 0
        while True:
            voice = _FLITE_VOICES[rng.integers(len(_FLITE_VOICES))]
            stretch = f"duration_stretch={rng.uniform(0.85, 1.2):.2f}"
            command = ["flite", "-voice", voice, "--setf", stretch, "-psdur", "-t", sentence(rng), "-o", str(path)]
            listing = subprocess.run(
                command, capture_output=True, text=True, timeout=_FLITE_TIMEOUT_S, check=True
            ).stdout
            sound, rate_hz = soundfile.read(path, dtype="float32")
            phones = []
            start_s = 0.0
            for item in listing.split():
                name, end = item.rsplit(":", 1)
                phones.append(Phone(start_s, float(end), viseme_of_arpabet(name)))
                start_s = float(end)
            yield Utterance(
                sound=_to_16_khz(sound, rate_hz),
                phones=phones,
                voice=f"flite/{voice}",
                is_held_out=count % _HELD_OUT_EVERY == 0,
            )
            count += 1


def hibari_speech(rng: np.random.Generator) -> Iterator[Utterance]:
    """Speak random sentences by hibari-tts, for ever; phone times by forced alignment."""
    import hibari

    rate_hz = 24_000
    synthesiser = hibari.Hibari()
    aligner = Aligner()
    count = 0
    while True:
        text = sentence(rng)
        sound = _to_16_khz(np.asarray(synthesiser(text), np.float32), rate_hz)
        try:
            phones = aligner.align((np.clip(sound, -1.0, 1.0) * 32767).astype(np.int16), text)
        except MediaError:
            # A few sentences hold a word that the aligner cannot place: another one serves as well.
            continue
        yield Utterance(sound=sound, phones=phones, voice="hibari/default", is_held_out=count % _HELD_OUT_EVERY == 0)
        count += 1


def russian_speech(rng: np.random.Generator) -> Iterator[Utterance]:
    """Read the recordings of the Russian speaker once, in random order.

    Args:
        rng: Source of chance.

    Yields:
        Utterances.

    Raises:
        MediaError: The Debian package festvox-ru is not installed.
    """
    labels = sorted((RUSSIAN_FOLDER / "lab").glob("*.lab"))
    if not labels:
        raise MediaError(
            "Russian speech", f"absent from {RUSSIAN_FOLDER}", "the Debian package festvox-ru has to be installed"
        )
    for index in rng.permutation(len(labels)):
        path = labels[index]
        sound, rate_hz = soundfile.read(RUSSIAN_FOLDER / "wav" / f"{path.stem}.wav", dtype="float32")
        phones = []
        start_s = 0.0
        for line in path.read_text().splitlines():
            fields = line.split()
            if len(fields) == 3:
                phones.append(Phone(start_s, float(fields[0]), RUSSIAN_VISEMES.get(fields[2], "sil")))
                start_s = float(fields[0])
        yield Utterance(
            sound=_to_16_khz(sound, rate_hz),
            phones=phones,
            voice="russian/nsh",
            is_held_out=index % _HELD_OUT_EVERY == 0,
        )


SOURCES = {"espeak": espeak_speech, "flite": flite_speech, "hibari": hibari_speech, "russian": russian_speech}
