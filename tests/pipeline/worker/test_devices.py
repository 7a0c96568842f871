"""Devices by the names of the configuration."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.worker.devices import find_device

pytestmark = pytest.mark.unit


def test_the_cpu_is_always_there() -> None:
    assert find_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine.large.device is 'cuda:99', but PyTorch .* sees \d+ GPUs here"):
        find_device("cuda:99")


def test_without_a_gpu_auto_is_refused_and_the_error_says_how_to_have_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"engine.large.device is 'auto', but there is no GPU.*large.device=cpu"):
        find_device("auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_gpu_has_its_index(name: str) -> None:
    assert find_device(name) == torch.device("cuda", 0)
