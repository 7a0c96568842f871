"""The merged copy: a faster way to the same weights, never a way to other ones."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.models.dit import DiT
from pipeline.weights.merged import MAX_COPIES, MergedCopy, load_transformer
from pipeline.weights.official import ADAPTER_FOLDER, ADAPTER_NAME, OfficialFolder
from pipeline.weights.shards import read_tensors
from tests.fakes.checkpoint import TINY_DIT, write_adapter, write_transformer

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformer and adapter, not to be changed."""
    folder = tmp_path_factory.mktemp("official")
    write_transformer(folder, TINY_DIT)
    write_adapter(folder / ADAPTER_FOLDER / ADAPTER_NAME, TINY_DIT)
    return folder


@pytest.fixture
def files(whole: Path, tmp_path: Path) -> OfficialFolder:
    """A copy of the official files that can be changed."""
    folder = shutil.copytree(whole, tmp_path / "official")
    return OfficialFolder(folder, folder / ADAPTER_FOLDER / ADAPTER_NAME)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder that is not there yet."""
    return tmp_path / "cache" / "merged"


def load(files: OfficialFolder, cache: Path | None) -> dict[str, Tensor]:
    """Load the transformer; return its weights."""
    network = load_transformer(files, device=CPU, cache=cache)
    assert isinstance(network, DiT)
    assert not network.training
    return network.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def copies(cache: Path) -> list[Path]:
    return sorted(cache.glob("transformer-*"))


def test_without_a_cache_the_adapter_is_merged_and_nothing_is_written(files: OfficialFolder, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    weights = load(files, None)
    base = {name: value for path in files.dit_shards() for name, value in load_file(path).items()}
    adapter = load_file(files.adapter)
    name = "blocks.1.cross_attn.v"
    down, up = (adapter[f"{name}.lora_{side}.default.weight"].float() for side in "AB")
    expected = (base[f"{name}.weight"].float() + 0.5 * up @ down).bfloat16()
    torch.testing.assert_close(weights[f"{name}.weight"], expected, rtol=0.01, atol=1e-3)
    assert torch.equal(weights["head.head.weight"], base["head.head.weight"])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_second_load_comes_from_the_copy_and_is_the_same(files: OfficialFolder, cache: Path) -> None:
    first = load(files, cache)
    assert same(first, load(files, None))
    [copy] = copies(cache)
    # What the official files hold no longer matters, as long as they look the same.
    for path in (*files.dit_shards(), files.adapter):
        status = path.stat()
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(load(files, cache), first)
    assert copies(cache) == [copy]


def test_a_copy_of_many_shards_is_the_same(files: OfficialFolder, cache: Path) -> None:
    weights = load(files, None)
    copy = MergedCopy(cache, [*files.dit_shards(), files.adapter], shard_bytes=300_000)
    assert dict(copy.record(weights.items())).keys() == weights.keys()
    assert len(list(copy.folder.glob("*.safetensors"))) > 5
    assert same(dict(copy.read(CPU)), weights)
    assert same(load(files, cache), weights)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite(path: Path) -> None:
    """Change a shard so that it is whole by itself."""
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("00000.safetensors", flip, "damaged: its SHA-256 is not the one in manifest.json"),
        ("00000.safetensors", rewrite, "damaged: its SHA-256 is not the one in manifest.json"),
        ("00000.safetensors", Path.unlink, "damaged: its SHA-256 is not the one in manifest.json"),
        ("manifest.json", Path.unlink, "manifest.json: is missing"),
        ("manifest.json", lambda path: path.write_text("{}"), "is not the manifest of this copy"),
        ("manifest.json", lambda path: path.write_text(path.read_text()[:-9]), "is no JSON"),
    ],
)
def test_a_damaged_copy_is_told_and_made_again(  # type: ignore[no-untyped-def]
    files: OfficialFolder, cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage, words: str
) -> None:
    expected = load(files, cache)
    [copy] = copies(cache)
    damage(copy / name)
    assert same(load(files, cache), expected)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "the merged copy is of no use and is made again" in record.getMessage()
    assert words in record.getMessage()
    caplog.clear()
    assert same(load(files, cache), expected)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_a_shard_that_is_damaged_while_others_are_read_is_told(files: OfficialFolder, cache: Path) -> None:
    """Checksums are made a little ahead, and not all at the start."""
    copy = MergedCopy(cache, [*files.dit_shards(), files.adapter], shard_bytes=100_000)
    list(copy.record(load(files, None).items()))
    assert len(list(copy.folder.glob("*.safetensors"))) > 15
    reading = copy.read(CPU)
    next(reading)
    last = max(copy.folder.glob("*.safetensors"))
    flip(last)
    with pytest.raises(WeightsError, match=rf"{last.name}: damaged: its SHA-256"):
        list(reading)


def test_a_copy_that_lacks_tensors_is_made_again(files: OfficialFolder, cache: Path) -> None:
    """Its checksums are right, but it was made of half a model."""
    expected = load(files, None)
    copy = MergedCopy(cache, [*files.dit_shards(), files.adapter])
    list(copy.record(list(expected.items())[:50]))
    assert copy.is_there
    assert same(load(files, cache), expected)
    assert same(dict(copy.read(CPU)), expected)


def test_another_adapter_has_another_copy(files: OfficialFolder, cache: Path) -> None:
    first = load(files, cache)
    write_adapter(files.adapter, TINY_DIT, seed="other")
    second = load(files, cache)
    assert not same(first, second)
    assert same(second, load(files, None))
    assert len(copies(cache)) == 2


def test_a_file_that_was_changed_in_place_has_another_copy(files: OfficialFolder, cache: Path) -> None:
    load(files, cache)
    shard = files.dit_shards()[0]
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard)
    assert same(load(files, cache), load(files, None))
    assert len(copies(cache)) == 2


def test_the_folder_can_be_moved(files: OfficialFolder, cache: Path, tmp_path: Path) -> None:
    load(files, cache)
    folder = files.base.rename(tmp_path / "moved")
    load(OfficialFolder(folder, folder / ADAPTER_FOLDER / ADAPTER_NAME), cache)
    assert len(copies(cache)) == 1


def test_copies_can_be_deleted_at_any_time(files: OfficialFolder, cache: Path) -> None:
    expected = load(files, cache)
    shutil.rmtree(cache)
    assert same(load(files, cache), expected)
    assert len(copies(cache)) == 1


def test_a_copy_that_is_deleted_while_it_is_read_is_not_taken_for_whole(files: OfficialFolder, cache: Path) -> None:
    expected = load(files, None)
    copy = MergedCopy(cache, [*files.dit_shards(), files.adapter], shard_bytes=300_000)
    list(copy.record(expected.items()))
    reading = copy.read(CPU)
    first = next(reading)
    shutil.rmtree(cache)
    with pytest.raises(WeightsError, match=r"cannot be read|its SHA-256 is not"):
        list(reading)
    assert torch.equal(first[1], expected[first[0]])


def test_a_cache_that_is_deleted_while_a_copy_is_written_is_not_mixed_with_the_next_one(
    files: OfficialFolder, cache: Path
) -> None:
    """The lock goes with it, so that another process may begin to write before the first has ended."""
    expected = load(files, None)
    inputs = [*files.dit_shards(), files.adapter]
    first = MergedCopy(cache, inputs, shard_bytes=1).record((name, value + 1) for name, value in expected.items())
    next(first)
    shutil.rmtree(cache)
    second = MergedCopy(cache, inputs, shard_bytes=300_000).record(expected.items())
    next(second)
    assert len(list(first)) == len(expected) - 1
    assert len(list(second)) == len(expected) - 1
    assert same(load(files, cache), expected)
    assert same(dict(MergedCopy(cache, inputs).read(CPU)), expected)


def test_the_copy_that_was_not_used_for_longest_goes(files: OfficialFolder, cache: Path) -> None:
    made = []
    for seed in map(str, range(MAX_COPIES)):
        write_adapter(files.adapter, TINY_DIT, seed=seed)
        load(files, cache)
        made += [path for path in copies(cache) if path not in made]
        os.utime(made[-1] / "manifest.json", (len(made), len(made)))
    write_adapter(files.adapter, TINY_DIT, seed="new")
    load(files, cache)
    newest = MergedCopy(cache, [*files.dit_shards(), files.adapter]).folder
    assert {*made[1:], newest} == set(copies(cache))


def test_reading_a_copy_keeps_it(files: OfficialFolder, cache: Path) -> None:
    load(files, cache)
    manifest = copies(cache)[0] / "manifest.json"
    os.utime(manifest, (1, 1))
    load(files, cache)
    assert manifest.stat().st_mtime > 1


def test_what_a_killed_process_left_is_cleared_away(files: OfficialFolder, cache: Path) -> None:
    (cache / "partial-0").mkdir(parents=True)
    (cache / "partial-0" / "00007.safetensors").write_bytes(bytes(9))
    expected = load(files, cache)
    assert not list(cache.glob("partial-*"))
    assert [path.name for path in copies(cache)[0].glob("*.safetensors")] == ["00000.safetensors"]
    assert same(load(files, cache), expected)


def test_while_another_process_writes_a_copy_nothing_is_written(files: OfficialFolder, cache: Path) -> None:
    (cache / "partial-0").mkdir(parents=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert same(load(files, cache), load(files, None))
    assert copies(cache) == []
    assert (cache / "partial-0").is_dir()


def test_a_cache_that_cannot_be_made_is_done_without(
    files: OfficialFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert same(load(files, tmp_path / "file" / "cache"), load(files, None))
    assert "no merged copy is written" in caplog.text
    assert "Not a directory" in caplog.text


def test_without_room_no_copy_is_written(
    files: OfficialFolder, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1_000_000))
    assert same(load(files, cache), load(files, None))
    assert copies(cache) == []
    assert "0.0 GB free" in caplog.text


def test_a_copy_that_fails_half_way_lets_the_tensors_pass(
    files: OfficialFolder, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = MergedCopy(cache, [*files.dit_shards(), files.adapter], shard_bytes=1)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(3)
        while partial := list(cache.glob("partial-*")):  # a shard may just be written there
            shutil.rmtree(partial[0], ignore_errors=True)
        yield "b", torch.zeros(3)
        yield "c", torch.zeros(3)

    assert [name for name, _ in copy.record(tensors())] == ["a", "b", "c"]
    assert not copy.is_there
    assert "no merged copy is written" in caplog.text


def test_official_files_that_fail_half_way_leave_no_copy(files: OfficialFolder, cache: Path) -> None:
    shard = files.dit_shards()[2]
    copy = MergedCopy(cache, [*files.dit_shards(), files.adapter], shard_bytes=1)
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(WeightsError, match=rf"{shard.name}: cannot be read"):
        list(copy.record(read_tensors(files.dit_shards(), CPU)))
    assert [path.name for path in cache.iterdir()] == ["lock"]


@pytest.mark.parametrize("is_cached", [True, False])
def test_an_official_file_that_is_missing_or_something_else_is_named(
    files: OfficialFolder, cache: Path, is_cached: bool
) -> None:
    files.adapter.write_text("<html>not what was asked for</html>")
    with pytest.raises(WeightsError, match=r"liveavatar\.safetensors: is no complete safetensors file"):
        load(files, cache if is_cached else None)
    files.adapter.unlink()
    with pytest.raises(WeightsError, match=r"liveavatar\.safetensors: is missing"):
        load(files, cache if is_cached else None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_weights_are_the_same_and_are_there_once(files: OfficialFolder, cache: Path) -> None:
    expected = load(files, None)
    torch.mm(*[torch.ones(2, 2, dtype=torch.float64, device="cuda")] * 2)  # allocates what all products share
    for _ in range(2):  # merged, then from the copy
        before_bytes = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        network = load_transformer(files, device=torch.device("cuda"), cache=cache)
        num_bytes = sum(parameter.nbytes for parameter in network.parameters())
        assert torch.cuda.max_memory_allocated() - before_bytes < 1.3 * num_bytes
        for name, value in network.state_dict().items():
            assert value.is_cuda
            torch.testing.assert_close(value.cpu(), expected[name], rtol=2**-7, atol=1e-6)
        del network, value
