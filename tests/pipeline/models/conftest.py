"""Small networks of the published and the embedded kind, with reproducible weights and inputs."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B

TINY_PUBLISHED = dataclasses.replace(
    PUBLISHED_14B,
    dim=128,
    num_heads=4,
    num_layers=4,
    ffn_dim=256,
    gelu="tanh",
    freq_dim=64,
    text_dim=48,
    text_len=32,
    audio_dim=16,
    audio_inject_layers=(0, 1, 3),
    reference_distance=10,
)
"""The configuration for which the reference outputs were made."""

TINY_EMBEDDED = dataclasses.replace(
    TINY_PUBLISHED,
    latent_channels=8,
    text_dim=None,
    text_len=0,
    num_audio_layers=1,
    motion_signal_dim=28,
    has_pose_encoder=False,
    has_motion_packer=False,
    ring_latent_frames=9,
    reference_distance=30,
)


def seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend on a name only."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(int(np.prod(shape)))
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def recipe_weights(dit: DiT) -> dict[str, Tensor]:
    """Weights that depend on their names and shapes only, as the reference outputs were made with."""
    weights = {}
    for name, parameter in dit.state_dict().items():
        values = seeded(name, tuple(parameter.shape))
        if name == "casual_audio_encoder.weights":
            values = 1 + 0.5 * values
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif values.ndim >= 2 and not name.endswith(("modulation", "padding_tokens")):
            values = values / (values.numel() / values.shape[0]) ** 0.5
        else:
            values = 0.1 * values
        weights[name] = values
    return weights


def make_dit(config: DiTConfig) -> DiT:
    """Build a network with the recipe's weights."""
    dit = DiT(config)
    dit.load_state_dict(recipe_weights(dit))
    return dit.requires_grad_(False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring at these sizes."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def tiny_published() -> DiT:
    """The published architecture at a tiny size."""
    return make_dit(TINY_PUBLISHED)


@pytest.fixture(scope="session")
def tiny_embedded() -> DiT:
    """The embedded architecture at a tiny size."""
    return make_dit(TINY_EMBEDDED)


@pytest.fixture(scope="session")
def draw() -> Callable[[str, tuple[int, ...]], Tensor]:
    """Standard normal numbers that depend on a name only."""
    return seeded


@pytest.fixture(scope="session")
def build() -> Callable[[DiTConfig], DiT]:
    """Build a network with the recipe's weights."""
    return make_dit


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Length of the difference over the length of what is expected."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        return float((actual.double() - expected.double()).norm() / expected.double().norm())

    return measure
