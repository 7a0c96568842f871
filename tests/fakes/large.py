"""The large engine at a tiny size: its configuration, what goes in, what comes out, and how its networks are asked."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.api import StreamParams
from pipeline.config import EngineConfig, LargeConfig
from pipeline.geometry import WINDOW_SAMPLES
from pipeline.models.dit import DiT
from pipeline.worker.large import LargeModel, LargeStream
from pipeline.worker.large_networks import OfficialNetworks
from pipeline.worker.model import StageMarks

HEIGHT, WIDTH = 64, 128
NUM_WINDOWS = 5
STILL = StreamParams()


def config_of(folder: Path | None, *, num_steps: int | None = None, **large: object) -> EngineConfig:
    settings = {"device": "cpu", "cache_dir": None, "height_px": HEIGHT, "width_px": WIDTH, "prompt": "talk", **large}
    return EngineConfig(
        name="large",
        weights_dir=folder,
        threads=1,
        num_steps=num_steps,
        large=LargeConfig.model_validate(settings),
    )


def portrait(seed: int = 0) -> NDArray[np.uint8]:
    """A picture of soft spots of colour."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 4, 8)))
    smooth = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")
    return smooth[0].permute(1, 2, 0).to(torch.uint8).numpy()


def sound(num_windows: int = NUM_WINDOWS) -> NDArray[np.int16]:
    """Noise that swells and fades, with silence for the last right context."""
    samples = np.random.default_rng(1).standard_normal(num_windows * WINDOW_SAMPLES)
    swell = 1 + np.sin(np.arange(len(samples)) / 3000)
    return (1500 * samples * swell).astype(np.int16)


def windows(model: LargeModel, num_windows: int = NUM_WINDOWS) -> list[NDArray[np.int16]]:
    padded = np.pad(sound(num_windows), (0, model.right_context_samples))
    length = WINDOW_SAMPLES + model.right_context_samples
    return [padded[w * WINDOW_SAMPLES : w * WINDOW_SAMPLES + length] for w in range(num_windows)]


def open_stream(
    model: LargeModel, *, seed: int = 0, prompt: str | None = None, params: StreamParams = STILL, face: int = 0
) -> LargeStream:
    return model.open_stream(portrait=portrait(face), prompt=prompt, seed=seed, params=params)


def make(stream: LargeStream, pcm: NDArray[np.int16], max_steps: int = 8) -> NDArray[np.uint8]:
    """The 12 frames of a window."""
    return np.concatenate(list(stream.generate(pcm, StageMarks(window=0), max_steps)))


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other).mean())


class CountedNetworks(OfficialNetworks):
    """The official networks, and what was asked of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, None)
        self.prompts: list[str] = []
        self.num_transformers = 0

    def load_transformer(self, device: torch.device, dtype: torch.dtype) -> DiT:
        self.num_transformers += 1
        return super().load_transformer(device, dtype)

    def encode_prompt(self, prompt: str, device: torch.device, *, reserved_bytes: int = 0) -> Tensor:
        self.prompts.append(prompt)
        return super().encode_prompt(prompt, device, reserved_bytes=reserved_bytes)


class SlowNetworks(CountedNetworks):
    """Reads the prompts of streams when it is let, and one of them never."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.let = threading.Event()
        self.reserved_bytes: list[int] = []

    def encode_prompt(self, prompt: str, device: torch.device, *, reserved_bytes: int = 0) -> Tensor:
        if self.prompts:  # not that of the configuration
            self.reserved_bytes.append(reserved_bytes)
            assert self.let.wait(60)
        if prompt == "bad":
            raise LookupError("no such word")
        return super().encode_prompt(prompt, device, reserved_bytes=reserved_bytes)
