"""The published weights, fetched from the Hugging Face Hub or a mirror of it.

The environment variable HF_ENDPOINT names a mirror; huggingface_hub reads it. A file is written beside its place under
a name that tells its content, continued there when the download is started again, compared with its checksum, and only
then given its own name. Nothing is fetched twice, and a folder never holds half a file under a good name.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from pipeline.errors import WeightsError
from pipeline.weights.official import ADAPTER_FOLDER, ADAPTER_NAME, BASE_FOLDER

__all__ = ["REPOSITORIES", "Offer", "RemoteFile", "Repository", "ask", "download", "missing"]

logger = logging.getLogger(__name__)

NUM_PARALLEL = 4
"""Files that are fetched at the same time."""
MAX_FAILURES = 5
"""Failures in a row, without a byte between them, after which a file is given up."""

_TIMEOUT_S = 20.0
_WHOLE, _TOO_MANY_REQUESTS, _SERVER_FAULT = 200, 429, 500

# The roots of what the HTTP library raises; which library it is depends on the version of huggingface_hub.
_NETWORK_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that holds some of the large model's parts."""

    repo_id: str
    """Its name on the hub."""
    folder: str
    """Where its files go, in the official folder."""
    patterns: tuple[str, ...]
    """Which of its files are needed."""


REPOSITORIES = (
    Repository(
        "Wan-AI/Wan2.2-S2V-14B",
        BASE_FOLDER,
        (
            "LICENSE*",
            "config.json",
            "diffusion_pytorch_model*.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
            "models_t5_umt5-xxl-enc-bf16.pth",
            "Wan2.1_VAE.pth",
            "google/umt5-xxl/*",
            "wav2vec2-large-xlsr-53-english/*.json",
            "wav2vec2-large-xlsr-53-english/model.safetensors",
            "wav2vec2-large-xlsr-53-english/pytorch_model.bin",
        ),
    ),
    Repository("Quark-Vision/Live-Avatar", ADAPTER_FOLDER, ("LICENSE*", ADAPTER_NAME)),
)
# The older of two formats of the same weights.
_SUPERSEDED = {
    "wav2vec2-large-xlsr-53-english/pytorch_model.bin": "wav2vec2-large-xlsr-53-english/model.safetensors",
}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository."""

    name: str
    """Its path in the repository."""
    num_bytes: int
    """Its size."""
    digest: str
    """What its content is known by: "sha256:..." for large files, "git:..." for small ones."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a repository offers, at one commit."""

    repository: Repository
    """The repository."""
    endpoint: str
    """Address of the hub or mirror."""
    commit: str
    """The commit; all files are taken from it."""
    licence: str | None
    """Name of the licence, as its owners state it."""
    files: tuple[RemoteFile, ...]
    """The files that are needed."""

    @property
    def url(self) -> str:
        """Page of the repository, where its licence can be read."""
        return f"{self.endpoint}/{self.repository.repo_id}"

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(file.num_bytes for file in self.files)


def ask(repository: Repository, endpoint: str | None = None) -> Offer:
    """Ask the hub what a repository holds.

    Args:
        repository: The repository.
        endpoint: Address of the hub or mirror; None: that of HF_ENDPOINT, or the hub's own.

    Returns:
        Its offer.

    Raises:
        WeightsError: The hub or mirror cannot be reached, or refuses.
    """
    api = HfApi(endpoint=endpoint)
    with _explained(repository.repo_id, api.endpoint):
        info = api.model_info(repository.repo_id, files_metadata=True, timeout=_TIMEOUT_S)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    files = [
        _remote_file(repository, sibling)
        for sibling in info.siblings or ()
        if any(fnmatch(sibling.rfilename, pattern) for pattern in repository.patterns)
        and _SUPERSEDED.get(sibling.rfilename) not in names
    ]
    if not files or info.sha is None:
        raise WeightsError(repository.repo_id, f"{api.endpoint} offers none of its files")
    return Offer(repository, api.endpoint, info.sha, _licence(info), tuple(files))


def _remote_file(repository: Repository, sibling: RepoSibling) -> RemoteFile:
    path = PurePosixPath(sibling.rfilename)
    if path.is_absolute() or ".." in path.parts:
        raise WeightsError(repository.repo_id, f"it offers {sibling.rfilename!r}, which leads out of its folder")
    if sibling.size is None or (sibling.lfs is None and sibling.blob_id is None):
        raise WeightsError(repository.repo_id, f"size and checksum of {sibling.rfilename} are not stated")
    digest = f"git:{sibling.blob_id}" if sibling.lfs is None else f"sha256:{sibling.lfs.sha256}"
    return RemoteFile(sibling.rfilename, sibling.size, digest)


def _licence(info: ModelInfo) -> str | None:
    card = info.card_data
    if card is not None and card.license:
        name = card.get("license_name")
        return f"{card.license} ({name})" if name else str(card.license)
    tags = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    return tags[0] if tags else None


def missing(offer: Offer, folder: Path) -> list[RemoteFile]:
    """List the files that are not there yet.

    Args:
        offer: What the repository offers.
        folder: The official folder.

    Returns:
        Files that are missing or of another size.
    """
    return [file for file in offer.files if _size(_place(offer, folder, file)) != file.num_bytes]


def download(
    offers: Sequence[Offer], folder: Path, report: Callable[[int], None], *, retry_pause_s: float = 1.0
) -> None:
    """Fetch what is missing, several files at a time.

    Args:
        offers: What the repositories offer.
        folder: The official folder; it is made.
        report: Called from several threads with the number of bytes that were added; it is negative where some have to
            be fetched again.
        retry_pause_s: Between a failure and the next attempt.

    Raises:
        WeightsError: There is no room, the hub or mirror cannot be reached, or a file came damaged. What was fetched is
            kept, and the next call goes on from there.
    """
    jobs = [(offer, file) for offer in offers for file in missing(offer, folder)]
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(file.num_bytes - (_size(_part(offer, folder, file)) or 0) for offer, file in jobs)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WeightsError(str(folder), f"{needed / 1e9:.1f} GB are needed, but {free / 1e9:.1f} GB are free")
    stop = threading.Event()

    def pause() -> bool:
        return not stop.wait(retry_pause_s)

    def add(num_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        report(num_bytes)

    with ThreadPoolExecutor(NUM_PARALLEL, "download") as pool:
        tasks = [pool.submit(_fetch, offer, file, folder, add, pause) for offer, file in jobs]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


class _Stopped(Exception):
    """Another file failed, or the person has had enough."""


def _fetch(
    offer: Offer, file: RemoteFile, folder: Path, report: Callable[[int], None], pause: Callable[[], bool]
) -> None:
    """Fetch or continue one file, in spite of a few interruptions; a pause says whether to go on after it."""
    part = _part(offer, folder, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if (_size(part) or 0) > file.num_bytes:
        part.unlink()
    report(_size(part) or 0)
    num_failures = 0
    while (before := _size(part)) != file.num_bytes:
        try:
            with _explained(file.name, offer.endpoint), part.open("ab") as target:
                _claim(target, file)
                _append(offer, file, target, report)
        except WeightsError as exc:
            num_failures = 1 if _size(part) != before else num_failures + 1
            if num_failures > MAX_FAILURES or _is_final(exc.__cause__) or not pause():
                raise
            logger.info("%s broke off and is continued: %s", file.name, exc.reason)
    if _digest(part, file) != file.digest:
        part.unlink()
        report(-file.num_bytes)
        raise WeightsError(file.name, f"what {offer.endpoint} sent is not what it announced; start the download again")
    part.replace(_place(offer, folder, file))


def _claim(target: BinaryIO, file: RemoteFile) -> None:
    """Keep other processes from writing to the part, for as long as it is open."""
    try:
        fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise WeightsError(file.name, "another process is fetching it into the same folder") from exc
    target.seek(0, os.SEEK_END)


def _append(offer: Offer, file: RemoteFile, target: BinaryIO, report: Callable[[int], None]) -> None:
    """Fetch what follows on the part that is there."""
    url = hf_hub_url(offer.repository.repo_id, file.name, revision=offer.commit, endpoint=offer.endpoint)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if target.tell():
        headers["Range"] = f"bytes={target.tell()}-"
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if response.status_code == _WHOLE and target.tell():
            report(-target.tell())
            target.truncate(0)
        for chunk in response.iter_bytes():
            target.write(chunk)
            report(len(chunk))
        if target.tell() < file.num_bytes:
            raise ConnectionError("the answer ended early")


def _is_final(cause: BaseException | None) -> bool:
    """Tell a refusal from a mishap."""
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code < _SERVER_FAULT and cause.response.status_code != _TOO_MANY_REQUESTS
    return isinstance(cause, OfflineModeIsEnabled | BlockingIOError)


def _place(offer: Offer, folder: Path, file: RemoteFile) -> Path:
    return folder / offer.repository.folder / file.name


def _part(offer: Offer, folder: Path, file: RemoteFile) -> Path:
    place = _place(offer, folder, file)
    return place.with_name(f"{place.name}.{file.digest.partition(':')[2][:12]}.part")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _digest(path: Path, file: RemoteFile) -> str:
    kind = file.digest.partition(":")[0]
    with path.open("rb") as source:
        if kind == "sha256":
            return f"{kind}:{hashlib.file_digest(source, 'sha256').hexdigest()}"
        # Git knows a small file by the SHA-1 of its size and content.
        content = hashlib.sha1(b"blob %d\0" % file.num_bytes + source.read(), usedforsecurity=False)
        return f"{kind}:{content.hexdigest()}"


@contextmanager
def _explained(what: str, endpoint: str) -> Iterator[None]:
    """Say in words what the network did; errors of the disk stay what they are."""
    try:
        yield
    except OfflineModeIsEnabled as exc:
        raise WeightsError(what, "HF_HUB_OFFLINE is set, so nothing can be fetched") from exc
    except GatedRepoError as exc:
        reason = f"its licence has to be accepted at {endpoint} first, and `hf auth login` has to know the account"
        raise WeightsError(what, reason) from exc
    except RepositoryNotFoundError as exc:
        raise WeightsError(what, f"{endpoint} knows no such repository, or does not show it") from exc
    except HfHubHTTPError as exc:
        raise WeightsError(what, f"{endpoint} answers with status {exc.response.status_code}") from exc
    except _NETWORK_ERRORS as exc:
        is_of_the_disk = isinstance(exc, OSError) and exc.errno and not isinstance(exc, ConnectionError | TimeoutError)
        if is_of_the_disk:
            raise
        words = str(exc).partition("\n")[0] or type(exc).__name__
        raise WeightsError(what, f"{endpoint} cannot be reached ({words})") from exc
