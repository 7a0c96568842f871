"""The whole training chain of the embedded avatar; `python -m tools.train.run --help`, and tools/train/README.md for
the story.

    python -m tools.train.run --work .train --stages vae dit policy decoder --minutes 10 8 6 3
    python -m tools.train.run --work DIR --smoke          # everything at toy size, on any CPU, in about a minute

Each stage starts from what lies in the work folder and writes its weights there as soon as it ends, so stages can be
run one by one, on different days and machines. The render farm runs beside all of them. `training.json` tells what was
run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import torch

from pipeline.models.audio_frontend import AudioFrontend
from pipeline.models.dit import DiT
from pipeline.models.embedded import EMBEDDED_DIT, EMBEDDED_VAE, NUM_STEPS
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import make_schedule
from tools.train.decoder_stage import DecoderSettings, train_decoder
from tools.train.dit_stage import DitSettings, LatentPool, PolicySettings, train_flow_matching, train_on_policy
from tools.train.farm import SLOTS_PER_WORKER, ClipPool, ClipShape, Farm
from tools.train.features import AudioBank
from tools.train.records import load_weights, note_stage, save_weights
from tools.train.regions import compile_regions
from tools.train.sheets import save_clip_sheet, save_roll_out_sheet
from tools.train.steps import Log
from tools.train.vae_stage import VaeSettings, train_vae

__all__ = ["main"]

StageSettings = VaeSettings | DitSettings | PolicySettings | DecoderSettings

STAGES: dict[str, type[StageSettings]] = {
    "vae": VaeSettings,
    "dit": DitSettings,
    "policy": PolicySettings,
    "decoder": DecoderSettings,
}
TOY_SHAPE = ClipShape(num_frames=24, height_px=128, width_px=96)
TOY_SETTINGS = {
    "vae": {"batch": 1, "max_steps": 2},
    "dit": {"batch": 2, "max_steps": 2},
    "policy": {"batch": 2, "decoded": 1, "max_steps": 1},
    "decoder": {"batch": 1, "fresh_clips": 2, "max_steps": 1},
}


def _arguments(words: list[str] | None) -> argparse.Namespace:
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
    options = parser.parse_args(words)
    if len(options.minutes) < len(options.stages):
        parser.error(f"{len(options.stages)} stages need as many --minutes")
    needed = ["bank.npz", "frontend.safetensors", *(["vae.safetensors"] if options.stages[0] != "vae" else [])]
    for name in needed:
        if not (options.work / name).is_file():
            parser.error(f"{options.work / name} is missing")
    if options.smoke:
        options.clips, options.first_clips, options.held_out, options.renderers = 2, 2, 1, 1
    return options


class _Chain:
    """The networks of a run and the data they are trained on."""

    def __init__(self, work: Path, pool: ClipPool, device: str, log: Log) -> None:
        self._work, self._pool, self._device, self._log = work, pool, device, log
        self._levels = make_schedule(NUM_STEPS)
        self._vae, self._vae_average = (EmbeddedVAE(EMBEDDED_VAE).to(device) for _ in range(2))
        self._dit, self._dit_average = (DiT(EMBEDDED_DIT).to(device) for _ in range(2))
        for vae in (self._vae, self._vae_average):
            vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loaded = {
            "vae": load_weights(self._vae, work / "vae.safetensors"),
            "dit": load_weights(self._dit, work / "dit.safetensors"),
        }
        self._vae_average.load_state_dict(self._vae.state_dict())
        self._dit_average.load_state_dict(self._dit.state_dict())
        self._latents: LatentPool | None = None
        self._bank: AudioBank | None = None

    def run(self, stage: str, settings: StageSettings) -> dict[str, float]:
        """Run a stage and save what it trained.

        Args:
            stage: Its name.
            settings: Its numbers.

        Returns:
            What the stage measured at its end.
        """
        if isinstance(settings, VaeSettings):
            result = train_vae(self._vae, self._vae_average, self._pool, settings, self._log)
            save_weights(self._vae_average, self._work / "vae.safetensors")
            self._latents = None
            return result
        latents, bank = self._data()
        common = (latents, bank, self._vae_average, self._levels)
        if isinstance(settings, DitSettings):
            result = train_flow_matching(self._dit, self._dit_average, *common, settings, self._log)
        elif isinstance(settings, PolicySettings):
            result = train_on_policy(self._dit, self._dit_average, *common, settings, self._log)
        else:
            result = train_decoder(
                self._vae, self._vae_average, self._dit_average, latents, bank, self._levels, settings, self._log
            )
        save_weights(self._dit_average, self._work / "dit.safetensors")
        save_weights(self._vae_average, self._work / "vae.safetensors")
        save_roll_out_sheet(self._dit_average, *common, self._work / f"{stage}.png")
        return result

    def _data(self) -> tuple[LatentPool, AudioBank]:
        """Encode the pool and load the audio, once."""
        self._latents = self._latents or LatentPool(self._pool, self._vae_average)
        if self._bank is None:
            frontend = AudioFrontend.load(self._work / "frontend.safetensors").to(self._device)
            self._bank = AudioBank(self._work / "bank.npz", frontend, self._device)
        return self._latents, self._bank


def main(words: list[str] | None = None) -> None:
    """Run the stages named on the command line.

    Args:
        words: The command line; None for the process's own.
    """
    options = _arguments(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    if device == "cuda" and not options.smoke:
        compile_regions()
    torch.set_float32_matmul_precision("high")
    # For the render processes, which inherit it: one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    work: Path = options.work
    shape = TOY_SHAPE if options.smoke else ClipShape()
    with Log(work / "train.jsonl") as log:
        farm = Farm(
            options.slots,
            work / "bank.npz",
            shape,
            num_workers=options.renderers,
            seed=options.seed,
            devices=options.render_devices,
            slots_per_worker=1 if options.smoke else SLOTS_PER_WORKER,
        )
        try:
            pool = ClipPool.empty(farm, capacity=options.clips, num_held_out=options.held_out, device=device)
            chain = _Chain(work, pool, device, log)
            log("start", device=device, loaded=chain.loaded, seed=options.seed, stages=options.stages)
            pool.wait_for(options.first_clips, deadline_s=600)
            log("clips", count=pool.size)
            save_clip_sheet(pool, work / "clips.png")
            for stage, minutes in zip(options.stages, options.minutes, strict=False):
                settings = STAGES[stage](seconds=minutes * 60, **(TOY_SETTINGS[stage] if options.smoke else {}))
                result = chain.run(stage, settings)
                numbers = dataclasses.asdict(settings)
                data = {"seed": options.seed, "people": pool.taken, "clip": dataclasses.asdict(shape)}
                note_stage(work / "training.json", stage, device=device, settings=numbers, data=data, result=result)
        finally:
            farm.close()


if __name__ == "__main__":
    main()
