"""The transformer with its adapter merged, loaded from the official files or from a copy that starts faster.

The copy lies in the cache folder: one folder per pair of transformer and adapter, with shards and a manifest.

    CACHE/transformer-<key>/manifest.json      format, what it was made of, SHA-256 of every shard
    CACHE/transformer-<key>/00000.safetensors  merged tensors, ready for the device

The key is a digest of what identifies the official files (name, size, time of change, header), so that other files
have another copy. A copy is complete or not there at all; one that is damaged is made again; all of them can be deleted
at any time. A copy that cannot be written (no room, no permission) is done without.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.models.dit import DiT
from pipeline.weights.headers import read_header_bytes, read_json, read_safetensors
from pipeline.weights.lora import ADAPTER_SCALE, open_adapter
from pipeline.weights.official import OfficialFolder, read_dit_config
from pipeline.weights.shards import assemble, read_tensors

__all__ = ["MergedCopy", "load_transformer"]

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_COPIES = 2
"""Copies kept; a new one replaces the one that was not used for longest."""
SHARD_BYTES = 2**28
"""Size at which a shard of a copy is written; two of them are in memory, one being written and one being gathered."""
_HASH_THREADS = 8


def load_transformer(files: OfficialFolder, *, device: torch.device, cache: Path | None) -> DiT:
    """Load the transformer with its adapter merged.

    Args:
        files: Where the official files are.
        device: Where the network is wanted.
        cache: Folder of the merged copies; None: neither look for a copy nor write one.

    Returns:
        The network, in the dtype of the files.

    Raises:
        WeightsError: An official file is missing, incomplete or does not fit.
    """
    config = read_dit_config(files.dit_config)
    shards = files.dit_shards()
    copy = None if cache is None else MergedCopy(cache, [*shards, files.adapter])
    if copy is not None and copy.is_there:
        try:
            return assemble(lambda: DiT(config), copy.read(device), copy.folder)
        except WeightsError as exc:
            logger.warning("the merged copy is of no use and is made again: %s", exc)
            copy.discard()
    with open_adapter(files.adapter, config) as adapter:
        tensors = adapter.merge(read_tensors(shards, device))
        if copy is not None:
            tensors = copy.record(tensors)
        return assemble(lambda: DiT(config), tensors, files.base)


class MergedCopy:
    """One copy, there or not.

    Args:
        cache: Folder of all copies.
        inputs: The official files of which it is made.
        shard_bytes: Size of its shards.

    Raises:
        WeightsError: An official file is missing or incomplete.
    """

    def __init__(self, cache: Path, inputs: Sequence[Path], *, shard_bytes: int = SHARD_BYTES) -> None:
        self._cache = cache
        self._inputs = inputs
        self._shard_bytes = shard_bytes
        self._made_of = {"format": FORMAT, "scale": ADAPTER_SCALE, "files": [_identity(path) for path in inputs]}
        digest = hashlib.sha256(json.dumps(self._made_of).encode()).hexdigest()
        self.folder = cache / f"transformer-{digest[:16]}"

    @property
    def is_there(self) -> bool:
        """Whether there is a copy, sound or not."""
        return self.folder.is_dir()

    def read(self, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Read a copy; each shard is compared with its checksum before its tensors are handed out.

        Args:
            device: Where the tensors are wanted.

        Yields:
            Name and tensor.

        Raises:
            WeightsError: The copy is damaged.
        """
        manifest_path = self.folder / "manifest.json"
        manifest = read_json(manifest_path)
        digests = manifest.get("sha256")
        if manifest.get("made_of") != self._made_of or not isinstance(digests, dict):
            raise WeightsError(str(manifest_path), "is not the manifest of this copy")
        # Checksums are made ahead in threads, which also brings the files into memory for the reader; a little ahead,
        # or they would be out of it again where it is small.
        with ThreadPoolExecutor(_HASH_THREADS, "checksums") as pool:
            paths = [self.folder / name for name in digests]
            ahead = deque(pool.submit(_sha256, path) for path in paths[:_HASH_THREADS])
            for number, (path, expected) in enumerate(zip(paths, digests.values(), strict=True)):
                if ahead.popleft().result() != expected:
                    pool.shutdown(cancel_futures=True)
                    raise WeightsError(str(path), "damaged: its SHA-256 is not the one in manifest.json")
                ahead.extend(pool.submit(_sha256, later) for later in paths[number + _HASH_THREADS :][:1])
                yield from read_tensors([path], device)
        with suppress(OSError):  # somebody else's cache may be read, too
            manifest_path.touch()

    def record(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Write a copy of tensors as they pass. What goes wrong with the copy is logged, and they pass all the same.

        Args:
            tensors: Name and merged tensor, on any device.

        Yields:
            What was given.
        """
        with _sole_writer(self._cache) as partial, ThreadPoolExecutor(1, "merged copy") as pool:
            writer = None if partial is None or not self._has_room() else _Writer(partial, self._shard_bytes, pool)
            for name, value in tensors:
                if writer is not None and not writer.add(name, value):
                    writer = None
                yield name, value
            if writer is not None and writer.finish(self.folder, self._made_of):
                logger.info("wrote a merged copy for faster starts to %s; it can be deleted at any time", self.folder)
                self._forget_old_ones()

    def discard(self) -> None:
        """Delete the copy."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _has_room(self) -> bool:
        needed = sum(path.stat().st_size for path in self._inputs)
        free = shutil.disk_usage(self._cache).free
        if free < needed:
            words = "no merged copy is written: %s has %.1f GB free, and up to %.1f GB are needed"
            logger.warning(words, self._cache, free / 1e9, needed / 1e9)
        return free >= needed

    def _forget_old_ones(self) -> None:
        manifests = sorted(self._cache.glob("transformer-*/manifest.json"), key=lambda path: path.stat().st_mtime)
        for manifest in manifests[:-MAX_COPIES]:
            shutil.rmtree(manifest.parent, ignore_errors=True)


class _Writer:
    """Gathers tensors and writes them shard by shard into a folder that is not yet the copy.

    One shard is written, in another thread, while the next one is gathered.
    """

    def __init__(self, folder: Path, shard_bytes: int, pool: Executor) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._pool = pool
        self._gathered: dict[str, Tensor] = {}
        self._num_bytes = 0
        self._digests: dict[str, Future[str]] = {}

    def add(self, name: str, value: Tensor) -> bool:
        """Take a tensor; say whether it went well."""
        self._gathered[name] = value.cpu()
        self._num_bytes += value.nbytes
        return self._num_bytes < self._shard_bytes or self._attempt(self._submit)

    def finish(self, folder: Path, made_of: dict[str, Any]) -> bool:
        """Write what is left and the manifest, and give the folder its name; say whether it went well."""

        def close() -> None:
            if self._gathered:
                self._submit()
            digests = {name: digest.result() for name, digest in self._digests.items()}
            manifest = json.dumps({"made_of": made_of, "sha256": digests}, indent=2)
            (self._folder / "manifest.json").write_text(manifest + "\n")
            self._folder.rename(folder)

        return self._attempt(close)

    def _attempt(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except (OSError, SafetensorError) as exc:
            logger.warning("no merged copy is written: %s: %s", self._folder, exc)
            shutil.rmtree(self._folder, ignore_errors=True)
            return False
        return True

    def _submit(self) -> None:
        """Have the gathered shard written, once the one before it is."""
        for digest in self._digests.values():
            digest.result()
        path = self._folder / f"{len(self._digests):05}.safetensors"
        self._digests[path.name] = self._pool.submit(_write_shard, path, self._gathered)
        self._gathered, self._num_bytes = {}, 0


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a shard and return its checksum."""
    save_file(tensors, path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _sole_writer(cache: Path) -> Iterator[Path | None]:
    """Make a folder to write into; None where another process is writing, or where it cannot be made."""
    partial: Path | None = None
    with ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((cache / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # What lies here is of a process that was killed, or whose lock was deleted while it wrote: that one then
            # finds its folder gone. Its name is never used again, so that two never write into one folder.
            for left in cache.glob("partial-*"):
                shutil.rmtree(left, ignore_errors=True)
            partial = cache / f"partial-{uuid.uuid4().hex}"
            partial.mkdir()
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
        except BlockingIOError:
            logger.info("no merged copy is written to %s: another process is writing one", cache)
        except OSError as exc:
            logger.warning("no merged copy is written: %s: %s", cache, exc.strerror)
        yield partial


def _identity(path: Path) -> dict[str, Any]:
    """Describe a file so that another one, or a changed one, is told apart without reading all of it."""
    read_safetensors(path)
    status = path.stat()
    header = hashlib.sha256(read_header_bytes(path)).hexdigest()
    return {"name": path.name, "num_bytes": status.st_size, "changed_ns": status.st_mtime_ns, "header": header}


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
