"""Make a folder of weights that the embedded engine loads: `python -m tools.train.export WORK DEST`.

Takes what training left in the work folder, loads it into the run-time networks, and only if all of it fits writes
float16 files, their manifest and the record of the training. What else lies in the destination stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from pipeline.errors import WeightsError
from pipeline.models.audio_frontend import AudioFrontend
from pipeline.models.dit import DiT
from pipeline.models.embedded import EMBEDDED_DIT, EMBEDDED_VAE
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.weights.embedded_files import write_manifest
from tools.train.records import load_weights, save_weights

__all__ = ["export", "main"]

RECORD = "training.json"
STAGES = {"vae", "dit", "policy"}
"""Stages without which weights are not worth exporting."""


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
    vae, dit = EmbeddedVAE(EMBEDDED_VAE), DiT(EMBEDDED_DIT)
    for network, name in ((vae, "vae"), (dit, "dit")):
        path = work / f"{name}.safetensors"
        try:
            found = load_weights(network, path)
        except (RuntimeError, OSError, ValueError) as exc:
            raise WeightsError(str(path), f"does not fit the network ({exc})") from exc
        if not found:
            raise WeightsError(str(path), "missing: train it first")
    frontend = AudioFrontend.load(work / "frontend.safetensors")
    _check_record(work / RECORD)

    destination.mkdir(parents=True, exist_ok=True)
    save_weights(vae, destination / "vae.safetensors")
    save_weights(dit, destination / "dit.safetensors")
    frontend.save(destination / "frontend.safetensors")
    write_manifest(destination)
    shutil.copyfile(work / RECORD, destination / RECORD)
    return sum(path.stat().st_size for path in destination.glob("*.safetensors"))


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
