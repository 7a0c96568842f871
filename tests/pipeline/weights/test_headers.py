"""Headers of weight files: read without reading tensors, and no code in a file is ever run."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import WeightsError
from pipeline.weights.headers import (
    TensorHeader,
    read_header_bytes,
    read_json,
    read_safetensors,
    read_torch,
    read_torch_headers,
)

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
HEADERS = {"a": TensorHeader((2, 3), "float32"), "b": TensorHeader((4,), "bfloat16")}


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


def test_a_safetensors_file_says_what_it_holds(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert read_safetensors(tmp_path / "x.safetensors") == HEADERS


def test_the_header_of_a_safetensors_file_is_its_json(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert json.loads(read_header_bytes(tmp_path / "x.safetensors"))["a"]["shape"] == [2, 3]


@pytest.mark.parametrize("num_bytes", [0, 7, 30, -1])
def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, num_bytes: int) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:num_bytes])
    with pytest.raises(WeightsError, match=r"x\.safetensors: is no complete safetensors file"):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_file_of_torch_says_what_it_holds(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pth")
    assert read_torch_headers(tmp_path / "x.pth") == HEADERS


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_of_torch_is_read_exactly(tmp_path: Path, is_zip: bool) -> None:
    torch.save(TENSORS, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    assert read_torch_headers(tmp_path / "x.pth") == HEADERS
    state = read_torch(tmp_path / "x.pth", "cpu")
    assert state.keys() == TENSORS.keys()
    assert torch.equal(state["a"], TENSORS["a"])


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("num_bytes", [30, -200, -8])
def test_a_truncated_file_of_torch_is_refused(tmp_path: Path, num_bytes: int, is_zip: bool) -> None:
    torch.save(TENSORS, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:num_bytes])
    with pytest.raises(WeightsError, match=r"x\.pth: (is no complete file of torch's \(.+\)$|holds something else)"):
        read_torch_headers(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"", b"<html>", b"P"])
def test_what_torch_never_wrote_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.pth: (is no file of torch's|holds something else)"):
        read_torch_headers(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("read", [read_torch_headers, lambda path: read_torch(path, "cpu")])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, is_zip: bool, read) -> None:  # type: ignore[no-untyped-def]
    path, proof = tmp_path / "x.pth", tmp_path / "proof"
    bomb = {"a": torch.zeros(2), "b": Bomb(f"touch {proof}")}
    if is_zip:
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(
        WeightsError, match=r"x\.pth: (holds something else than tensors, which is never|is no complete)"
    ):
        read(path)
    assert not proof.exists()
    # The same bytes are dangerous where they are trusted.
    if not is_zip:
        pickle.loads(path.read_bytes())
        assert proof.exists()


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_an_archive_with_a_program_in_it_is_refused(tmp_path: Path) -> None:
    """Torch's other kind of file, which its reader would hand to an interpreter."""
    torch.save(TENSORS, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
        archive.writestr("x/constants.pkl", b"")
    with pytest.raises(
        WeightsError, match=r"x\.pth: is no complete file of torch's \(Cannot use ``weights_only=True``"
    ):
        read_torch(tmp_path / "x.pth", "cpu")


def test_pickles_are_opened_in_one_place() -> None:
    """And there, as the tests above show, without running what is in them."""
    opens = re.compile(r"\b(torch\.load|torch\.jit\.load|c?[Pp]ickle\.loads?|Unpickler|joblib\.load|allow_pickle)\b")
    sources = [path for folder in ("pipeline", "server", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    found = [str(path.relative_to(ROOT)) for path in sources for _ in opens.findall(path.read_text(encoding="utf-8"))]
    assert found == ["pipeline/weights/headers.py"]


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {"epoch": 3}])
def test_a_file_of_torch_with_anything_but_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds something else than tensors"):
        read_torch_headers(tmp_path / "x.pth")


@pytest.mark.parametrize("read", [read_safetensors, read_torch_headers, read_json])
def test_a_missing_file_is_named(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WeightsError, match=r"weights .*nothing: is missing"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("read", [read_safetensors, read_torch_headers, read_json])
def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WeightsError, match=r"cannot be read \(Is a directory\)"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_safetensors, read_torch_headers, read_json])
def test_a_pointer_of_git_lfs_is_told(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(WeightsError, match="x: is only a pointer of Git LFS"):
        read(tmp_path / "x")


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "words"), [("{", r"is no JSON \("), ("[]", "is no JSON object"), ("\xff", "is no JSON")]
)
def test_broken_json_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=rf"x\.json: {words}"):
        read_json(tmp_path / "x.json")
