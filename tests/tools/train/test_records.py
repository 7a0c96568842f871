"""Weights and record in a work folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tools.train.records import load_weights, note_stage, save_weights

pytestmark = pytest.mark.unit


def test_weights_come_back_rounded_to_float16_and_whole_numbers_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, again = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    network(torch.randn(8, 3))
    path = tmp_path / "n.safetensors"
    save_weights(network, path)
    assert load_file(path)["running_mean"].dtype == torch.float16
    assert load_weights(again, path)
    assert again.running_mean is not None
    assert network.running_mean is not None
    assert torch.equal(again.running_mean, network.running_mean.half().float())
    assert int(again.num_batches_tracked or 0) == 1
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
