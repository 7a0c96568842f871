"""The whole training chain of the embedded avatar; `python -m tools.train.run --help`, and tools/train/README.md for
the story.

    python -m tools.train.run --work .train --stages vae dit policy decoder --minutes 10 8 6 3
    python -m tools.train.run --work DIR --smoke          # everything at toy size, on any CPU, in about two minutes

Each stage starts from what lies in the work folder and writes its weights there as soon as it ends, so stages can be
run one by one, on different days and machines. The render farm runs beside all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.models.audio_frontend import AudioFrontend
from pipeline.models.dit import DiT
from pipeline.models.embedded import EMBEDDED_DIT, EMBEDDED_VAE, NUM_STEPS
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import make_schedule
from tools.train.decoder_stage import DecoderSettings, train_decoder
from tools.train.dit_stage import DitSettings, LatentPool, PolicySettings, train_flow_matching, train_on_policy
from tools.train.farm import ClipPool, ClipShape, Farm
from tools.train.features import AudioBank
from tools.train.sheets import save_clip_sheet, save_roll_out_sheet
from tools.train.steps import Log
from tools.train.vae_stage import VaeSettings, train_vae

__all__ = ["main"]

STAGES = ("vae", "dit", "policy", "decoder")


def _save(module: nn.Module, path: Path) -> None:
    state = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in module.state_dict().items()}
    save_file(state, path)


def _load(module: nn.Module, path: Path) -> bool:
    """Load weights if they exist; whether they did."""
    if not path.exists():
        return False
    state = load_file(path)
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder with bank.npz and frontend.safetensors; weights come here"
    )
    parser.add_argument(
        "--slots", type=Path, default=Path("/dev/shm/visavis-clips"), help="folder of the render farm's slots"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--minutes", nargs="+", type=float, default=[12, 10, 8, 4], help="time of each stage")
    parser.add_argument("--clips", type=int, default=2400, help="clips kept on the device")
    parser.add_argument("--first-clips", type=int, default=500, help="clips to wait for before training")
    parser.add_argument("--held-out", type=int, default=16, help="people kept for validation")
    parser.add_argument("--renderers", type=int, default=14, help="render processes")
    parser.add_argument(
        "--render-devices", nargs="+", type=int, default=[0], help="EGL devices to render on; best not the training one"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="toy size: proves that the chain runs, trains nothing")
    options = parser.parse_args()
    if len(options.minutes) < len(options.stages):
        parser.error(f"{len(options.stages)} stages need as many --minutes")
    return options


def main() -> None:
    """Run the stages named on the command line."""
    options = _arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    work: Path = options.work
    log = Log(work / "train.jsonl")
    smoke = options.smoke
    if smoke:
        options.clips, options.first_clips, options.held_out, options.renderers = 3, 3, 1, 1
    steps = {"max_steps": 2} if smoke else {}

    shape = ClipShape(num_frames=24, height_px=192, width_px=128) if smoke else ClipShape()
    farm = Farm(
        options.slots,
        work / "bank.npz",
        shape,
        num_workers=options.renderers,
        seed=options.seed,
        devices=options.render_devices,
    )
    try:
        vae, vae_average = EmbeddedVAE(EMBEDDED_VAE).to(device), EmbeddedVAE(EMBEDDED_VAE).to(device)
        dit, dit_average = DiT(EMBEDDED_DIT).to(device), DiT(EMBEDDED_DIT).to(device)
        for module in (vae, vae_average):
            module.to(memory_format=torch.channels_last)
        loaded = {"vae": _load(vae, work / "vae.safetensors"), "dit": _load(dit, work / "dit.safetensors")}
        vae_average.load_state_dict(vae.state_dict())
        dit_average.load_state_dict(dit.state_dict())
        log("start", device=device, loaded=loaded, seed=options.seed, stages=options.stages, minutes=options.minutes)

        pool = ClipPool.empty(farm, capacity=options.clips, num_held_out=options.held_out, device=device)
        pool.wait_for(options.first_clips, deadline_s=600)
        log("clips", count=pool.size)
        save_clip_sheet(pool, work / "clips.png")
        levels = make_schedule(NUM_STEPS)
        latents: LatentPool | None = None
        bank: AudioBank | None = None
        for stage, minutes in zip(options.stages, options.minutes, strict=False):
            seconds = minutes * 60
            if stage == "vae":
                settings = VaeSettings(seconds=seconds, **steps, **({"batch": 1} if smoke else {}))
                train_vae(vae, vae_average, pool, settings, log)
                _save(vae_average, work / "vae.safetensors")
                latents = None
                continue
            latents = latents or LatentPool(pool, vae_average)
            bank = bank or AudioBank(
                work / "bank.npz", AudioFrontend.load(work / "frontend.safetensors").to(device), device
            )
            if stage == "dit":
                numbers = DitSettings(seconds=seconds, **steps, **({"batch": 2} if smoke else {}))
                train_flow_matching(dit, dit_average, latents, bank, vae_average, levels, numbers, log)
                _save(dit_average, work / "dit.safetensors")
            elif stage == "policy":
                policy = PolicySettings(seconds=seconds, **steps, **({"batch": 2, "decoded": 1} if smoke else {}))
                train_on_policy(dit, dit_average, latents, bank, vae_average, levels, policy, log)
                _save(dit_average, work / "dit.safetensors")
            else:
                tuning = DecoderSettings(seconds=seconds, **steps, **({"batch": 1, "fresh_clips": 2} if smoke else {}))
                train_decoder(vae, vae_average, dit_average, latents, bank, levels, tuning, log)
                _save(vae_average, work / "vae.safetensors")
            save_roll_out_sheet(dit_average, latents, bank, vae_average, levels, work / f"{stage}.png")
        numbers_of = {"vae": dataclasses.asdict(EMBEDDED_VAE), "dit": dataclasses.asdict(EMBEDDED_DIT)}
        (work / "config.json").write_text(json.dumps(numbers_of, indent=2) + "\n")
    finally:
        farm.close()


if __name__ == "__main__":
    main()
