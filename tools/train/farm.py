"""The render farm: processes that render clips for ever into shared slots, and the pool that training draws from.

A clip is one person: a reference frame (another pose and expression of the same person) and some frames of
speech. Each worker owns a few slots, fills a free one and marks it; the trainer takes filled slots and marks them
free. One byte per slot and one owner per state change, so no lock is needed.
"""

from __future__ import annotations

import multiprocessing as mp
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.motion import MOTION_CHANNELS
from tools.train.clips import NUM_LANDMARKS, ClipMaker
from tools.train.speech.bank import SpeechBank

__all__ = ["SLOTS_PER_WORKER", "ClipPool", "ClipShape", "ClipSource", "Farm"]

SLOTS_PER_WORKER = 10
FREE, FILLED = 0, 1
CLIP_ARRAYS = ("frames", "motion", "visemes", "landmarks", "audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """How large clips are."""

    num_frames: int = 72
    """Frames of speech: a multiple of a block's 12."""
    height_px: int = 384
    width_px: int = 256

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of what a slot holds.

        The reference comes first in `frames` and `landmarks`; `visemes` are 15 weights and the jaw's gain; `audio` is
        the source index and the first frame in the speech bank.
        """
        return {
            "frames": ((self.num_frames + 1, self.height_px, self.width_px, 3), "u1"),
            "motion": ((self.num_frames, len(MOTION_CHANNELS)), "f4"),
            "visemes": ((self.num_frames, 16), "f4"),
            "landmarks": ((self.num_frames + 1, NUM_LANDMARKS, 2), "f4"),
            "audio": ((2,), "i8"),
            "state": ((), "u1"),
        }


def _open(folder: Path, num_slots: int, shape: ClipShape, mode: str) -> dict[str, NDArray[np.generic]]:
    return {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode=mode, dtype=dtype, shape=(num_slots, *part))
        if mode == "w+"
        else np.lib.format.open_memmap(folder / f"{name}.npy", mode=mode)
        for name, (part, dtype) in shape.arrays.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What one render process is told."""

    worker: int
    is_first: bool
    """Whether it ends when the first clips are there."""
    folder: Path
    own: range
    num_slots: int
    bank: Path
    shape: ClipShape
    seed: int
    device: int


def _work(job: _Job) -> None:
    arrays = _open(job.folder, job.num_slots, job.shape, "r+")
    size = (job.shape.width_px, job.shape.height_px)
    maker = ClipMaker(SpeechBank.load(job.bank), size=size, num_frames=job.shape.num_frames, device=job.device)
    count = 0
    ends = [job.folder / "stop", *([job.folder / "first-are-there"] if job.is_first else [])]
    while not any(end.exists() for end in ends):
        free = [slot for slot in job.own if arrays["state"][slot] == FREE]
        if not free:
            time.sleep(0.02)
            continue
        clip = maker.make(np.random.default_rng((job.seed, job.worker, count)))
        for name in CLIP_ARRAYS:
            arrays[name][free[0]] = getattr(clip, name)
        arrays["state"][free[0]] = FILLED
        count += 1


class Farm:
    """Starts and stops the render processes.

    Args:
        folder: Where the slots lie; a memory file system is best. Emptied first.
        bank: The speech bank's file.
        shape: Size of the clips.
        num_workers: Processes.
        num_first_workers: More processes, that end when `dismiss_first` is called.
        rank: Number of this farm among those that feed one training, which render different people.
        seed: Every clip is drawn from (seed, worker, count).
        devices: EGL devices that the workers share out among themselves.
        first_devices: The same for the first workers.
        slots_per_worker: How many clips each process renders ahead.
    """

    def __init__(
        self,
        folder: Path,
        bank: Path,
        shape: ClipShape,
        *,
        num_workers: int,
        num_first_workers: int = 0,
        rank: int = 0,
        seed: int,
        devices: Sequence[int] = (0,),
        first_devices: Sequence[int] = (0,),
        slots_per_worker: int = SLOTS_PER_WORKER,
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        total = num_workers + num_first_workers
        num_slots = total * slots_per_worker
        self.arrays = _open(folder, num_slots, shape, "w+")
        jobs = [
            _Job(
                worker=rank * total + i,
                is_first=i >= num_workers,
                folder=folder,
                own=range(i * slots_per_worker, (i + 1) * slots_per_worker),
                num_slots=num_slots,
                bank=bank,
                shape=shape,
                seed=seed,
                device=devices[i % len(devices)] if i < num_workers else first_devices[i % len(first_devices)],
            )
            for i in range(total)
        ]
        spawn = mp.get_context("spawn")
        self._processes: list[BaseProcess] = [
            spawn.Process(target=_work, args=(job,), name=f"render-{job.worker}", daemon=True) for job in jobs
        ]
        for process in self._processes:
            process.start()

    def filled(self) -> NDArray[np.int64]:
        """Look for slots that hold a clip not yet taken.

        Returns:
            Their indices.

        Raises:
            RuntimeError: A render process has ended.
        """
        dead = [p.name for p in self._processes if p.exitcode not in (None, 0)]
        if dead:
            raise RuntimeError(f"render processes ended: {', '.join(dead)}")
        return np.flatnonzero(self.arrays["state"] == FILLED)

    def free(self, slot: int) -> None:
        """Give a slot back to its worker."""
        self.arrays["state"][slot] = FREE

    def dismiss_first(self) -> None:
        """Let the first workers end after the clip they are at."""
        (self._folder / "first-are-there").touch()

    def close(self) -> None:
        """Stop the processes and remove the slots."""
        (self._folder / "stop").touch()
        for process in self._processes:
            process.join(20)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class ClipSource(Protocol):
    """What a pool takes clips from."""

    arrays: dict[str, NDArray[np.generic]]
    """The slots, see `ClipShape.arrays`."""

    def filled(self) -> NDArray[np.int64]:
        """Look for slots that hold a clip not yet taken."""

    def free(self, slot: int) -> None:
        """Give a slot back."""


@dataclass(slots=True)
class ClipPool:
    """Clips on the training device. The first `num_held_out` are never trained on; when full, random others are
    replaced.

    Tensors are those of `ClipShape.arrays` with the clip as first dimension.
    """

    farm: ClipSource
    frames: Tensor
    motion: Tensor
    visemes: Tensor
    landmarks: Tensor
    audio: Tensor
    num_held_out: int
    size: int = 0
    taken: int = 0
    seed: int = 0

    @classmethod
    def empty(cls, farm: ClipSource, *, capacity: int, num_held_out: int, device: str) -> ClipPool:
        """Allocate a pool.

        Args:
            farm: Where clips come from.
            capacity: Largest number of clips kept, held-out ones included.
            num_held_out: How many of the first clips are kept for validation.
            device: Where the tensors live.

        Returns:
            A pool without clips.
        """

        def make(name: str) -> Tensor:
            array = farm.arrays[name]
            dtype = {"u1": torch.uint8, "f4": torch.float32, "i8": torch.int64}[array.dtype.str[1:]]
            return torch.empty((capacity, *array.shape[1:]), dtype=dtype, device=device)

        return cls(
            farm=farm,
            frames=make("frames"),
            motion=make("motion"),
            visemes=make("visemes"),
            landmarks=make("landmarks"),
            audio=make("audio"),
            num_held_out=num_held_out,
        )

    def refill(self, limit: int = 1_000_000) -> list[int]:
        """Take what the farm has ready.

        Args:
            limit: At most so many clips.

        Returns:
            The places that were filled, so that what was computed from them can be renewed.
        """
        places = []
        for slot in self.farm.filled()[:limit]:
            if self.size < len(self.frames):
                place, self.size = self.size, self.size + 1
            else:
                rng = np.random.default_rng((self.seed, self.taken))
                place = int(rng.integers(self.num_held_out, len(self.frames)))
            for name in CLIP_ARRAYS:
                source = torch.from_numpy(np.ascontiguousarray(self.farm.arrays[name][slot]))
                getattr(self, name)[place].copy_(source)
            self.farm.free(int(slot))
            self.taken += 1
            places.append(place)
        return places

    def wait_for(self, count: int, deadline_s: float) -> list[int]:
        """Fill the pool up to a number of clips.

        Args:
            count: Clips wanted.
            deadline_s: Give up after so long.

        Returns:
            The places that were filled.

        Raises:
            TimeoutError: The farm was too slow.
        """
        end = time.monotonic() + deadline_s
        places: list[int] = []
        while self.size < min(count, len(self.frames)):
            if filled := self.refill():
                places += filled
            elif time.monotonic() > end:
                raise TimeoutError(f"{self.size} of {count} clips after {deadline_s:.0f} s")
            else:
                time.sleep(0.05)
        return places

    def pictures(self, clip: Tensor, frame: Tensor) -> Tensor:
        """Look up frames as pictures in [-1, 1].

        Args:
            clip: Places in the pool, any shape.
            frame: Frame indices (0 is the reference), broadcast against `clip`.

        Returns:
            float32, (*shape, 3, H, W).
        """
        return self.frames[clip, frame].movedim(-1, -3).float().div_(127.5).sub_(1)
