"""Exporting weights: all that the engine needs, or nothing at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import WeightsError
from pipeline.models.audio_frontend import AudioFrontend, FrontendHeads
from pipeline.weights.embedded_files import DEFAULT_FOLDER, EmbeddedFiles
from tools.train.export import export

pytestmark = pytest.mark.contract

FILES = ["dit.safetensors", "frontend.safetensors", "training.json", "vae.safetensors"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder as training leaves it: the shipped weights, the front end still with its training heads."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in FILES:
        shutil.copy(DEFAULT_FOLDER / name, folder)
    frontend = AudioFrontend.load(folder / "frontend.safetensors")
    frontend.save(folder / "frontend.safetensors", heads=FrontendHeads(frontend.config), dtype=torch.float32)
    return folder


def test_what_is_exported_is_what_the_engine_loads(work: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new" / "weights"
    num_bytes = export(work, destination)
    assert sorted(path.name for path in destination.iterdir()) == sorted([*FILES, "manifest.json"])
    assert num_bytes == sum(path.stat().st_size for path in destination.glob("*.safetensors")) < 40e6
    files, shipped = EmbeddedFiles(destination), EmbeddedFiles(None)
    for new, old in ((files.load_vae(), shipped.load_vae()), (files.load_dit(), shipped.load_dit())):
        assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))
    stored = load_file(destination / "frontend.safetensors")
    assert all(name.startswith("frontend.") for name in stored), "training heads are left out"
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert (destination / "training.json").read_bytes() == (work / "training.json").read_bytes()


def test_other_files_of_the_destination_stay(work: Path, tmp_path: Path) -> None:
    (tmp_path / "sample.wav").write_text("sound")
    export(work, tmp_path)
    assert (tmp_path / "sample.wav").read_text() == "sound"


@pytest.mark.parametrize("name", FILES)
def test_an_incomplete_folder_is_refused_by_name_and_nothing_is_written(work: Path, tmp_path: Path, name: str) -> None:
    (work / name).unlink()
    with pytest.raises(WeightsError, match=name):
        export(work, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_of_another_network_are_refused(work: Path, tmp_path: Path) -> None:
    shutil.copy(work / "dit.safetensors", work / "vae.safetensors")
    with pytest.raises(WeightsError, match=r"vae\.safetensors: does not fit the network"):
        export(work, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"stages": [{}]}', '{"stages": 3}'])
def test_a_record_that_is_none_is_refused(work: Path, tmp_path: Path, text: str) -> None:
    (work / "training.json").write_text(text)
    with pytest.raises(WeightsError, match=r"training\.json: the record of the training cannot be read"):
        export(work, tmp_path / "new")


def test_a_training_that_is_not_finished_is_refused(work: Path, tmp_path: Path) -> None:
    record = json.loads((work / "training.json").read_text())
    record["stages"] = [entry for entry in record["stages"] if entry["stage"] != "policy"]
    (work / "training.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="stages not run yet: policy"):
        export(work, tmp_path / "new")


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.train.export", str(tmp_path), str(tmp_path / "new")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "vae.safetensors: missing: train it first" in done.stderr
    assert "Traceback" not in done.stderr
