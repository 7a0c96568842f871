"""A small speech network of the published kind, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

__all__ = ["TINY_DIM", "TINY_LAYERS", "tiny_config", "write_tiny_folder"]

TINY_DIM = 16
TINY_LAYERS = 24


def tiny_config(**changes: object) -> Wav2Vec2Config:
    """Make the sizes: 24 layers as the published network has them, but narrow ones."""
    values = {
        "hidden_size": TINY_DIM,
        "num_hidden_layers": TINY_LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (8,) * 7,
        "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
        "conv_stride": (5, 2, 2, 2, 2, 2, 2),
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": 33,
    }
    return Wav2Vec2Config(**{**values, **changes})


def write_tiny_folder(folder: Path, *, seed: int = 0, **changes: object) -> Wav2Vec2ForCTC:
    """Write `config.json` and `pytorch_model.bin` as the published folder has them.

    Args:
        folder: Where to write; made if it is not there.
        seed: Of the weights, which are large enough for attention to matter.
        changes: Of the sizes.

    Returns:
        The network that was written.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Wav2Vec2ForCTC(tiny_config(**changes)).eval()
        for name, parameter in network.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.7 / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    network.config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    return network
