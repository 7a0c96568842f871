"""Train the embedded audio front end: `python -m tools.train.speech.train_frontend --data .train`.

Reads the banks of build_bank.py and writes `frontend.safetensors`, early and again and again. On one GPU it takes about
three minutes, on two CPU cores an hour brings most of it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.errors import ConfigError
from pipeline.models.audio_frontend import COLUMNS_PER_FRAME, AudioFrontend, AudioFrontendConfig, FrontendHeads
from tools.train.speech.augment import augment, log_of_power, power_of_log
from tools.train.speech.bank import SpeechBank, dequantise_mel
from tools.train.speech.frontend_score import score_prediction
from tools.train.speech.visemes import JAW_OPENING, VISEMES, rounding

__all__ = ["SpeechPool", "TrainOptions", "evaluate", "main", "train"]

_QUIET = "quiet"
_QUIET_SHARE = 0.08
# Rare or telling mouth shapes count more.
_VISEME_IMPORTANCE = {"PP": 3.0, "FF": 2.0, "U": 2.0, "O": 1.6, "CH": 1.4, "aa": 1.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train."""

    steps: int
    """How many optimiser steps, if `max_s` allows them."""
    max_s: float
    """Wall-clock limit in seconds; the learning rate follows whichever of the two runs out first."""
    batch: int
    """Clips per step."""
    clip_frames: int
    """Video frames per clip."""
    learning_rate: float
    """At its peak."""
    seed: int
    """Seed of weights, clips and augmentation."""
    average_decay: float = 0.998
    """Of the running mean of the weights, which is what is saved."""
    log_every: int = 250
    """Steps between validations."""


class SpeechPool:
    """All speech of some banks on one device, for random access.

    Args:
        banks: The banks.
        device: Where to keep it.
        context_columns: Silence put between sources, at least as long as the network looks back and ahead.
    """

    def __init__(self, banks: list[SpeechBank], device: torch.device, *, context_columns: int) -> None:
        gap_frames = -(-context_columns // COLUMNS_PER_FRAME)
        codes, labels, classes, loudness = [], [], [], []
        self.runs: dict[tuple[str, bool], list[tuple[int, int]]] = {}
        place = gap_frames
        for bank in banks:
            for name, source in bank.sources.items():
                for is_held_out in (False, True):
                    runs = self.runs.setdefault((name, is_held_out), [])
                    runs += [(place + first, count) for first, count in source.runs(held_out=is_held_out)]
                codes.append(_pad(source.mel_codes, gap_frames * COLUMNS_PER_FRAME))
                labels.append(_pad(source.visemes, gap_frames))
                loudness.append(_pad(source.loudness, gap_frames))
                classes.append(_pad(source.classes, gap_frames))
                place += source.num_frames + 2 * gap_frames
        self.codes = torch.from_numpy(np.concatenate(codes)).to(device)
        self.labels = torch.from_numpy(np.concatenate(labels)).to(device)
        self.loudness = torch.from_numpy(np.concatenate(loudness)).to(device)
        self.classes = torch.from_numpy(np.concatenate(classes)).long().to(device)
        self._lowest, self._step = _dequantisation()
        self.device = device

    def starts(self, names: list[str], num_frames: int, *, held_out: bool) -> Tensor:
        """List all frames at which a clip of this length may begin, (n,)."""
        found = [
            torch.arange(first, first + count - num_frames + 1)
            for name in names
            for first, count in self.runs[name, held_out]
            if count >= num_frames
        ]
        if not found:
            raise ConfigError("clip_frames", num_frames, f"no run of {names} is that long")
        return torch.cat(found).to(self.device)

    def mel(self, starts_B: Tensor, num_frames: int, config: AudioFrontendConfig) -> Tensor:
        """Gather log-mel with the context that the network needs, (B, T, M)."""
        num_columns = config.past_columns + num_frames * COLUMNS_PER_FRAME + config.future_columns
        first_B = starts_B * COLUMNS_PER_FRAME - config.past_columns
        index_BT = first_B[:, None] + torch.arange(num_columns, device=self.device)
        mel_BTM: Tensor = self.codes[index_BT].float() * self._step + self._lowest
        return mel_BTM

    def targets(self, starts_B: Tensor, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gather viseme weights (B, F, V), viseme classes (B, F) and jaw opening (B, F)."""
        index_BF = starts_B[:, None] + torch.arange(num_frames, device=self.device)
        weights_BFV = self.labels[index_BF].float()
        weights_BFV = weights_BFV / weights_BFV.sum(-1, keepdim=True).clamp_min(1.0)
        opening = torch.tensor([JAW_OPENING[name] for name in VISEMES], device=self.device)
        loudness_BF = self.loudness[index_BF].float() * (3.0 / 255.0)
        jaw_BF = (weights_BFV @ opening) * (0.7 + 0.3 * loudness_BF.clamp_max(1.5))
        return weights_BFV, self.classes[index_BF], jaw_BF


def _dequantisation() -> tuple[float, float]:
    values = dequantise_mel(np.array([0, 1], np.uint8))
    return float(values[0]), float(values[1] - values[0])


def _pad(array: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    return np.pad(array, [(count, count)] + [(0, 0)] * (array.ndim - 1))


def _loss(heads: FrontendHeads, features_BFD: Tensor, targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    weights_BFV, classes_BF, jaw_BF = targets
    logits_BFV, class_logits_BFV, opening_BF = heads(features_BFD.float())
    importance = torch.tensor([_VISEME_IMPORTANCE.get(name, 1.0) for name in VISEMES], device=jaw_BF.device)
    share_BF = weights_BFV @ importance
    log_weights_BFV = logits_BFV.log_softmax(-1)
    divergence = -(share_BF * (weights_BFV * log_weights_BFV).sum(-1)).mean()
    distance = (share_BF[..., None] * (log_weights_BFV.exp() - weights_BFV).abs()).sum(-1).mean()
    naming = cross_entropy(class_logits_BFV.flatten(0, 1), classes_BF.flatten(), label_smoothing=0.05)
    opening = ((opening_BF - jaw_BF) ** 2).mean()
    speed = ((opening_BF.diff(dim=1) - jaw_BF.diff(dim=1)) ** 2).mean()
    total: Tensor = divergence + distance + 0.5 * naming + 10.0 * (opening + speed)
    return total


def _predict(
    frontend: AudioFrontend, heads: FrontendHeads, mel_BTM: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        logits_BFV, _, jaw_BF = heads(frontend(mel_BTM))
    return logits_BFV.softmax(-1).flatten(0, 1).float().cpu().numpy(), jaw_BF.flatten().float().cpu().numpy()


def evaluate(frontend: AudioFrontend, heads: FrontendHeads, pool: SpeechPool) -> dict[str, dict[str, float]]:
    """Score on held-out speech, source by source, without augmentation.

    Args:
        frontend: The network.
        heads: Its heads.
        pool: The speech.

    Returns:
        Figures by source; for sounds that are no speech, the mean opening of the jaw.
    """
    figures = {}
    for name in sorted({name for name, is_held_out in pool.runs if is_held_out and pool.runs[name, True]}):
        weights, jaws, labels, loudness = [], [], [], []
        for first, count in pool.runs[name, True][:60]:
            start = torch.tensor([first], device=pool.device)
            predicted = _predict(frontend, heads, pool.mel(start, count, frontend.config))
            weights.append(predicted[0])
            jaws.append(predicted[1])
            labels.append(pool.targets(start, count)[0][0].cpu().numpy())
            loudness.append(pool.loudness[first : first + count].float().cpu().numpy() * np.float32(3.0 / 255.0))
        if name == _QUIET:
            weight, jaw = np.concatenate(weights), np.concatenate(jaws)
            figures[name] = {"jaw": float(jaw.mean()), "jaw_p99": float(np.quantile(jaw, 0.99))}
            figures[name]["rounding"] = float(rounding(weight).mean())
        else:
            score = score_prediction(
                np.concatenate(weights),
                np.concatenate(jaws),
                labels=np.concatenate(labels),
                loudness=np.concatenate(loudness),
            )
            figures[name] = asdict(score)
    return figures


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, fresh in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(fresh, 1.0 - decay)


def train(
    config: AudioFrontendConfig, banks: list[SpeechBank], options: TrainOptions, *, path: Path, device: torch.device
) -> dict[str, dict[str, float]]:
    """Train from random weights.

    Args:
        config: Sizes of the network.
        banks: The speech.
        options: How to train.
        path: Where the weights go, at every validation.
        device: Where to compute.

    Returns:
        The figures of the last validation.
    """
    torch.manual_seed(options.seed)
    generator = torch.Generator(device).manual_seed(options.seed)
    model = nn.ModuleList([AudioFrontend(config), FrontendHeads(config)]).to(device)
    average = nn.ModuleList([AudioFrontend(config), FrontendHeads(config)]).to(device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    pool = SpeechPool(banks, device, context_columns=config.past_columns + config.future_columns)
    speech_names = sorted(name for name, is_held_out in pool.runs if not is_held_out and name != _QUIET)
    speech_names = [name for name in speech_names if pool.runs[name, False]]
    speech = [pool.starts([name], options.clip_frames, held_out=False) for name in speech_names]
    quiet = pool.starts([_QUIET], options.clip_frames, held_out=False)
    # Between equal shares for all sources and shares by length.
    shares = torch.tensor([len(starts) ** 0.5 for starts in speech], device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.02, betas=(0.9, 0.98))

    def draw(places: Tensor, count: int) -> Tensor:
        return places[torch.randint(len(places), (count,), generator=generator, device=device)]

    begun_s = time.monotonic()
    step = 0
    figures: dict[str, dict[str, float]] = {}
    losses: list[Tensor] = []
    while True:
        elapsed_s = time.monotonic() - begun_s
        progress = max(step / options.steps, elapsed_s / options.max_s)
        if step and (step % options.log_every == 0 or progress >= 1.0):
            average.eval()
            figures = evaluate(average[0], average[1], pool)  # type: ignore[arg-type]
            average[0].save(path, heads=average[1])  # type: ignore[operator]
            record = {
                "step": step,
                "elapsed_s": round(elapsed_s, 1),
                "loss": round(torch.stack(losses).mean().item(), 4),
            }
            print(json.dumps(record | {"held_out": _rounded(figures)}), flush=True)
            losses.clear()
        if progress >= 1.0:
            return figures
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 200) * (1.0 - progress) ** 0.7
        num_quiet = max(1, round(_QUIET_SHARE * options.batch))
        kinds = torch.multinomial(shares, options.batch - num_quiet, replacement=True, generator=generator).tolist()
        starts_B = torch.cat([draw(speech[kind], kinds.count(kind)) for kind in set(kinds)] + [draw(quiet, num_quiet)])
        power_BTM = power_of_log(pool.mel(starts_B, options.clip_frames, config))
        other_BTM = power_of_log(pool.mel(draw(quiet, options.batch), options.clip_frames, config))
        mel_BTM = log_of_power(augment(power_BTM, other_BTM, generator))
        # bfloat16 convolutions are slow in the CPU build.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features_BFD = model[0](mel_BTM)
        loss = _loss(model[1], features_BFD, pool.targets(starts_B, options.clip_frames))  # type: ignore[arg-type]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _average(average, model, min(options.average_decay, (1 + step) / (10 + step)))
        losses.append(loss.detach())
        step += 1


def _rounded(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {key: round(value, 3) for key, value in part.items()} for name, part in figures.items()}


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded audio front end.")
    parser.add_argument("--data", type=Path, default=Path(".train"), help="folder with the banks")
    parser.add_argument("--out", type=Path, help="weights to write (default: frontend.safetensors in the data folder)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--steps", type=int, default=12_000, help="optimiser steps at most")
    parser.add_argument("--minutes", type=float, default=3.0, help="wall-clock limit")
    parser.add_argument("--batch", type=int, default=128, help="clips per step")
    parser.add_argument("--clip-frames", type=int, default=75, help="video frames per clip")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="at its peak")
    parser.add_argument("--lookahead-frames", type=int, default=1, help="40 ms of delay each")
    parser.add_argument("--dim", type=int, default=160, help="width of a feature column")
    parser.add_argument("--log-every", type=int, default=500, help="steps between validations")
    parser.add_argument("--seed", type=int, default=1, help="seed of all chance")
    options = parser.parse_args(arguments)
    names = ("bank.npz", "bank_more.npz", "librivox.npz")
    banks = [SpeechBank.load(options.data / name) for name in names if (options.data / name).exists()]
    train(
        AudioFrontendConfig(dim=options.dim, lookahead_frames=options.lookahead_frames),
        banks,
        TrainOptions(
            steps=options.steps,
            max_s=60.0 * options.minutes,
            batch=options.batch,
            clip_frames=options.clip_frames,
            learning_rate=options.learning_rate,
            seed=options.seed,
            log_every=options.log_every,
        ),
        path=options.out or options.data / "frontend.safetensors",
        device=torch.device(options.device),
    )


if __name__ == "__main__":
    main()
