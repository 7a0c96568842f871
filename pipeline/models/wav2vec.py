"""The speech network of the large engine, wav2vec2-large-xlsr-53-english: sound -> all of its hidden states.

The published folder holds a network for recognition, of which the part below the letters is kept. The layers are those
of the transformers library, called one after the other: which states its own forward pass collects, and whether the
last one is normalised, has changed between its versions.

Shape letters: B batch (of 1), N samples, C channels, T states, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import Wav2Vec2Config, Wav2Vec2Model

from pipeline.audio.context import STATE_FIELD_SAMPLES, STATE_HOP_SAMPLES
from pipeline.errors import WeightsError
from pipeline.weights.headers import read_torch
from pipeline.weights.shards import read_tensors
from pipeline.weights.wav2vec import POSITION_PARTS, POSITIONS, is_needed, read_wav2vec_sizes

__all__ = ["PUBLISHED_FOLDER", "Wav2Vec", "published_config"]

PUBLISHED_FOLDER = "wav2vec2-large-xlsr-53-english"
"""Name of the network's folder in a published checkpoint."""

_PIECE_STATES = 1500
"""States that the convolutions make at a time, 30 s: of a long file their first maps would be far larger than all else.
"""


def published_config() -> Wav2Vec2Config:
    """Make the sizes of the published network."""
    return Wav2Vec2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        conv_dim=(512,) * 7,
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=128,
        num_conv_pos_embedding_groups=16,
    )


class Wav2Vec(nn.Module):
    """The network, in evaluation mode and without gradients.

    Args:
        config: Sizes. What is for training only is ignored.
    """

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        config = copy.deepcopy(config)
        # Without masking in training there is no vector that stands for masked sound.
        config.mask_time_prob = config.mask_feature_prob = 0.0
        self.wav2vec2 = Wav2Vec2Model(config)
        # One plain weight: otherwise its norm would be taken anew in every pass; with gradients, or it were a buffer.
        with torch.enable_grad():
            remove_parametrizations(self.wav2vec2.encoder.pos_conv_embed.conv, "weight")
        self.eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width of a hidden state."""
        return int(self.wav2vec2.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Hidden states per moment: the input of every layer, and the output of the last."""
        return int(self.wav2vec2.config.num_hidden_layers) + 1

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.wav2vec2.encoder.layer_norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.wav2vec2.encoder.layer_norm.weight.device

    def hidden_states(self, sound_N: Tensor) -> Iterator[Tensor]:
        """Compute the hidden states, one layer after the other.

        Args:
            sound_N: Normalised samples at 16 kHz, at least 400, of the network's dtype and on its device.

        Yields:
            The states of a layer, (T, D), T = (N - 400) // 320 + 1: the input of each layer, then the output of the
            last after the final norm.
        """
        encoder = self.wav2vec2.encoder
        x_BTD: Tensor = self.wav2vec2.feature_projection(self._convolve(sound_N))[0]
        x_BTD = x_BTD + encoder.pos_conv_embed(x_BTD)
        for layer in encoder.layers:
            yield x_BTD[0]
            made = layer(x_BTD)
            # Older transformers give a tuple of one.
            x_BTD = made[0] if isinstance(made, tuple) else made
        yield encoder.layer_norm(x_BTD)[0]

    def _convolve(self, sound_N: Tensor) -> Tensor:
        """Make what the layers are given, (B, T, C), piece by piece: a state is made of its own samples alone."""
        num_states = (len(sound_N) - STATE_FIELD_SAMPLES) // STATE_HOP_SAMPLES + 1
        pieces_BCT = []
        for first in range(0, num_states, _PIECE_STATES):
            last = min(first + _PIECE_STATES, num_states) - 1
            piece_N = sound_N[first * STATE_HOP_SAMPLES : last * STATE_HOP_SAMPLES + STATE_FIELD_SAMPLES]
            pieces_BCT.append(self.wav2vec2.feature_extractor(piece_N[None]))
        return torch.cat(pieces_BCT, 2).transpose(1, 2)

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Wav2Vec:
        """Load the network from its published folder.

        Args:
            folder: Holds `config.json`, and `model.safetensors` or `pytorch_model.bin`. No pickled code is executed.
            device: Where the network will compute.
            dtype: What it will compute in; the published model uses bfloat16.

        Returns:
            The network.

        Raises:
            WeightsError: A file is missing or damaged, the network is of another kind, or a tensor does not fit.
        """
        config = _read_config(folder / "config.json")
        path = _find_weights(folder)
        is_mapped = path.suffix == ".safetensors"
        tensors = read_tensors([path], torch.device(device)) if is_mapped else read_torch(path, "cpu").items()
        with torch.device("meta"):
            network = cls(config)
        try:
            weights = _folded({name: tensor.to(device, dtype) for name, tensor in tensors if is_needed(name)})
        except ValueError as exc:
            raise WeightsError(str(path), str(exc)) from exc
        _check(weights, network.state_dict(), path)
        network.load_state_dict(weights, assign=True)
        return network.eval().requires_grad_(False)


def _find_weights(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(str(folder), "it holds neither model.safetensors nor pytorch_model.bin")


def _read_config(path: Path) -> Wav2Vec2Config:
    read_wav2vec_sizes(path)
    try:
        return Wav2Vec2Config.from_json_file(str(path))
    except (ValueError, TypeError, StrictDataclassError) as exc:
        raise WeightsError(str(path), f"the sizes cannot be read ({_first_line(exc)})") from exc


def _folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make one weight of the two parts that it is stored in, with the rounding of the weights' dtype."""
    for norm, direction in POSITION_PARTS:
        if norm not in weights or direction not in weights:
            continue
        given, right = tuple(weights[norm].shape), (1, 1, weights[direction].shape[-1])
        if given != right:  # The kernel does not look.
            raise ValueError(f"{norm} has shape {given}, but it has to be {right}")
        rest = {name: tensor for name, tensor in weights.items() if name not in (norm, direction)}
        return rest | {f"{POSITIONS}.weight": torch._weight_norm(weights[direction], weights[norm], 2)}
    return weights


def _check(weights: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    if missing := wanted.keys() - weights.keys():
        raise WeightsError(str(path), f"{len(missing)} tensors are missing, the first is {min(missing)}")
    if extra := weights.keys() - wanted.keys():
        raise WeightsError(str(path), f"{len(extra)} tensors are not of this network, the first is {min(extra)}")
    for name, tensor in wanted.items():
        given, right = tuple(weights[name].shape), tuple(tensor.shape)
        if given != right:
            raise WeightsError(str(path), f"{name} has shape {given}, but it has to be {right}")


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
