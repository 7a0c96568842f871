"""Make a folder of weights that the embedded engine loads: `python -m tools.train.export WORK DEST`.

Takes what training left in the work folder, loads it into the run-time networks, and only if all of it fits writes
float16 files, their manifest and the record of the training. What else lies in the destination stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pipeline.errors import WeightsError
from pipeline.models.audio_frontend import AudioFrontend
from pipeline.models.dit import DiT
from pipeline.models.dit_config import DiTConfig
from pipeline.models.embedded_vae import EmbeddedVAE, EmbeddedVAEConfig
from pipeline.weights.embedded_files import load_network, write_manifest
from tools.train.records import save_weights

__all__ = ["export", "main"]

RECORD = "training.json"
STAGES = {"vae", "dit", "policy"}
"""Stages without which weights are not worth exporting."""

Network = TypeVar("Network", bound=nn.Module)


def export(work: Path, destination: Path) -> int:
    """Export a work folder.

    Args:
        work: Where `tools.train.run` and `tools.train.speech.train_frontend` wrote.
        destination: Made if missing.

    Returns:
        Size of the written weights in bytes.

    Raises:
        WeightsError: Something is missing, unreadable, or does not fit the run-time networks; nothing was written.
    """
    vae = _load(work / "vae.safetensors", lambda sizes: EmbeddedVAE(EmbeddedVAEConfig(**sizes)))
    dit = _load(work / "dit.safetensors", lambda sizes: DiT(DiTConfig(**sizes)))
    frontend = AudioFrontend.load(work / "frontend.safetensors")
    _check_record(work / RECORD)

    destination.mkdir(parents=True, exist_ok=True)
    save_weights(vae, destination / "vae.safetensors")
    save_weights(dit, destination / "dit.safetensors")
    frontend.save(destination / "frontend.safetensors")
    write_manifest(destination)
    shutil.copyfile(work / RECORD, destination / RECORD)
    return sum(path.stat().st_size for path in destination.glob("*.safetensors"))


def _load(path: Path, build: Callable[[dict[str, Any]], Network]) -> Network:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise WeightsError(str(path), "missing: train it first") from exc
    return load_network(path, data, build)


def _check_record(path: Path) -> None:
    try:
        done = {str(entry["stage"]) for entry in json.loads(path.read_text())["stages"]}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise WeightsError(str(path), f"the record of the training cannot be read ({exc})") from exc
    if missing := STAGES - done:
        raise WeightsError(str(path), f"stages not run yet: {', '.join(sorted(missing))}")


def main() -> None:
    """Export the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="the work folder of the training")
    parser.add_argument("destination", type=Path, help="the folder of weights, for instance pipeline/weights/embedded")
    options = parser.parse_args()
    try:
        num_bytes = export(options.work, options.destination)
    except WeightsError as exc:
        parser.exit(1, f"{exc}\n")
    print(f"{num_bytes / 1e6:.1f} MB in {options.destination}")


if __name__ == "__main__":
    main()
