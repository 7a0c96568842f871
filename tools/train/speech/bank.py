"""The speech bank: hours of log-mel spectra with mouth labels in one small file, for training without any sound.

A file is a zip of .npy arrays, per source: `mel` (differences in time of quantised log-mel, so that it packs well),
`visemes`, `loudness`, `classes` and `utterances`. Needs numpy only, so that a training machine can read it.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.mel import HOP_SAMPLES, NUM_MELS, POWER_FLOOR
from pipeline.errors import ConfigError, WeightsError
from pipeline.geometry import FPS, SAMPLES_PER_FRAME
from tools.train.speech.visemes import NUM_VISEMES

__all__ = [
    "COLUMNS_PER_FRAME",
    "BankSource",
    "SpeechBank",
    "SpeechClip",
    "dequantise_mel",
    "quantise_mel",
]

FloatArray = NDArray[np.float32]

COLUMNS_PER_FRAME = SAMPLES_PER_FRAME // HOP_SAMPLES
_MEL_LOWEST = float(np.log(POWER_FLOOR))
_MEL_STEP = 0.2
_LOUDNESS_STEP = 3.0 / 255.0
_FORMAT = 1


def quantise_mel(mel: FloatArray) -> NDArray[np.uint8]:
    """Round log-mel to steps of 0.2 (0.9 dB); same shape."""
    codes: NDArray[np.uint8] = np.clip(np.rint((mel - _MEL_LOWEST) / _MEL_STEP), 0, 255).astype(np.uint8)
    return codes


def dequantise_mel(codes: NDArray[np.uint8]) -> FloatArray:
    """Undo `quantise_mel`, to half a step."""
    result: FloatArray = codes.astype(np.float32) * np.float32(_MEL_STEP) + np.float32(_MEL_LOWEST)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechClip:
    """A stretch of speech with its labels."""

    mel: FloatArray
    """Log-mel at 100 Hz, (4 * num_frames, NUM_MELS)."""
    visemes: FloatArray
    """Weights that sum to 1, (num_frames, NUM_VISEMES)."""
    loudness: FloatArray
    """Level of each frame, 1 at the usual speech level, (num_frames,)."""
    classes: NDArray[np.uint8]
    """Viseme that sounds at the middle of each frame, (num_frames,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSource:
    """All speech of one source, end to end. Utterances are separated by pauses that belong to them."""

    mel_codes: NDArray[np.uint8]
    """`quantise_mel` of the spectra, (4 * num_frames, NUM_MELS)."""
    visemes: NDArray[np.uint8]
    """Viseme weights times 255, (num_frames, NUM_VISEMES)."""
    loudness: NDArray[np.uint8]
    """Level of each frame in steps of 3/255, (num_frames,)."""
    classes: NDArray[np.uint8]
    """Viseme that sounds at the middle of each frame, (num_frames,)."""
    utterances: NDArray[np.int32]
    """First frame, number of frames, index into `voices`, held out (0 or 1), (num_utterances, 4)."""
    voices: tuple[str, ...]
    """Names of the voices."""

    @property
    def num_frames(self) -> int:
        """Length in video frames."""
        return int(self.visemes.shape[0])

    def clip(self, first_frame: int, num_frames: int) -> SpeechClip:
        """Cut out a stretch.

        Args:
            first_frame: Where it begins, in video frames.
            num_frames: Its length; it has to lie inside the source.

        Returns:
            Spectra and labels.

        Raises:
            IndexError: The stretch is not inside the source.
        """
        if first_frame < 0 or first_frame + num_frames > self.num_frames:
            raise IndexError(f"frames {first_frame}..{first_frame + num_frames} of {self.num_frames}")
        frames = slice(first_frame, first_frame + num_frames)
        columns = slice(first_frame * COLUMNS_PER_FRAME, (first_frame + num_frames) * COLUMNS_PER_FRAME)
        visemes = self.visemes[frames].astype(np.float32)
        return SpeechClip(
            mel=dequantise_mel(self.mel_codes[columns]),
            visemes=visemes / visemes.sum(axis=1, keepdims=True),
            loudness=self.loudness[frames].astype(np.float32) * np.float32(_LOUDNESS_STEP),
            classes=self.classes[frames],
        )

    def runs(self, *, held_out: bool) -> list[tuple[int, int]]:
        """List the longest stretches of neighbouring utterances that all are, or all are not, held out.

        Args:
            held_out: Which of the two.

        Returns:
            First frame and number of frames of each stretch.
        """
        runs: list[tuple[int, int]] = []
        for first, count, _, flag in self.utterances.tolist():
            if bool(flag) != held_out:
                continue
            if runs and sum(runs[-1]) == first:
                runs[-1] = (runs[-1][0], runs[-1][1] + count)
            else:
                runs.append((first, count))
        return runs


@dataclass(frozen=True, slots=True)
class SpeechBank:
    """Speech of several sources."""

    sources: dict[str, BankSource]
    """By name."""

    def draw(self, rng: np.random.Generator, num_frames: int, *, held_out: bool = False) -> tuple[int, int]:
        """Choose a stretch at random, every frame of all sources with about the same chance.

        Args:
            rng: Source of chance.
            num_frames: Its length; it lies inside a run of utterances that all are, or all are not, held out.
            held_out: Which of the two.

        Returns:
            Index of the source (in the order of `sources`) and first frame.

        Raises:
            ConfigError: No run is that long.
        """
        runs = [
            (index, first, count - num_frames + 1)
            for index, source in enumerate(self.sources.values())
            for first, count in source.runs(held_out=held_out)
            if count >= num_frames
        ]
        if not runs:
            raise ConfigError("num_frames", num_frames, "no run of utterances in the bank is that long")
        places = np.array([count for _, _, count in runs])
        index, first, count = runs[rng.choice(len(runs), p=places / places.sum())]
        return index, first + int(rng.integers(count))

    def clip(self, source: int, first_frame: int, num_frames: int) -> SpeechClip:
        """Cut out a stretch of the source with this index; see `BankSource.clip`."""
        return list(self.sources.values())[source].clip(first_frame, num_frames)

    def curves(self, source: int, first_frame: int, num_frames: int) -> tuple[FloatArray, FloatArray]:
        """Give the labels of a stretch that animation needs.

        Args:
            source: Index of the source.
            first_frame: Where it begins, in video frames.
            num_frames: Its length.

        Returns:
            Viseme weights that sum to 1, (num_frames, NUM_VISEMES), and loudness, (num_frames,).

        Raises:
            IndexError: There is no such source, or the stretch is not inside it.
        """
        stretch = self.clip(source, first_frame, num_frames)
        return stretch.visemes, stretch.loudness

    def spectrum(self, source: int, first_column: int, num_columns: int) -> NDArray[np.uint8]:
        """Give quantised log-mel, with silence where the stretch lies outside the source.

        Args:
            source: Index of the source.
            first_column: Where it begins, in columns of 10 ms; may be negative.
            num_columns: Its length.

        Returns:
            Codes, (num_columns, NUM_MELS).
        """
        codes = list(self.sources.values())[source].mel_codes
        result = np.zeros((num_columns, NUM_MELS), np.uint8)
        begin, end = max(0, first_column), min(len(codes), first_column + num_columns)
        if begin < end:
            result[begin - first_column : end - first_column] = codes[begin:end]
        return result

    @property
    def minutes(self) -> float:
        """Length of all sources together."""
        return sum(source.num_frames for source in self.sources.values()) / FPS / 60

    def save(self, path: Path) -> None:
        """Write the file; it packs to about 230 kB per minute."""
        with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_LZMA) as archive:
            header = {"format": _FORMAT, "voices": {name: source.voices for name, source in self.sources.items()}}
            archive.writestr("bank.json", json.dumps(header))
            for name, source in self.sources.items():
                # Stored band by band: along one band the differences in time are small and alike.
                difference = np.diff(source.mel_codes, axis=0, prepend=np.zeros((1, NUM_MELS), np.uint8))
                _write(archive, f"{name}/mel.npy", np.ascontiguousarray(difference.T))
                _write(archive, f"{name}/visemes.npy", np.ascontiguousarray(source.visemes.T))
                _write(archive, f"{name}/loudness.npy", source.loudness)
                _write(archive, f"{name}/classes.npy", source.classes)
                _write(archive, f"{name}/utterances.npy", source.utterances)

    @classmethod
    def load(cls, path: Path) -> SpeechBank:
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            The bank, all in memory (480 kB per minute).

        Raises:
            WeightsError: The file is missing, damaged, or of another format.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                header = json.loads(archive.read("bank.json"))
                if header["format"] != _FORMAT:
                    raise WeightsError(str(path), f"format {header['format']} is not {_FORMAT}")
                sources = {name: _read_source(archive, name, voices) for name, voices in header["voices"].items()}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as exc:
            raise WeightsError(str(path), f"not a readable speech bank ({exc})") from exc
        return cls(sources)


def _write(archive: zipfile.ZipFile, name: str, array: NDArray[np.generic]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    archive.writestr(name, buffer.getvalue())


def _read_source(archive: zipfile.ZipFile, name: str, voices: list[str]) -> BankSource:
    def read(part: str) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] = np.load(io.BytesIO(archive.read(f"{name}/{part}.npy")))
        return array

    mel_codes = np.cumsum(read("mel"), axis=1, dtype=np.uint8)
    visemes = np.ascontiguousarray(read("visemes").T)
    if mel_codes.shape != (NUM_MELS, COLUMNS_PER_FRAME * len(visemes)) or visemes.shape[1] != NUM_VISEMES:
        raise ValueError(f"source {name}: mel {mel_codes.shape} does not fit visemes {visemes.shape}")
    return BankSource(
        mel_codes=np.ascontiguousarray(mel_codes.T),
        visemes=visemes,
        loudness=read("loudness"),
        classes=read("classes"),
        utterances=read("utterances").astype(np.int32),
        voices=tuple(voices),
    )
