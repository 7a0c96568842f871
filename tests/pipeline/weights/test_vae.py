"""The video autoencoder is loaded exactly, laid out as its convolutions want it, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.models.wan_vae import WanVAE
from pipeline.weights.tables import vae_shapes
from pipeline.weights.vae import load_vae
from tests.fakes.checkpoint import TINY_VAE, recipe_weights

pytestmark = pytest.mark.numerics

CPU = torch.device("cpu")


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Weights as the file has them."""
    return recipe_weights(vae_shapes(TINY_VAE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_gets_exactly_its_tensors(tmp_path: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    torch.save(weights, tmp_path / "Wan2.1_VAE.pth")
    network = load_vae(tmp_path / "Wan2.1_VAE.pth", TINY_VAE, device=CPU, dtype=dtype)
    assert not network.training
    layout = WanVAE(TINY_VAE).state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name].to(dtype))
        assert value.stride() == layout[name].stride()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv1.bias": torch.zeros(3)}, r"size mismatch for conv1\.bias"),
        ({"surplus": torch.zeros(3)}, r'Unexpected key\(s\).*"surplus"'),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], changes: dict[str, Tensor], words: str
) -> None:
    torch.save(weights | changes, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"(?s)x\.pth: does not fit the network .*{words}"):
        load_vae(tmp_path / "x.pth", TINY_VAE, device=CPU, dtype=torch.float32)


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights | {"conv1.bias": Bomb(tmp_path / "proof")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth: holds something else than tensors"):
        load_vae(tmp_path / "x.pth", TINY_VAE, device=CPU, dtype=torch.float32)
    assert not (tmp_path / "proof").exists()
