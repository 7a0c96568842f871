"""Fetching weights: from a mirror, continued after a break, compared with checksums, and clear about what failed."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import WeightsError
from pipeline.weights.pull import MAX_FAILURES, REPOSITORIES, Offer, Repository, ask, download, missing
from tests.fakes.hub import COMMIT, FakeHub

pytestmark = pytest.mark.contract

BASE, ADAPTER = (repository.repo_id for repository in REPOSITORIES)
LARGE = bytes(range(256)) * 40
AUDIO = "wav2vec2-large-xlsr-53-english"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub with both repositories."""
    base = {
        "README.md": b"not needed",
        "LICENSE.txt": b"licence",
        "config.json": b"{}",
        "diffusion_pytorch_model-00001-of-00001.safetensors": LARGE,
        "diffusion_pytorch_model.safetensors.index.json": b"{}",
        "google/umt5-xxl/tokenizer.json": b"{ }",
        f"{AUDIO}/config.json": b"{  }",
        f"{AUDIO}/model.safetensors": LARGE[::-1],
        f"{AUDIO}/pytorch_model.bin": b"the same again",
        f"{AUDIO}/flax_model.msgpack": b"and again",
        "assets/logo.png": b"not needed",
    }
    with FakeHub({BASE: base, ADAPTER: {"liveavatar.safetensors": LARGE + b"!", "train.py": b""}}).running() as hub:
        yield hub


def offers(hub: FakeHub) -> list[Offer]:
    return [ask(repository, hub.url) for repository in REPOSITORIES]


def pull(hub: FakeHub, folder: Path) -> int:
    """Fetch everything; return how many bytes were reported."""
    reported = []
    download(offers(hub), folder, reported.append, retry_pause_s=0.01)
    return sum(reported)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.part"))


def test_an_offer_tells_licence_commit_size_and_the_files_that_are_needed(hub: FakeHub) -> None:
    offer = ask(REPOSITORIES[0], hub.url)
    assert (offer.licence, offer.commit, offer.url) == ("apache-2.0", COMMIT, f"{hub.url}/{BASE}")
    assert sorted(file.name for file in offer.files) == [
        "LICENSE.txt",
        "config.json",
        "diffusion_pytorch_model-00001-of-00001.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "google/umt5-xxl/tokenizer.json",
        f"{AUDIO}/config.json",
        f"{AUDIO}/model.safetensors",
    ]
    assert offer.num_bytes == 2 * len(LARGE) + 7 + 2 + 2 + 3 + 4


def test_the_older_format_is_taken_where_it_is_the_only_one(hub: FakeHub) -> None:
    files = {name: content for name, content in hub.repositories[BASE].items() if name != f"{AUDIO}/model.safetensors"}
    hub.repositories = {BASE: files}
    assert f"{AUDIO}/pytorch_model.bin" in {file.name for file in ask(REPOSITORIES[0], hub.url).files}


def test_a_repository_without_a_stated_licence_is_told_apart(hub: FakeHub) -> None:
    hub.licence = None
    assert ask(REPOSITORIES[0], hub.url).licence is None


def test_everything_is_fetched_to_its_official_place(hub: FakeHub, tmp_path: Path) -> None:
    reported = pull(hub, tmp_path / "weights")
    assert reported == sum(offer.num_bytes for offer in offers(hub))
    for repo_id, folder in ((BASE, "Wan2.2-S2V-14B"), (ADAPTER, "LiveAvatar")):
        for path in (tmp_path / "weights" / folder).rglob("*.*"):
            assert path.read_bytes() == hub.repositories[repo_id][str(path.relative_to(tmp_path / "weights" / folder))]
    assert (tmp_path / "weights" / "LiveAvatar" / "liveavatar.safetensors").is_file()
    assert parts(tmp_path) == []


def test_nothing_is_fetched_twice(hub: FakeHub, tmp_path: Path) -> None:
    pull(hub, tmp_path)
    num_sent = len(hub.sent)
    assert [missing(offer, tmp_path) for offer in offers(hub)] == [[], []]
    assert pull(hub, tmp_path) == 0
    assert len(hub.sent) == num_sent


def test_a_file_of_another_size_is_replaced(hub: FakeHub, tmp_path: Path) -> None:
    pull(hub, tmp_path)
    path = tmp_path / "LiveAvatar" / "liveavatar.safetensors"
    path.write_bytes(b"version https://git-lfs")
    assert [file.name for file in missing(offers(hub)[1], tmp_path)] == [path.name]
    pull(hub, tmp_path)
    assert path.read_bytes() == LARGE + b"!"


def test_a_broken_connection_is_taken_up_where_it_broke(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after_bytes = 4000
    assert pull(hub, tmp_path) == sum(offer.num_bytes for offer in offers(hub))
    answers = [answer[1:] for answer in hub.sent if answer[0] == "liveavatar.safetensors"]
    assert answers == [(0, 4000), (4000, len(LARGE) + 1 - 4000)]
    assert (tmp_path / "LiveAvatar" / "liveavatar.safetensors").read_bytes() == LARGE + b"!"


@pytest.mark.parametrize(("status", "num_attempts"), [(503, MAX_FAILURES + 1), (429, MAX_FAILURES + 1), (404, 1)])
def test_mishaps_are_tried_again_a_few_times_and_refusals_are_not(
    hub: FakeHub, tmp_path: Path, status: int, num_attempts: int
) -> None:
    hub.file_status = status
    with pytest.raises(WeightsError, match=rf"liveavatar\.safetensors: {hub.url} answers with status {status}"):
        download(offers(hub)[1:], tmp_path, lambda num_bytes: None, retry_pause_s=0.01)
    assert len(hub.sent) == num_attempts


def test_a_mirror_that_sends_nothing_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after_bytes, hub.is_always_cut = 0, True
    with pytest.raises(WeightsError, match=rf"liveavatar\.safetensors: {hub.url} cannot be reached"):
        download(offers(hub)[1:], tmp_path, lambda num_bytes: None, retry_pause_s=0.01)
    assert len(hub.sent) == MAX_FAILURES + 1


def test_a_slow_line_that_breaks_often_arrives(hub: FakeHub, tmp_path: Path) -> None:
    """Every attempt brings something, so none counts as one in a row."""
    hub.cut_after_bytes, hub.is_always_cut = 1000, True
    pull(hub, tmp_path)
    assert (tmp_path / "LiveAvatar" / "liveavatar.safetensors").read_bytes() == LARGE + b"!"
    assert len([answer for answer in hub.sent if answer[0] == "liveavatar.safetensors"]) == 11


@pytest.mark.parametrize("is_continuing", [True, False])
def test_a_later_call_goes_on_from_what_is_there(hub: FakeHub, tmp_path: Path, is_continuing: bool) -> None:
    """Also with a mirror that always begins again: its answer is not put behind what is there."""
    hub.is_continuing = is_continuing
    offer = offers(hub)[1]
    digest = offer.files[0].digest.removeprefix("sha256:")
    part = tmp_path / "LiveAvatar" / f"liveavatar.safetensors.{digest[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(LARGE[:4000])
    reported: list[int] = []
    download([offer], tmp_path, reported.append)
    assert hub.sent == [("liveavatar.safetensors", 4000 if is_continuing else 0, len(LARGE) + 1 - 4000 * is_continuing)]
    assert sum(reported) == len(LARGE) + 1
    assert (tmp_path / "LiveAvatar" / "liveavatar.safetensors").read_bytes() == LARGE + b"!"
    assert parts(tmp_path) == []


def test_a_part_that_another_process_writes_is_left_to_it(hub: FakeHub, tmp_path: Path) -> None:
    offer = offers(hub)[1]
    part = tmp_path / "LiveAvatar" / f"liveavatar.safetensors.{offer.files[0].digest.removeprefix('sha256:')[:12]}.part"
    part.parent.mkdir()
    with part.open("ab") as target:
        target.write(LARGE[:4000])
        target.flush()
        fcntl.flock(target, fcntl.LOCK_EX)
        words = r"liveavatar\.safetensors: another process is fetching it into the same folder"
        with pytest.raises(WeightsError, match=words):
            download([offer], tmp_path, lambda num_bytes: None, retry_pause_s=60)
    assert hub.sent == []
    assert part.read_bytes() == LARGE[:4000]
    download([offer], tmp_path, lambda num_bytes: None)
    assert (tmp_path / "LiveAvatar" / "liveavatar.safetensors").read_bytes() == LARGE + b"!"


def test_a_part_that_is_too_long_is_thrown_away(hub: FakeHub, tmp_path: Path) -> None:
    offer = offers(hub)[1]
    part = tmp_path / "LiveAvatar" / f"liveavatar.safetensors.{offer.files[0].digest.removeprefix('sha256:')[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(len(LARGE) + 2))
    download([offer], tmp_path, lambda num_bytes: None)
    assert (tmp_path / "LiveAvatar" / "liveavatar.safetensors").read_bytes() == LARGE + b"!"


@pytest.mark.parametrize("name", ["liveavatar.safetensors", "config.json"])
def test_a_file_that_came_damaged_is_refused_and_never_named_as_good(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.damaged = frozenset([name])
    with pytest.raises(WeightsError, match=rf"{name}: what {hub.url} sent is not what it announced"):
        pull(hub, tmp_path)
    assert not [path for path in tmp_path.rglob(name) if AUDIO not in str(path)]
    hub.damaged = frozenset()
    pull(hub, tmp_path)
    assert [missing(offer, tmp_path) for offer in offers(hub)] == [[], []]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "knows no such repository, or does not show it"),
        (403, "GatedRepo", "its licence has to be accepted at .* first"),
        (500, "", "answers with status 500"),
        (451, "", "answers with status 451"),
    ],
)
def test_a_refusal_is_told_in_words(hub: FakeHub, status: int, code: str, words: str) -> None:
    hub.errors = {BASE: (status, code)}
    with pytest.raises(WeightsError, match=rf"weights {BASE}: .*{words}"):
        ask(REPOSITORIES[0], hub.url)


def test_a_mirror_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(WeightsError, match=rf"weights {BASE}: {url} cannot be reached \(.*refused"):
        ask(REPOSITORIES[0], url)


def test_a_mirror_with_other_files_is_told(hub: FakeHub) -> None:
    hub.repositories = {BASE: {"README.md": b"moved"}}
    with pytest.raises(WeightsError, match=f"weights {BASE}: {hub.url} offers none of its files"):
        ask(REPOSITORIES[0], hub.url)


def test_an_empty_file_is_a_file_too(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories = {BASE: {"LICENSE": b""}}
    download([ask(REPOSITORIES[0], hub.url)], tmp_path, lambda num_bytes: None)
    assert (tmp_path / "Wan2.2-S2V-14B" / "LICENSE").read_bytes() == b""


@pytest.mark.parametrize("key", ["size", "blobId"])
def test_a_file_without_size_or_checksum_is_refused(hub: FakeHub, key: str) -> None:
    hub.unstated = frozenset([key])
    with pytest.raises(WeightsError, match=r"size and checksum of LICENSE\.txt are not stated"):
        ask(REPOSITORIES[0], hub.url)


@pytest.mark.parametrize("name", ["../outside.json", "/outside.json", "google/../../outside.json"])
def test_a_name_that_leads_out_of_the_folder_is_refused(hub: FakeHub, name: str) -> None:
    hub.repositories = {BASE: {name: b"x"}}
    with pytest.raises(WeightsError, match="which leads out of its folder"):
        ask(Repository(BASE, "x", ("*",)), hub.url)


def test_without_room_nothing_is_begun(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories = {BASE: {"config.json": b"{}"}}
    offer = ask(REPOSITORIES[0], hub.url)
    huge = Offer(
        offer.repository,
        offer.endpoint,
        offer.commit,
        offer.licence,
        (type(offer.files[0])("config.json", 10**18, "git:00"),),
    )
    with pytest.raises(WeightsError, match=r"1000000000\.0 GB are needed, but \d+\.\d GB are free"):
        download([huge], tmp_path / "weights", lambda num_bytes: None)
    assert hub.sent == []


def test_an_error_of_the_disk_is_not_called_one_of_the_network(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "LiveAvatar").touch()
    with pytest.raises(OSError, match="LiveAvatar") as caught:
        download(offers(hub)[1:], tmp_path, lambda num_bytes: None)
    assert caught.value.errno == errno.EEXIST


def test_an_interrupted_download_ends_soon_and_keeps_what_came(hub: FakeHub, tmp_path: Path) -> None:
    """The report is made from the thread of the download; here it plays the person who has had enough."""

    def enough(num_bytes: int) -> None:
        if num_bytes > 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(offers(hub)[1:], tmp_path, enough)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("download")]
    [part] = parts(tmp_path)
    assert part.stat().st_size == len(LARGE) + 1
    num_sent = len(hub.sent)
    download(offers(hub)[1:], tmp_path, lambda num_bytes: None)
    assert len(hub.sent) == num_sent, "it was all there"
    assert os.listdir(tmp_path / "LiveAvatar") == ["liveavatar.safetensors"]
