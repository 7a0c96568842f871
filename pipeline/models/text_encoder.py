"""The large engine's text encoder, the encoder half of umT5-xxl: a prompt becomes one row of numbers per token.

A prompt is encoded once, when a stream opens or its prompt changes; nothing here runs per block. The network is
transformers', under the names of the published file, and its tensors are never copied needlessly: on the CPU they stay
in the mapped file, on another device they go there one after the other.

Shape suffixes: B batch, L tokens, C width.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from pipeline.errors import ConfigError, WeightsError
from pipeline.weights.headers import read_torch

__all__ = [
    "PUBLISHED_TEXT_ENCODER",
    "TOKENIZER_FILE",
    "TextEncoder",
    "TextEncoderConfig",
    "clean_prompt",
    "load_tokenizer",
    "translate_names",
]

TOKENIZER_FILE = "tokenizer.json"
"""The one file of the tokenizer's folder that is read; it holds the vocabulary and every rule."""

_SHOWN_NAMES = 3

# Digraphs, ligatures, and full-width and half-width characters become what they are compatible with.
_COMPATIBLE = (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07), 0x3000)
_OTHER_WIDTH = range(0xFF01, 0xFFF0)
_INVISIBLE = (*range(9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
_REPLACED = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in (*_COMPATIBLE, *_OTHER_WIDTH)},
    **dict.fromkeys(_INVISIBLE, ""),
}
_STRAIGHT_QUOTES = {
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}

Shape = tuple[int, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderConfig:
    """Sizes of one text encoder.

    Raises:
        ConfigError: Numbers that contradict each other.
    """

    vocabulary_tokens: int
    """Rows of the embedding; the tokenizer may know fewer."""
    dim: int
    """Width of the residual stream, and of the rows that come out."""
    attention_dim: int
    """Width of queries, keys and values, all heads together."""
    ffn_dim: int
    """Width of the feed-forward layers."""
    num_heads: int
    """Attention heads."""
    num_layers: int
    """Number of blocks."""
    num_buckets: int
    """Entries of each block's table of relative positions; half of them for tokens that follow."""
    max_distance_tokens: int
    """Distance from which on all tokens fall into the last bucket."""
    max_prompt_tokens: int
    """Tokens of a prompt that are read, its end mark among them."""

    def __post_init__(self) -> None:
        if self.attention_dim % self.num_heads:
            raise ConfigError("attention_dim", self.attention_dim, f"it has to give {self.num_heads} heads")
        if self.num_buckets % 4:
            raise ConfigError("num_buckets", self.num_buckets, "it has to be a multiple of 4")


PUBLISHED_TEXT_ENCODER = TextEncoderConfig(
    vocabulary_tokens=256384,
    dim=4096,
    attention_dim=4096,
    ffn_dim=10240,
    num_heads=64,
    num_layers=24,
    num_buckets=32,
    max_distance_tokens=128,
    max_prompt_tokens=512,
)


class TextEncoder:
    """A tokenizer and a loaded network, until it is closed; `load` makes one.

    Args:
        tokenizer: Cuts a text and appends the end mark.
        network: In evaluation mode, with its weights.
    """

    def __init__(self, tokenizer: Tokenizer, network: UMT5EncoderModel) -> None:
        self._tokenizer = tokenizer
        self._network: UMT5EncoderModel | None = network

    @classmethod
    def load(
        cls,
        weights: Path,
        tokenizer: Tokenizer,
        *,
        config: TextEncoderConfig = PUBLISHED_TEXT_ENCODER,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> TextEncoder:
        """Load the network.

        On the CPU, in the dtype of the file, no weights are read yet: they stay in the mapped file, which has to stay
        as it is, and the system may drop them from memory again. On other devices they are copied tensor by tensor.

        Args:
            weights: The published `models_t5_umt5-xxl-enc-bf16.pth`, or one of the same names; no code in it is run.
            tokenizer: From `load_tokenizer`.
            config: Sizes of the network.
            device: Where the network runs.
            dtype: What it computes in.

        Returns:
            The encoder, ready for use.

        Raises:
            WeightsError: The file is missing, damaged, holds more than tensors, or does not fit the sizes.
        """
        try:
            tensors = translate_names(read_torch(weights, "cpu"), config)
        except ValueError as exc:
            raise WeightsError(str(weights), str(exc)) from exc
        network = _empty_network(config)
        state = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
        network.load_state_dict(state, assign=True)
        network.train(False).requires_grad_(False)
        return cls(tokenizer, network)

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """Encode one prompt.

        Like the published model's own code, this drops what follows the first `max_prompt_tokens` - 1 tokens of a
        longer prompt; a warning then goes to the log.

        Args:
            prompt: Any text; it is cleaned first.

        Returns:
            One row per token, the end mark's last, (1, L, C), on the encoder's device and in its dtype. There are no
            padding rows: the transformer adds its own.

        Raises:
            ValueError: The encoder is closed.
        """
        if self._network is None:
            raise ValueError("the text encoder is closed")
        encoding = self._tokenizer.encode(clean_prompt(prompt))
        if encoding.overflowing:
            logger.warning("a prompt is too long: only its first %d tokens are read", len(encoding.ids))
        device = self._network.device
        ids_BL = torch.tensor([encoding.ids], device=device)
        with torch.autocast(device.type, enabled=False):
            return cast(Tensor, self._network(input_ids=ids_BL).last_hidden_state)

    def close(self) -> None:
        """Let go of the network's memory; closing again does nothing.

        What it had on a GPU stays with torch, which gives it to others when they need it: to hand it back at once would
        wait for all that the GPU has to do.
        """
        if self._network is None:
            return
        nn.Module.to(self._network, "meta")  # at once, even if something still refers to the network
        self._network = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def load_tokenizer(folder: Path, config: TextEncoderConfig = PUBLISHED_TEXT_ENCODER) -> Tokenizer:
    """Load the tokenizer exactly as its file says.

    transformers' own loading builds a T5 tokenizer anew from the vocabulary alone, and since version 5 so loses the
    bytes that stand for rare characters. Of the published vocabulary it takes a second, and no other thread runs.

    Args:
        folder: Holds `tokenizer.json`; the published one is `google/umt5-xxl`.
        config: Sizes of the network that it is for.

    Returns:
        The tokenizer.

    Raises:
        WeightsError: The file is missing or damaged, or the tokenizer of another network.
    """
    path = folder / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise WeightsError(str(path), f"cannot be read ({exc.strerror})") from exc
    except Exception as exc:  # noqa: BLE001 (the library has no narrower class)
        raise WeightsError(str(path), f"not a readable tokenizer ({exc})") from exc
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.max_prompt_tokens)
    num_tokens = tokenizer.get_vocab_size()
    if num_tokens > config.vocabulary_tokens:
        rule = f"but the network has {config.vocabulary_tokens}: not this network's tokenizer"
        raise WeightsError(str(path), f"it has {num_tokens} tokens, {rule}")
    if tokenizer.encode("").tokens[-1:] != ["</s>"]:
        raise WeightsError(str(path), "it does not end a text with </s>: not this network's tokenizer")
    return tokenizer


def clean_prompt(prompt: str) -> str:
    """Bring a prompt into the form in which the model saw its training texts.

    HTML entities are resolved (twice), ligatures and full-width or half-width characters become ordinary ones, curly
    quotes straight, invisible characters are dropped, accents composed, and white space becomes single spaces. The
    published model's code does so too (through ftfy); what ftfy does for text that was decoded with a wrong encoding
    before it came here is left out.

    Args:
        prompt: Any text.

    Returns:
        The text, maybe empty.
    """
    text = html.unescape(html.unescape(prompt))
    # Halves of a UTF-16 pair are joined; one that stands alone cannot be written as UTF-8.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = unicodedata.normalize("NFC", text.translate(_REPLACED).translate(_STRAIGHT_QUOTES))
    return re.sub(r"\s+", " ", text).strip()


def translate_names(tensors: Mapping[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    """Give the tensors of the published file the names that transformers knows.

    Args:
        tensors: All tensors of the file.
        config: Sizes of the network.

    Returns:
        The same tensors under their other names; the embedding is there once, as `shared.weight`.

    Raises:
        ValueError: Tensors are missing or unknown, or one has another shape or is not of floating point.
    """
    layout = _layout(config)
    missing = [name for name in layout if name not in tensors]
    unknown = [name for name in tensors if name not in layout]
    faults = [f"{what} {_name(names)}" for what, names in (("lacks", missing), ("has the unknown", unknown)) if names]
    if faults:
        raise ValueError(f"it {' and '.join(faults)}")
    for published, (_, shape) in layout.items():
        tensor = tensors[published]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{published} has the shape {tuple(tensor.shape)}, but it has to be {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{published} is {tensor.dtype}, but it has to be of floating point")
    return {name: tensors[published] for published, (name, _) in layout.items()}


def _layout(config: TextEncoderConfig) -> dict[str, tuple[str, Shape]]:
    """Name in transformers' network and shape of every published tensor."""
    row, inwards = (config.dim,), (config.attention_dim, config.dim)
    layout: dict[str, tuple[str, Shape]] = {
        "token_embedding.weight": ("shared.weight", (config.vocabulary_tokens, config.dim)),
        "norm.weight": ("encoder.final_layer_norm.weight", row),
    }
    parts: dict[str, tuple[str, Shape]] = {
        "norm1": ("0.layer_norm", row),
        "attn.q": ("0.SelfAttention.q", inwards),
        "attn.k": ("0.SelfAttention.k", inwards),
        "attn.v": ("0.SelfAttention.v", inwards),
        "attn.o": ("0.SelfAttention.o", inwards[::-1]),
        "pos_embedding.embedding": ("0.SelfAttention.relative_attention_bias", (config.num_buckets, config.num_heads)),
        "norm2": ("1.layer_norm", row),
        "ffn.gate.0": ("1.DenseReluDense.wi_0", (config.ffn_dim, config.dim)),
        "ffn.fc1": ("1.DenseReluDense.wi_1", (config.ffn_dim, config.dim)),
        "ffn.fc2": ("1.DenseReluDense.wo", (config.dim, config.ffn_dim)),
    }
    for block in range(config.num_layers):
        for published, (name, shape) in parts.items():
            layout[f"blocks.{block}.{published}.weight"] = (f"encoder.block.{block}.layer.{name}.weight", shape)
    return layout


def _name(names: list[str]) -> str:
    """Name the first ones, and tell how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" (and {more} more)" if more > 0 else "")


def _empty_network(config: TextEncoderConfig) -> UMT5EncoderModel:
    """Build the network without storage, in this thread: what others make at the same time has some.

    Eager attention rounds as the published model's own code does.
    """
    with torch.device("meta"):
        return UMT5EncoderModel(
            UMT5Config(  # type: ignore[call-arg]  # attn_implementation is taken, but not declared
                vocab_size=config.vocabulary_tokens,
                d_model=config.dim,
                d_kv=config.attention_dim // config.num_heads,
                d_ff=config.ffn_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                relative_attention_num_buckets=config.num_buckets,
                relative_attention_max_distance=config.max_distance_tokens,
                feed_forward_proj="gated-gelu",
                attn_implementation="eager",
            )
        )
