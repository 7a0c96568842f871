"""What a run leaves in its work folder: weights in float16, and `training.json`, which tells how they were made."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from pipeline.models.dit import DiT
from pipeline.models.embedded_vae import EmbeddedVAE
from tools.train import sizes

__all__ = ["load_weights", "note_stage", "save_weights"]

ROOT = Path(__file__).parents[2]


def save_weights(network: EmbeddedVAE | DiT, path: Path) -> None:
    """Write a network's weights in float16, its sizes in the header, so that the file is whole or not there.

    Args:
        network: The network.
        path: The file.
    """
    state = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in network.state_dict().items()}
    partial = path.with_suffix(".part")
    # Plain writing, so that the file gets the usual permissions: safetensors' own writer keeps others from reading.
    partial.write_bytes(save(state, metadata={"config": json.dumps(dataclasses.asdict(network.config))}))
    os.replace(partial, path)


def load_weights(network: nn.Module, path: Path) -> bool:
    """Load weights, if there are any.

    Args:
        network: Changed in place.
        path: A file that `save_weights` wrote, or none.

    Returns:
        Whether the file was there.
    """
    if not path.exists():
        return False
    state = load_file(path)
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return True


def note_stage(
    path: Path,
    stage: str,
    *,
    device: str,
    settings: Mapping[str, object],
    data: Mapping[str, object],
    result: Mapping[str, float],
) -> None:
    """Add a stage to the record of a run; earlier stages, of earlier days too, stay.

    Args:
        path: The record, a JSON file.
        stage: Name of the stage.
        device: What it ran on, as torch calls it.
        settings: Its numbers.
        data: What it was trained on.
        result: What it measured at its end.
    """
    record = json.loads(path.read_text()) if path.exists() else {"stages": []}
    record["networks"] = {"vae": dataclasses.asdict(sizes.VAE), "dit": dataclasses.asdict(sizes.DIT)}
    rounded = {name: float(f"{value:.4g}") for name, value in result.items()}
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    record["stages"].append(
        {
            "stage": stage,
            "commit": _commit(),
            "device": name,
            "data": dict(data),
            "settings": dict(settings),
            "result": rounded,
        }
    )
    path.write_text(json.dumps(record, indent=2) + "\n")


def _commit() -> str | None:
    """Commit of the code, with a mark where it has changes; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
