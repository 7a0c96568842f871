"""Weights and record in a work folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pipeline.models.embedded_vae import EmbeddedVAE, EmbeddedVAEConfig
from tools.train.records import load_weights, note_stage, save_weights

pytestmark = pytest.mark.unit

VAE = EmbeddedVAEConfig(
    latent_channels=4,
    motion_signal_dim=3,
    encoder_widths=(4, 4, 4),
    decoder_widths=(4, 4, 4, 4),
    portrait_widths=(4, 4, 4),
)


def test_weights_come_back_rounded_to_float16_and_whole_numbers_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, again = EmbeddedVAE(VAE), EmbeddedVAE(VAE)
    network.encode(torch.randn(1, 4, 3, 32, 32))
    path = tmp_path / "n.safetensors"
    save_weights(network, path)
    assert load_file(path)["latent_norm.running_mean"].dtype == torch.float16
    assert load_weights(again, path)
    mean, same = network.latent_norm.running_mean, again.latent_norm.running_mean
    assert mean is not None
    assert same is not None
    assert torch.equal(same, mean.half().float())
    assert int(again.latent_norm.num_batches_tracked or 0) == 1
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["config"])["latent_channels"] == VAE.latent_channels
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]
    assert path.stat().st_mode & 0o444 == 0o444


def test_no_file_is_no_weights(tmp_path: Path) -> None:
    assert not load_weights(nn.Linear(1, 1), tmp_path / "none.safetensors")


def test_stages_are_added_to_the_record(tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    for stage in ("vae", "dit"):
        note_stage(
            path, stage, device="cpu", settings={"batch": 2}, data={"seed": 3}, result={"steps": 4, "psnr_db": 31.23456}
        )
    record = json.loads(path.read_text())
    assert [entry["stage"] for entry in record["stages"]] == ["vae", "dit"]
    entry = record["stages"][1]
    assert (entry["device"], entry["settings"], entry["data"]) == ("CPU", {"batch": 2}, {"seed": 3})
    assert entry["result"] == {"steps": 4, "psnr_db": 31.23}
    assert set(record["networks"]) == {"vae", "dit"}
