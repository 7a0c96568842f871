"""`visavis weights`: what its users see, from a folder that is whole, from a damaged one, and from a mirror."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.weights.pull import REPOSITORIES
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.command_line import visavis
from tests.fakes.hub import FakeHub
from tools.weights import check, show

pytestmark = pytest.mark.contract

SHARD = "diffusion_pytorch_model-00003-of-00004.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A faultless folder, not to be changed."""
    folder = tmp_path_factory.mktemp("official")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A folder without a shard and without the VAE."""
    folder = shutil.copytree(whole, tmp_path / "damaged")
    (folder / "Wan2.2-S2V-14B" / SHARD).unlink()
    (folder / "Wan2.2-S2V-14B" / "Wan2.1_VAE.pth").write_bytes(b"PK\3\4")
    return folder


@pytest.fixture
def hub(whole: Path):  # type: ignore[no-untyped-def]
    """A hub that offers the faultless folder."""

    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    with FakeHub({r.repo_id: files(whole / r.folder) for r in REPOSITORIES}).running() as hub:
        yield hub


def test_a_whole_folder_is_shown_part_by_part(whole: Path) -> None:
    result = visavis("weights", "check", whole)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("whole") == 6
    for words in ("transformer", "adapter", "video autoencoder", "text encoder", "tokenizer", "audio encoder"):
        assert words in result.stdout
    assert "1,922,233" in result.stdout
    assert "makes four denoising steps enough" in result.stdout


def test_the_published_figures_fit_a_narrow_terminal(whole: Path) -> None:
    report = check(whole)
    report["parts"][0] |= {"num_bytes": 32_591_700_000, "num_tensors": 1260, "num_parameters": 16_295_755_609}
    report["parts"][0]["problems"] = [{"path": "[x]/y", "reason": "is missing"}] * 1260
    report["parts"][1]["remarks"] = ["not used: [z]"]
    text = io.StringIO()
    show(report, Console(file=text, width=80, force_terminal=False))
    for words in ("16,295,755,609", "32.592", "1260 problems", "transformer", "audio encoder", "[x]/y: is missing"):
        assert words in text.getvalue()
    assert ":notused:[z]" in "".join(text.getvalue().split())
    assert "…" not in text.getvalue()


def test_a_damaged_folder_ends_with_1_and_names_everything(damaged: Path) -> None:
    result = visavis("weights", "check", damaged)
    assert result.returncode == 1
    lines = "".join(result.stdout.split())
    assert f"{SHARD}:ismissing" in lines
    assert "Wan2.1_VAE.pth:isnocompletefileoftorch's" in lines
    assert "2 problems" not in result.stdout
    assert result.stdout.count("1 problem") == 2
    assert result.stderr == ""


def test_the_check_speaks_json(damaged: Path) -> None:
    result = visavis("weights", "check", damaged, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["is_whole"] is False
    problems = {part["name"]: [problem["path"] for problem in part["problems"]] for part in report["parts"]}
    assert problems.pop("transformer") == [str(damaged / "Wan2.2-S2V-14B" / SHARD)]
    assert problems.pop("video autoencoder") == [str(damaged / "Wan2.2-S2V-14B" / "Wan2.1_VAE.pth")]
    assert not any(problems.values())


def test_a_folder_without_weights_ends_with_1_and_one_line(tmp_path: Path) -> None:
    result = visavis("weights", "check", tmp_path)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(
        f"visavis: weights {tmp_path}: there is no diffusion_pytorch_model.safetensors.index.json in"
    )


def test_weights_are_pulled_from_a_mirror_after_their_licence_was_shown(
    hub: FakeHub, whole: Path, tmp_path: Path
) -> None:
    result = visavis("weights", "pull", tmp_path / "weights", HF_ENDPOINT=hub.url)
    assert result.returncode == 0, result.stderr
    first, second, last = result.stdout.splitlines()
    assert first == f"Wan-AI/Wan2.2-S2V-14B: 0.0 GB, licence: apache-2.0, {hub.url}/Wan-AI/Wan2.2-S2V-14B"
    assert second.startswith("Quark-Vision/Live-Avatar: 0.0 GB, licence: apache-2.0")
    assert last.endswith("weights: the weights are whole")
    assert result.stderr == ""
    for path in whole.rglob("*.safetensors"):
        assert (tmp_path / "weights" / path.relative_to(whole)).read_bytes() == path.read_bytes()
    num_sent = len(hub.sent)
    again = visavis("weights", "pull", tmp_path / "weights", HF_ENDPOINT=hub.url)
    assert again.returncode == 0
    assert len(hub.sent) == num_sent


def test_a_pull_of_weights_that_are_not_whole_says_so(hub: FakeHub, tmp_path: Path) -> None:
    base = REPOSITORIES[0].repo_id
    files = {name: content for name, content in hub.repositories[base].items() if name != SHARD}
    hub.repositories = {**hub.repositories, base: files}
    result = visavis("weights", "pull", tmp_path / "weights", HF_ENDPOINT=hub.url)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.endswith(f"{SHARD}: is missing")


def test_a_mirror_that_refuses_ends_with_1_and_one_line(hub: FakeHub, tmp_path: Path) -> None:
    hub.errors = {REPOSITORIES[0].repo_id: (401, "RepoNotFound")}
    result = visavis("weights", "pull", tmp_path, HF_ENDPOINT=hub.url)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line == f"visavis: weights Wan-AI/Wan2.2-S2V-14B: {hub.url} knows no such repository, or does not show it"


def test_without_a_network_it_ends_with_1_and_one_line(tmp_path: Path) -> None:
    result = visavis("weights", "pull", tmp_path, HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.endswith("HF_HUB_OFFLINE is set, so nothing can be fetched")
