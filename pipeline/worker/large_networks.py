"""The networks of the large engine, from the official files or made of random weights.

A source is checked as a whole when it is made; nothing is loaded before that. The text encoder is loaded for a prompt
and freed again: it is a quarter of all weights and is used once in a while. Its tokenizer stays.
"""

from __future__ import annotations

import dataclasses
import logging
import zlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import Wav2Vec2Config

from pipeline.config import EngineConfig
from pipeline.models.dit import DiT
from pipeline.models.published import PUBLISHED_14B
from pipeline.models.text_encoder import PUBLISHED_TEXT_ENCODER, TextEncoder, load_tokenizer
from pipeline.models.wan_vae import PUBLISHED_WAN_VAE, WanVAE
from pipeline.models.wav2vec import Wav2Vec, published_config
from pipeline.weights.check import check_folder
from pipeline.weights.merged import load_transformer
from pipeline.weights.random_weights import random_network
from pipeline.weights.sizes import PUBLISHED_TEXT_ENCODER_SIZES, Sizes
from pipeline.weights.vae import load_vae
from pipeline.worker.large_memory import free_bytes

__all__ = ["PUBLISHED_SIZES", "NetworkSource", "OfficialNetworks", "RandomNetworks", "make_source"]

logger = logging.getLogger(__name__)

PUBLISHED_SIZES = Sizes(dit=PUBLISHED_14B, vae=PUBLISHED_WAN_VAE, text_encoder=PUBLISHED_TEXT_ENCODER_SIZES)
"""Sizes of the published networks."""

_TEXT_WORK = 1.1
"""Memory that the text encoder takes while it runs, in multiples of its weights."""
_RANDOM_PROMPT_TOKENS = 24


class NetworkSource(Protocol):
    """Where the large engine's networks come from."""

    @property
    def sizes(self) -> Sizes:
        """Sizes of the networks."""

    @property
    def num_audio_parameters(self) -> int:
        """Numbers in the audio encoder."""

    def load_transformer(self, device: torch.device, dtype: torch.dtype) -> DiT:
        """Load the transformer, its adapter merged."""

    def load_vae(self, device: torch.device, dtype: torch.dtype) -> WanVAE:
        """Load the video autoencoder."""

    def load_audio_encoder(self, device: torch.device, dtype: torch.dtype) -> Wav2Vec:
        """Load the audio encoder."""

    def encode_prompt(self, prompt: str, device: torch.device, *, reserved_bytes: int = 0) -> Tensor:
        """Turn a prompt into rows for the transformer, (1, L, C); the text encoder is gone afterwards.

        Runs beside the other networks, which will want `reserved_bytes` of the device's memory.
        """


class OfficialNetworks:
    """The networks in the official folder.

    Args:
        folder: The folder; it is checked.
        cache: Folder of merged copies; None: neither look for one nor write one.

    Raises:
        WeightsError: Something in the folder is missing, damaged or does not fit.
    """

    def __init__(self, folder: Path, cache: Path | None) -> None:
        report = check_folder(folder)
        self._files = report.require()
        for part in report.parts:
            for remark in part.remarks:
                logger.warning("weights %s: %s", part.path, remark)
        self._cache = cache
        self.sizes = report.sizes
        parameters = {part.name: part.num_parameters for part in report.parts}
        self.num_audio_parameters = parameters["audio encoder"]
        self._text_bytes = parameters["text encoder"] * torch.bfloat16.itemsize
        self._text_config = dataclasses.replace(
            PUBLISHED_TEXT_ENCODER, **self.sizes.text_encoder, max_prompt_tokens=self.sizes.dit.text_len
        )
        # Once and for all: while one is loaded nothing else runs, and prompts come beside live windows.
        self._tokenizer = load_tokenizer(self._files.tokenizer, self._text_config)

    def load_transformer(self, device: torch.device, dtype: torch.dtype) -> DiT:
        """Load the transformer, its adapter merged."""
        return load_transformer(self._files, device=device, cache=self._cache).to(dtype)

    def load_vae(self, device: torch.device, dtype: torch.dtype) -> WanVAE:
        """Load the video autoencoder."""
        return load_vae(self._files.vae, self.sizes.vae, device=device, dtype=dtype)

    def load_audio_encoder(self, device: torch.device, dtype: torch.dtype) -> Wav2Vec:
        """Load the audio encoder."""
        return Wav2Vec.load(self._files.audio_encoder, device=device, dtype=dtype)

    def encode_prompt(self, prompt: str, device: torch.device, *, reserved_bytes: int = 0) -> Tensor:
        """Turn a prompt into rows for the transformer.

        Args:
            prompt: The prompt.
            device: Where to compute, if the text encoder has room there; else it runs on the CPU.
            reserved_bytes: Memory of the device that is free and not for the text encoder.

        Returns:
            One row per token, (1, L, C), bfloat16.
        """
        if device.type != "cpu" and free_bytes(device) - reserved_bytes < _TEXT_WORK * self._text_bytes:
            logger.info(
                "the text encoder runs on the CPU: %s has no room for its %.1f GB", device, self._text_bytes / 1e9
            )
            device = torch.device("cpu")
        try:
            return self._encode_prompt(prompt, device)
        except torch.OutOfMemoryError as exc:
            logger.warning("the text encoder runs on the CPU: %s had less room than it said (%s)", device, exc)
        return self._encode_prompt(prompt, torch.device("cpu"))

    def _encode_prompt(self, prompt: str, device: torch.device) -> Tensor:
        with TextEncoder.load(
            self._files.text_encoder, self._tokenizer, config=self._text_config, device=device
        ) as encoder:
            return encoder.encode(prompt)


class RandomNetworks:
    """Networks of random weights: everything works, and the pictures mean nothing.

    Args:
        sizes: Sizes of the networks.
        audio: Sizes of the audio encoder; None: the published ones.
    """

    def __init__(self, sizes: Sizes = PUBLISHED_SIZES, audio: Wav2Vec2Config | None = None) -> None:
        self.sizes = sizes
        self._audio = audio or published_config()
        with torch.device("meta"):
            self.num_audio_parameters = sum(part.numel() for part in Wav2Vec(self._audio).parameters())

    def load_transformer(self, device: torch.device, dtype: torch.dtype) -> DiT:
        """Make the transformer."""
        return random_network(lambda: DiT(self.sizes.dit), device=device, dtype=dtype, seed=0)

    def load_vae(self, device: torch.device, dtype: torch.dtype) -> WanVAE:
        """Make the video autoencoder."""
        return random_network(lambda: WanVAE(self.sizes.vae), device=device, dtype=dtype, seed=1)

    def load_audio_encoder(self, device: torch.device, dtype: torch.dtype) -> Wav2Vec:
        """Make the audio encoder."""
        return random_network(lambda: Wav2Vec(self._audio), device=device, dtype=dtype, seed=2)

    def encode_prompt(self, prompt: str, device: torch.device, *, reserved_bytes: int = 0) -> Tensor:
        """Draw rows that depend on the prompt alone, (1, L, C), bfloat16."""
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        num_tokens = min(_RANDOM_PROMPT_TOKENS, self.sizes.dit.text_len)
        rows_BLC = torch.randn(1, num_tokens, self.sizes.text_encoder["dim"], generator=generator)
        return rows_BLC.to(device, torch.bfloat16)


def make_source(config: EngineConfig) -> NetworkSource:
    """Find the networks that a configuration names.

    Args:
        config: Of the engine.

    Returns:
        Where they come from; nothing is loaded yet.

    Raises:
        WeightsError: Something in the weights' folder is missing, damaged or does not fit.
    """
    if config.large.random_weights:
        return RandomNetworks()
    assert config.weights_dir is not None, "the configuration was checked"
    cache = config.large.cache_dir
    return OfficialNetworks(config.weights_dir, None if cache is None else cache.expanduser())
