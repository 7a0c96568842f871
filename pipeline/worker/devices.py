"""Where the large engine runs."""

from __future__ import annotations

import torch

from pipeline.errors import ConfigError

__all__ = ["find_device"]


def find_device(name: str) -> torch.device:
    """Find the device that a configuration names.

    Args:
        name: cpu, cuda, cuda:1; or auto, the first GPU.

    Returns:
        The device, of a GPU with its index.

    Raises:
        ConfigError: There is no such GPU; for auto, none at all: a CPU has its own deadlines, and is asked for by name.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if not num_gpus:
            rule = "there is no GPU here, and the CPU is given the time that it needs with engine.large.device=cpu only"
            raise ConfigError("engine.large.device", name, rule)
        name = "cuda"
    device = torch.device(name)
    if device.type == "cpu":
        return device
    index = device.index or 0
    if index >= num_gpus:
        raise ConfigError("engine.large.device", name, f"PyTorch {torch.__version__} sees {num_gpus} GPUs here")
    return torch.device("cuda", index)
