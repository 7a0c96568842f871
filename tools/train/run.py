"""The whole training chain of the embedded avatar; `python -m tools.train.run --help`, and tools/train/README.md for
the story.

    python -m tools.train.run --work .train --stages vae dit policy decoder polish --minutes 12 10 4 7 3
    python -m tools.train.run --work DIR --smoke          # everything at toy size, on any CPU, in about a minute

Each stage starts from what lies in the work folder and writes its weights there as soon as it ends, so stages can be
run one by one, on different days and machines. The render farm runs beside all of them. `training.json` tells what was
run. On several GPUs: `python -m torch.distributed.run --nproc-per-node N -m tools.train.run ...`; every process then
has its own render processes and its own clips.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import torch

from pipeline.models.audio_frontend import AudioFrontend
from pipeline.models.dit import DiT
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import EMBEDDED_STEPS, make_schedule
from tools.train import sizes
from tools.train.decoder_stage import DecoderSettings, DecoderStage
from tools.train.farm import SLOTS_PER_WORKER, ClipPool, ClipShape, Farm
from tools.train.features import AudioBank
from tools.train.flow_stage import FlowSettings, FlowStage
from tools.train.latents import LatentPool
from tools.train.loop import Stage, run_stage
from tools.train.policy_stage import PolicySettings, PolicyStage
from tools.train.polish_stage import PolishSettings, PolishStage
from tools.train.records import load_weights, note_stage, save_weights
from tools.train.regions import compile_regions
from tools.train.replicas import Replicas
from tools.train.sheets import save_clip_sheet, save_roll_out_sheet
from tools.train.steps import Log
from tools.train.subpixels import damp_subpixels
from tools.train.vae_stage import VaeSettings, VaeStage
from tools.train.views import SCALES, ClipView

__all__ = ["main"]

StageSettings = VaeSettings | FlowSettings | PolicySettings | DecoderSettings | PolishSettings

STAGES: dict[str, type[StageSettings]] = {
    "vae": VaeSettings,
    "dit": FlowSettings,
    "policy": PolicySettings,
    "decoder": DecoderSettings,
    "polish": PolishSettings,
}
ON_ROLL_OUTS = ("decoder", "polish")
"""Those that are a `tools.train.roll_out_stage.RollOutStage`."""
FIRST_CLIPS_DEADLINE_S = 600
TOY_SHAPE = ClipShape(num_frames=24, height_px=128, width_px=128)
TOY_SETTINGS = {
    "vae": {"batch": 1, "max_steps": 2},
    "dit": {"batch": 2, "max_steps": 2},
    "policy": {"batch": 2, "decoded": 1, "max_steps": 1},
    "decoder": {"batch": 1, "fresh_clips": 2, "max_steps": 1},
    "polish": {"batch": 2, "people": 1, "max_steps": 1},
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
    parser.add_argument("--minutes", nargs="+", type=float, default=[12, 10, 4, 7, 3], help="time of each stage")
    parser.add_argument("--clips", type=int, default=2400, help="clips kept on the device")
    parser.add_argument("--first-clips", type=int, default=500, help="clips to wait for before training")
    parser.add_argument("--held-out", type=int, default=16, help="people kept for validation")
    parser.add_argument("--renderers", type=int, default=14, help="render processes")
    parser.add_argument(
        "--render-devices", nargs="+", type=int, default=[0], help="EGL devices to render on; best not the training one"
    )
    parser.add_argument(
        "--first-renderers", type=int, default=0, help="more of them, that end when the first clips are there"
    )
    parser.add_argument("--first-render-devices", nargs="+", type=int, default=[0], help="EGL devices of those")
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
        options.clips, options.first_clips, options.held_out = 2, 2, 1
        options.renderers, options.first_renderers = 1, 0
    return options


class _Chain:
    """The networks of a run and the data they are trained on."""

    def __init__(self, work: Path, pool: ClipPool, replicas: Replicas) -> None:
        self._work, self._pool, self._replicas = work, pool, replicas
        self._levels = make_schedule(EMBEDDED_STEPS)
        device = replicas.device
        self._vae, self._vae_average = (EmbeddedVAE(sizes.VAE).to(device) for _ in range(2))
        self._dit, self._dit_average = (DiT(sizes.DIT).to(device) for _ in range(2))
        for vae in (self._vae, self._vae_average):
            vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loaded = {
            "vae": load_weights(self._vae, work / "vae.safetensors"),
            "dit": load_weights(self._dit, work / "dit.safetensors"),
        }
        self._vae_average.load_state_dict(self._vae.state_dict())
        self._dit_average.load_state_dict(self._dit.state_dict())
        self._views = [ClipView(pool, scale) for scale in SCALES]
        self._latents: list[LatentPool] = []
        self._bank: AudioBank | None = None

    def stage(self, settings: StageSettings) -> Stage:
        """Make the stage that belongs to some settings.

        Args:
            settings: Its numbers.

        Returns:
            The stage, ready to run.
        """
        if isinstance(settings, VaeSettings):
            self._latents = []
            return VaeStage(self._vae, self._vae_average, self._views, settings)
        latents, bank = self._data()
        on_roll_outs = (self._vae, self._vae_average, self._dit_average, latents, bank, self._levels)
        if isinstance(settings, DecoderSettings):
            return DecoderStage(*on_roll_outs, settings)
        if isinstance(settings, PolishSettings):
            return PolishStage(*on_roll_outs, settings)
        common = (self._dit, self._dit_average, latents, bank, self._vae_average, self._levels)
        if isinstance(settings, FlowSettings):
            return FlowStage(*common, settings)
        return PolicyStage(*common, settings)

    def renew(self, places: list[int]) -> None:
        """Take note of clips that came into the pool between stages.

        Args:
            places: Where they are.
        """
        for latents in self._latents:
            latents.encode(places)

    def finish(self, stage: str) -> None:
        """Mend what a discriminator leaves in the decoder, in every replica.

        Args:
            stage: After which.
        """
        if stage in ("vae", "decoder"):
            damp_subpixels(self._vae_average.decoder.out)

    def save(self, stage: str) -> None:
        """Write all weights, and a sheet of what they make of held-out people.

        Args:
            stage: After which.
        """
        save_weights(self._vae_average, self._work / "vae.safetensors")
        if stage == "vae":
            return
        save_weights(self._dit_average, self._work / "dit.safetensors")
        latents, bank = self._data()
        for part in latents:
            name = f"{stage}.png" if part.view.scale == 1 else f"{stage}-small.png"
            save_roll_out_sheet(self._dit_average, part, bank, self._vae_average, self._levels, self._work / name)

    def _data(self) -> tuple[list[LatentPool], AudioBank]:
        """Encode the pool and load the audio, once."""
        self._latents = self._latents or [LatentPool(view, self._vae_average) for view in self._views]
        if self._bank is None:
            frontend = AudioFrontend.load(self._work / "frontend.safetensors").to(self._replicas.device)
            self._bank = AudioBank(self._work / "bank.npz", frontend, self._replicas.device)
        return self._latents, self._bank


def _start_farm(options: argparse.Namespace, shape: ClipShape, rank: int) -> Farm:
    return Farm(
        options.slots.with_name(f"{options.slots.name}-{rank}"),
        options.work / "bank.npz",
        shape,
        num_workers=options.renderers,
        num_first_workers=options.first_renderers,
        rank=rank,
        seed=options.seed,
        devices=options.render_devices,
        first_devices=options.first_render_devices,
        slots_per_worker=1 if options.smoke else SLOTS_PER_WORKER,
    )


def _run(options: argparse.Namespace, farm: Farm, shape: ClipShape, replicas: Replicas, log: Log) -> None:
    """Run the stages one after the other."""
    work: Path = options.work
    held_out = options.held_out if replicas.is_first else 0
    pool = ClipPool.empty(farm, capacity=options.clips, num_held_out=held_out, device=replicas.device)
    # Enough to compile with; the rest comes meanwhile.
    pool.wait_for(held_out + 1, FIRST_CLIPS_DEADLINE_S)
    chain = _Chain(work, pool, replicas)
    if replicas.is_first:
        log("start", device=replicas.device, replicas=replicas.count, loaded=chain.loaded, seed=options.seed)

    def begin() -> list[int]:
        places = pool.wait_for(options.first_clips, FIRST_CLIPS_DEADLINE_S)
        farm.dismiss_first()
        if replicas.is_first:
            log("clips", count=pool.size)
            save_clip_sheet(pool, work / "clips.png")
        return places

    for name, minutes in zip(options.stages, options.minutes, strict=False):
        settings = STAGES[name](seconds=minutes * 60, **(TOY_SETTINGS[name] if options.smoke else {}))
        if name in ON_ROLL_OUTS:
            chain.renew(begin())
        result = run_stage(chain.stage(settings), pool, settings, log, replicas, begin)
        chain.finish(name)
        if not replicas.is_first:
            continue
        chain.save(name)
        data = {
            "seed": options.seed, "people": pool.taken * replicas.count, "replicas": replicas.count,
            "clip": dataclasses.asdict(shape),
        }  # fmt: skip
        numbers = dataclasses.asdict(settings)
        note_stage(work / "training.json", name, device=replicas.device, settings=numbers, data=data, result=result)


def main(words: list[str] | None = None) -> None:
    """Run the stages named on the command line.

    Args:
        words: The command line; None for the process's own.
    """
    options = _arguments(words)
    # For the render processes, which inherit it: one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    shape = TOY_SHAPE if options.smoke else ClipShape()
    with Replicas() as replicas, Log(options.work / "train.jsonl") as log:
        torch.manual_seed(1000 * options.seed + replicas.rank)
        torch.set_num_threads(2)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        if replicas.device == "cuda" and not options.smoke:
            compile_regions()
        farm = _start_farm(options, shape, replicas.rank)
        try:
            _run(options, farm, shape, replicas, log)
        finally:
            farm.close()


if __name__ == "__main__":
    main()
