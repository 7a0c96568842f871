"""The whole training chain at toy size, as a user starts it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.models.audio_frontend import AudioFrontend, AudioFrontendConfig
from pipeline.weights.embedded_files import EmbeddedFiles
from tools.train import sizes
from tools.train.export import export
from tools.train.head.renderer import Renderer
from tools.train.speech.bank import BankSource, SpeechBank

pytestmark = [pytest.mark.contract, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[3]
STAGES = ["vae", "dit", "policy", "decoder", "polish"]


def train(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.train.run", "--work", str(work), "--slots", str(work / "slots"), *words]
    # Threads that spin while they wait take minutes from each other where the machine is busy.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=380)


def records(work: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (work / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with eight seconds of made-up speech, in which all stages have run once."""
    try:
        Renderer(size=(32, 32), supersampling=1).close()
    except Exception as exc:  # noqa: BLE001 - moderngl raises no narrower type without a driver.
        pytest.skip(f"no EGL driver for the head generator: {exc}")
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    visemes = rng.integers(0, 255, (200, 15), dtype=np.uint8)
    source = BankSource(
        mel_codes=rng.integers(20, 80, (800, 80), dtype=np.uint8),
        visemes=visemes,
        loudness=rng.integers(0, 120, 200, dtype=np.uint8),
        classes=visemes.argmax(1).astype(np.uint8),
        utterances=np.array([[0, 200, 0, 0]], np.int32),
        voices=("nobody",),
    )
    SpeechBank({"made-up": source}).save(folder / "bank.npz")
    torch.manual_seed(0)
    AudioFrontend(AudioFrontendConfig(dim=sizes.DIT.audio_dim)).save(folder / "frontend.safetensors")
    done = train(folder, "--smoke")
    assert done.returncode == 0, done.stderr
    return folder


def test_every_stage_runs_and_its_losses_are_finite(work: Path) -> None:
    rows = records(work)
    assert {f"{stage} done" for stage in STAGES} <= {str(row["stage"]) for row in rows}
    losses = [value for row in rows for name, value in row.items() if name in ("l1", "edges", "loss", "x0_2", "judged")]
    assert len(losses) >= 9
    assert all(isinstance(value, float) and math.isfinite(value) and abs(value) < 10 for value in losses)
    assert all(
        (work / f"{name}.png").stat().st_size > 10_000 for name in ("clips", "dit", "policy", "decoder", "polish")
    )


def test_the_record_tells_stages_settings_and_results(work: Path) -> None:
    stages = json.loads((work / "training.json").read_text())["stages"]
    assert [entry["stage"] for entry in stages[:5]] == STAGES
    for entry in stages[:5]:
        assert entry["data"]["seed"] == 1
        assert entry["settings"]["max_steps"] == entry["result"]["steps"]
        assert math.isfinite(entry["result"]["psnr_face_db"])


def test_the_weights_load_where_they_are_used(work: Path, tmp_path: Path) -> None:
    export(work, tmp_path)
    files = EmbeddedFiles(tmp_path)
    vae, dit = files.load_vae(), files.load_dit()
    assert all(bool(p.isfinite().all()) for network in (vae, dit) for p in network.parameters())
    assert (vae.config, dit.config) == (sizes.VAE, sizes.DIT)
    assert files.load_frontend().config.dim == sizes.DIT.audio_dim


def test_a_second_run_starts_from_what_the_first_one_left(work: Path) -> None:
    """With another seed, a network made anew would have nothing in common with the one that is there."""
    before, other = load_file(work / "vae.safetensors"), (work / "dit.safetensors").read_bytes()
    done = train(work, "--smoke", "--stages", "vae", "--seed", "2")
    assert done.returncode == 0, done.stderr
    after = load_file(work / "vae.safetensors")
    name = "encoder.stem.weight"
    change = (after[name].float() - before[name].float()).norm() / before[name].float().norm()
    assert 0 < change < 0.05
    assert (work / "dit.safetensors").read_bytes() == other
    assert [row["loaded"] for row in records(work) if row["stage"] == "start"][1] == {"vae": True, "dit": True}
    assert [entry["stage"] for entry in json.loads((work / "training.json").read_text())["stages"]] == [*STAGES, "vae"]


@pytest.mark.parametrize("name", ["bank.npz", "frontend.safetensors", "vae.safetensors"])
def test_a_stage_without_its_files_is_refused_by_name(tmp_path: Path, name: str) -> None:
    for other in {"bank.npz", "frontend.safetensors", "vae.safetensors"} - {name}:
        (tmp_path / other).touch()
    done = train(tmp_path, "--stages", "dit")
    assert done.returncode == 2
    assert f"{tmp_path / name} is missing" in done.stderr


def test_fewer_times_than_stages_are_refused(tmp_path: Path) -> None:
    done = train(tmp_path, "--minutes", "1", "2")
    assert done.returncode == 2
    assert "5 stages need as many --minutes" in done.stderr
