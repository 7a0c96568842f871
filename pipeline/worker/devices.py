"""Where the large engine runs."""

from __future__ import annotations

import logging

import torch

from pipeline.errors import ConfigError

__all__ = ["find_device"]

_logger = logging.getLogger(__name__)


def find_device(name: str) -> torch.device:
    """Find the device that a configuration names.

    Args:
        name: cpu, cuda, cuda:1; or auto, the first GPU if there is one.

    Returns:
        The device, of a GPU with its index.

    Raises:
        ConfigError: There is no such GPU.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if num_gpus else "cpu"
        if not num_gpus:
            _logger.warning("there is no GPU; with engine.large.device=cpu the CPU is given the time that it needs")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    index = device.index or 0
    if index >= num_gpus:
        raise ConfigError("engine.large.device", name, f"PyTorch {torch.__version__} sees {num_gpus} GPUs here")
    return torch.device("cuda", index)
