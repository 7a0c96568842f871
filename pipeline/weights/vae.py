"""The published video autoencoder, loaded from its file."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.errors import WeightsError
from pipeline.models.wan_vae import WanVAE, WanVAEConfig
from pipeline.weights.headers import read_torch

__all__ = ["load_vae"]


def load_vae(path: Path, config: WanVAEConfig, *, device: torch.device, dtype: torch.dtype) -> WanVAE:
    """Load the video autoencoder.

    Args:
        path: The published `Wan2.1_VAE.pth`; no code in it is run.
        config: Sizes of the network.
        device: Where the network is wanted.
        dtype: What it computes in; the published model uses bfloat16.

    Returns:
        The network, in evaluation mode.

    Raises:
        WeightsError: The file is missing or damaged, or does not fit the sizes.
    """
    tensors = read_torch(path, "cpu")
    with torch.device(device):
        network = WanVAE(config).to(dtype)
    try:
        # Copied into place, one after the other: the network's own tensors are laid out for its convolutions.
        network.load_state_dict(tensors)
    except RuntimeError as exc:
        raise WeightsError(str(path), f"does not fit the network ({exc})") from exc
    return network.eval()
