"""The official folder of the large model: where its parts lie, and how large its networks are.

    FOLDER/Wan2.2-S2V-14B/            transformer shards with config.json, VAE, text encoder, tokenizer, audio encoder
    FOLDER/LiveAvatar/liveavatar.safetensors    the adapter that makes four steps enough

The base folder itself can be named as well; then the adapter lies in it or beside it. Upstream's names of sizes end
here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, WeightsError
from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B
from pipeline.weights.headers import read_json

__all__ = ["ADAPTER_FOLDER", "ADAPTER_NAME", "BASE_FOLDER", "OfficialFolder", "find_official", "read_dit_config"]

BASE_FOLDER = "Wan2.2-S2V-14B"
ADAPTER_FOLDER = "LiveAvatar"
ADAPTER_NAME = "liveavatar.safetensors"

_INDEX_NAME = "diffusion_pytorch_model.safetensors.index.json"
_SINGLE_SHARD_NAME = "diffusion_pytorch_model.safetensors"

_SIZES = {
    "in_dim": "latent_channels",
    "dim": "dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "text_len": "text_len",
    "audio_dim": "audio_dim",
    "num_audio_token": "num_audio_tokens",
}
"""Sizes in config.json, and their names here."""

_FIXED = {
    "model_type": "s2v",
    "eps": 1e-6,
    "qk_norm": True,
    "cross_attn_norm": True,
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_framepack": True,
    "enable_motioner": False,
}
"""What config.json may not say otherwise: the network here is built for it."""


@dataclass(frozen=True, slots=True)
class OfficialFolder:
    """Where the parts of the large model lie; whether they are there is another question."""

    base: Path
    """Folder of the base model."""
    adapter: Path
    """The adapter's file."""

    @property
    def dit_config(self) -> Path:
        """Sizes of the transformer."""
        return self.base / "config.json"

    @property
    def dit_index(self) -> Path:
        """Which shard holds which tensor of the transformer."""
        return self.base / _INDEX_NAME

    @property
    def vae(self) -> Path:
        """The video autoencoder."""
        return self.base / "Wan2.1_VAE.pth"

    @property
    def text_encoder(self) -> Path:
        """The text encoder."""
        return self.base / "models_t5_umt5-xxl-enc-bf16.pth"

    @property
    def tokenizer(self) -> Path:
        """Folder of the text encoder's tokenizer."""
        return self.base / "google" / "umt5-xxl"

    @property
    def audio_encoder(self) -> Path:
        """Folder of the audio encoder."""
        return self.base / "wav2vec2-large-xlsr-53-english"

    def read_index(self) -> dict[str, Path]:
        """Read which file holds which tensor of the transformer.

        Returns:
            The file of every tensor. Without an index there is one shard, and the result is empty.

        Raises:
            WeightsError: The index is unreadable, or names files outside the folder.
        """
        if not self.dit_index.exists() and (self.base / _SINGLE_SHARD_NAME).exists():
            return {}
        weight_map = read_json(self.dit_index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(str(self.dit_index), "it has no weight_map")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise WeightsError(str(self.dit_index), f"{name} is in {file!r}, but it has to be the name of a file")
        return {name: self.base / file for name, file in weight_map.items()}

    def dit_shards(self) -> tuple[Path, ...]:
        """Name the files of the transformer.

        Returns:
            The files, in order.

        Raises:
            WeightsError: As in `read_index`.
        """
        return tuple(sorted(set(self.read_index().values()))) or (self.base / _SINGLE_SHARD_NAME,)


def find_official(folder: Path) -> OfficialFolder:
    """Find the parts of the large model.

    Args:
        folder: The folder that holds the base model and the adapter, or the base model's own.

    Returns:
        Where the parts are; an adapter that is nowhere is given the place where it belongs.

    Raises:
        WeightsError: There is no base model.
    """
    bases = (folder, folder / BASE_FOLDER)
    base = next((base for base in bases if _is_base(base)), None)
    if base is None:
        looked = " or in ".join(map(str, bases))
        raise WeightsError(str(folder), f"there is no {_INDEX_NAME} in {looked}")
    homes = (folder, folder / ADAPTER_FOLDER, base.parent / ADAPTER_FOLDER, base)
    adapters = [home / ADAPTER_NAME for home in homes]
    home = folder if base != folder else folder.resolve().parent
    return OfficialFolder(
        base, next((path for path in adapters if path.exists()), home / ADAPTER_FOLDER / ADAPTER_NAME)
    )


def _is_base(folder: Path) -> bool:
    return any((folder / name).exists() for name in (_INDEX_NAME, _SINGLE_SHARD_NAME))


def read_dit_config(path: Path) -> DiTConfig:
    """Read the sizes of the transformer.

    Args:
        path: Its config.json. What it leaves out is as in the published model.

    Returns:
        The sizes.

    Raises:
        WeightsError: The file is unreadable, or describes a network that cannot be built here.
    """
    given = read_json(path)
    for key, fixed in _FIXED.items():
        if given.get(key, fixed) != fixed:
            raise WeightsError(str(path), f"{key} is {given[key]!r}, but only {fixed!r} is known here")
    changes: dict[str, Any] = {ours: _whole_number(path, given, key) for key, ours in _SIZES.items() if key in given}
    for key in ("out_dim", "cond_dim"):
        channels = changes.get("latent_channels", PUBLISHED_14B.latent_channels)
        if given.get(key, channels) != channels:
            raise WeightsError(str(path), f"{key} is {given[key]!r}, but in_dim is {channels}")
    patch = given.get("patch_size", [1, PUBLISHED_14B.patch, PUBLISHED_14B.patch])
    if patch != [1, PUBLISHED_14B.patch, PUBLISHED_14B.patch]:
        raise WeightsError(str(path), f"patch_size is {patch!r}, but only [1, 2, 2] is known here")
    layers = given.get("audio_inject_layers", list(PUBLISHED_14B.audio_inject_layers))
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise WeightsError(str(path), f"audio_inject_layers is {layers!r}, but it has to be a list of whole numbers")
    try:
        return dataclasses.replace(PUBLISHED_14B, audio_inject_layers=tuple(layers), **changes)
    except ConfigError as exc:
        raise WeightsError(str(path), str(exc)) from exc


def _whole_number(path: Path, given: Mapping[str, Any], key: str) -> int:
    value = given[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WeightsError(str(path), f"{key} is {value!r}, but it has to be a positive whole number")
    return value
