"""Make the speech banks: `python -m tools.train.speech.build_bank --out .train`.

Writes `bank.npz`, the speech that the training videos are rendered to, `bank_more.npz`, further speech for the audio
front end alone, and `librivox.npz`, held-out real speech. Needs the system packages espeak-ng, flite, festvox-ru and
pocketsphinx-testdata and the `train` extra.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline.audio.level import LevelTracker
from pipeline.audio.mel import ANALYSIS_LEAD_SAMPLES, frame_power, log_mel, mel_power, samples_to_float
from pipeline.geometry import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from tools.train.speech.bank import BankSource, SpeechBank, quantise_mel
from tools.train.speech.librivox import load_librivox
from tools.train.speech.sounds import background, non_speech
from tools.train.speech.sources import SOURCES, Utterance
from tools.train.speech.visemes import NUM_VISEMES, Phone, frame_classes, viseme_curves

__all__ = ["BankPart", "Job", "label_utterance", "main", "make_quiet", "make_source"]

FloatArray = NDArray[np.float32]

SPEECH_RMS = 0.08
"""Level to which speech is brought: the root mean square of its loud part."""
_SPEED_RANGE = (0.86, 1.15)
_LEVEL_SPREAD_DB = 3.0
_LONG_PAUSE_SHARE = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One source of one bank."""

    bank: str
    """File name of the bank, without ending."""
    source: str
    """A key of `SOURCES`, or "quiet" for sounds that are no speech."""
    minutes: float
    """Length to make; a finite source may end earlier."""
    seed: int
    """Seed of all chance in it."""
    skip: int = 0
    """How many utterances of the source to leave out at its beginning (they went to the other bank)."""


_RUSSIAN_UTTERANCES_IN_BANK = 250
JOBS = (
    Job(bank="bank", source="hibari", minutes=24, seed=11),
    Job(bank="bank", source="espeak", minutes=26, seed=12),
    Job(bank="bank", source="flite", minutes=12, seed=13),
    Job(bank="bank", source="russian", minutes=40, seed=14),
    Job(bank="bank", source="quiet", minutes=5, seed=15),
    Job(bank="bank_more", source="hibari", minutes=36, seed=21),
    Job(bank="bank_more", source="espeak", minutes=30, seed=22),
    Job(bank="bank_more", source="flite", minutes=16, seed=23),
    Job(bank="bank_more", source="russian", minutes=70, seed=14, skip=_RUSSIAN_UTTERANCES_IN_BANK),
    Job(bank="bank_more", source="quiet", minutes=8, seed=25),
)


def _loud_rms(sound: FloatArray) -> float:
    """Measure the level of the frames within 25 dB of the loudest one."""
    whole = sound[: len(sound) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
    power = np.mean(whole**2, axis=1)
    return float(np.sqrt(np.mean(power[power >= power.max() * 10**-2.5]) + 1e-9))


def _loudness(sound: FloatArray) -> FloatArray:
    rms = np.sqrt(np.mean(sound.reshape(-1, SAMPLES_PER_FRAME) ** 2, axis=1)) / SPEECH_RMS
    result: FloatArray = np.convolve(rms, (0.25, 0.5, 0.25), "same").astype(np.float32)
    return result


def _spectrum_codes(sound: FloatArray) -> NDArray[np.uint8]:
    return quantise_mel(log_mel(mel_power(np.pad(sound, ANALYSIS_LEAD_SAMPLES))))


@dataclass(frozen=True, slots=True)
class BankPart:
    """Spectra and labels of one utterance, as `BankSource` holds them."""

    mel_codes: NDArray[np.uint8]
    visemes: NDArray[np.uint8]
    loudness: NDArray[np.uint8]
    classes: NDArray[np.uint8]


def _part(sound: FloatArray, weights: FloatArray, classes: NDArray[np.uint8]) -> BankPart:
    return BankPart(
        mel_codes=_spectrum_codes(sound),
        visemes=np.rint(weights * 255).astype(np.uint8),
        loudness=np.clip(np.rint(_loudness(sound) * 85), 0, 255).astype(np.uint8),
        classes=classes,
    )


def label_utterance(utterance: Utterance, rng: np.random.Generator) -> BankPart:
    """Vary speed, pitch and level of an utterance, put pauses round it, and label its frames.

    Args:
        utterance: What was said.
        rng: Source of chance.

    Returns:
        Spectra and labels.
    """
    speed = float(rng.uniform(*_SPEED_RANGE))
    sound = soxr.resample(utterance.sound, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ)
    level = SPEECH_RMS * 10 ** (rng.uniform(-_LEVEL_SPREAD_DB, _LEVEL_SPREAD_DB) / 20)
    sound = sound * np.float32(level / _loud_rms(sound))
    pause_s = rng.uniform(0.6, 2.5) if rng.random() < _LONG_PAUSE_SHARE else rng.uniform(0.05, 0.4)
    before = int(pause_s * SAMPLE_RATE_HZ)
    num_frames = -(-(before + len(sound) + int(0.1 * SAMPLE_RATE_HZ)) // SAMPLES_PER_FRAME)
    sound = np.pad(sound, (before, num_frames * SAMPLES_PER_FRAME - before - len(sound)))
    sound = (sound + background(rng, len(sound))).astype(np.float32)
    phones = [
        Phone(
            phone.start_s / speed + before / SAMPLE_RATE_HZ, phone.end_s / speed + before / SAMPLE_RATE_HZ, phone.viseme
        )
        for phone in utterance.phones
    ]
    return _part(sound, viseme_curves(phones, num_frames), frame_classes(phones, num_frames))


def _join(parts: list[BankPart], voices: list[str], held_out: list[bool]) -> BankSource:
    names = tuple(dict.fromkeys(voices))
    counts = np.array([len(part.classes) for part in parts])
    table = np.stack(
        [np.cumsum(counts) - counts, counts, [names.index(voice) for voice in voices], held_out], axis=1
    ).astype(np.int32)
    return BankSource(
        mel_codes=np.concatenate([part.mel_codes for part in parts]),
        visemes=np.concatenate([part.visemes for part in parts]),
        loudness=np.concatenate([part.loudness for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
        utterances=table,
        voices=names,
    )


def make_quiet(job: Job) -> BankSource:
    """Make sounds that are no speech, with the mouth at rest; every eighth is held out."""
    rng = np.random.default_rng(job.seed)
    parts: list[BankPart] = []
    while sum(len(part.classes) for part in parts) < job.minutes * 60 * FPS:
        num_frames = int(rng.integers(50, 150))
        weights = np.zeros((num_frames, NUM_VISEMES), np.float32)
        weights[:, 0] = 1.0
        sound = non_speech(rng, num_frames * SAMPLES_PER_FRAME)
        parts.append(_part(sound, weights, np.zeros(num_frames, np.uint8)))
    return _join(parts, ["quiet"] * len(parts), [index % 8 == 0 for index in range(len(parts))])


def make_librivox() -> SpeechBank:
    """Take in the held-out real speech as a live stream would, levelled by what was heard so far."""
    parts = []
    for clip in load_librivox():
        sound = np.pad(samples_to_float(clip.pcm), ANALYSIS_LEAD_SAMPLES)
        gains = LevelTracker().gains(frame_power(sound))
        parts.append(
            BankPart(
                mel_codes=quantise_mel(log_mel(mel_power(sound) * gains[:, None])),
                visemes=np.rint(clip.visemes * 255).astype(np.uint8),
                loudness=np.clip(np.rint(clip.loudness * 85), 0, 255).astype(np.uint8),
                classes=frame_classes(clip.phones, len(clip.visemes)),
            )
        )
    return SpeechBank({"librivox": _join(parts, ["librivox/austen"] * len(parts), [True] * len(parts))})


def make_source(job: Job) -> tuple[Job, BankSource]:
    """Do one job.

    Args:
        job: What to make.

    Returns:
        The job and its result.
    """
    if job.source == "quiet":
        return job, make_quiet(job)
    rng = np.random.default_rng(job.seed)
    # The speech has its own chance, so that a finite source comes in the same order whatever is done with it.
    speech = itertools.islice(SOURCES[job.source](np.random.default_rng(job.seed)), job.skip, None)
    parts: list[BankPart] = []
    voices: list[str] = []
    held_out: list[bool] = []
    num_frames = 0
    is_russian_bank = job.source == "russian" and job.skip == 0
    for count, utterance in enumerate(speech):
        if num_frames >= job.minutes * 60 * FPS or (is_russian_bank and count == _RUSSIAN_UTTERANCES_IN_BANK):
            break
        parts.append(label_utterance(utterance, rng))
        voices.append(utterance.voice)
        held_out.append(utterance.is_held_out)
        num_frames += len(parts[-1].classes)
    return job, _join(parts, voices, held_out)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Make the speech banks.")
    parser.add_argument("--out", type=Path, default=Path(".train"), help="folder to write to")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual length, for trials")
    parser.add_argument("--processes", type=int, default=2, help="how many jobs run at once")
    parser.add_argument("--banks", nargs="+", default=["bank", "bank_more", "librivox"], help="which to make")
    options = parser.parse_args(arguments)
    jobs = [
        Job(bank=job.bank, source=job.source, minutes=job.minutes * options.scale, seed=job.seed, skip=job.skip)
        for job in JOBS
        if job.bank in options.banks
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    made: dict[str, dict[str, BankSource]] = {}
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        for job, source in pool.imap_unordered(make_source, jobs):
            print(f"{job.bank}/{job.source}: {source.num_frames / FPS / 60:.1f} min", flush=True)
            made.setdefault(job.bank, {})[job.source] = source
    banks = {name: SpeechBank(dict(sorted(sources.items()))) for name, sources in made.items()}
    if "librivox" in options.banks:
        banks["librivox"] = make_librivox()
    for name, bank in banks.items():
        path = options.out / f"{name}.npz"
        bank.save(path)
        print(f"{path}: {bank.minutes:.1f} min, {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
