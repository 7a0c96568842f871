"""The official folder compared with what it has to hold: every missing, extra or mis-shaped tensor is named.

Only headers are read, so that 45 GB are checked in seconds, on any machine and before any device is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import WeightsError
from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B
from pipeline.weights.headers import TensorHeader, read_json, read_safetensors, read_torch_headers
from pipeline.weights.lora import find_pairs, published_rank
from pipeline.weights.official import OfficialFolder, find_official, read_dit_config
from pipeline.weights.sizes import Sizes, text_encoder_sizes, vae_config
from pipeline.weights.tables import Shapes, adapter_targets, dit_shapes, text_encoder_shapes, vae_shapes
from pipeline.weights.wav2vec import is_needed, read_wav2vec_sizes, wav2vec_shapes

__all__ = ["Part", "Report", "check_folder"]

_TYPES = ("bfloat16", "float32")
_AUDIO_WEIGHTS: tuple[tuple[str, Callable[[Path], dict[str, TensorHeader]]], ...] = (
    ("model.safetensors", read_safetensors),
    ("pytorch_model.bin", read_torch_headers),
)
_TOKENIZER_NAME = "tokenizer.json"
_END_MARK = "</s>"
_SHOWN_NAMES = 3


@dataclass(slots=True, kw_only=True)
class Part:
    """One part of the large model, as it was found."""

    name: str
    """What it is."""
    purpose: str
    """What it is for."""
    path: Path
    """Its file or folder."""
    headers: dict[str, TensorHeader] = field(default_factory=dict)
    """Its tensors."""
    num_bytes: int = 0
    """Size of its files."""
    problems: list[WeightsError] = field(default_factory=list)
    """All that is wrong with it; nothing is raised before `Report.require`."""
    remarks: list[str] = field(default_factory=list)
    """What is odd with it and does no harm."""

    @property
    def dtypes(self) -> list[str]:
        """Types of its tensors, the most numerous first."""
        names = [header.dtype for header in self.headers.values()]
        return sorted(set(names), key=lambda name: (-names.count(name), name))

    @property
    def num_parameters(self) -> int:
        """Numbers in its tensors."""
        return sum(math.prod(header.shape) for header in self.headers.values())


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a folder."""

    files: OfficialFolder
    """Where the parts are."""
    sizes: Sizes
    """Sizes of the networks, to build them by."""
    parts: list[Part]
    """The parts."""

    @property
    def problems(self) -> list[WeightsError]:
        """All that is wrong."""
        return [problem for part in self.parts for problem in part.problems]

    def require(self) -> OfficialFolder:
        """Insist on a faultless folder.

        Returns:
            Where the parts are.

        Raises:
            WeightsError: The first problem, and how many more there are.
        """
        if not self.problems:
            return self.files
        first, *others = self.problems
        if not others:
            raise first
        words = f"{first.reason} (and {len(others)} more problems, which `visavis weights check` names)"
        raise WeightsError(first.path, words)


def check_folder(folder: Path) -> Report:
    """Compare a folder with what it has to hold.

    Args:
        folder: The official folder, or the base model's own.

    Returns:
        Its parts and their problems.

    Raises:
        WeightsError: There is no base model at all.
    """
    files = find_official(folder)
    config_problems: list[WeightsError] = []
    try:
        config = read_dit_config(files.dit_config)
    except WeightsError as exc:
        config_problems.append(exc)
        config = PUBLISHED_14B
    shapes = dit_shapes(config)
    transformer = _check_transformer(files, shapes)
    transformer.problems[:0] = config_problems
    vae = _read(files.vae, "video autoencoder", "portrait to latents, latents to frames", read_torch_headers)
    text_encoder = _read(files.text_encoder, "text encoder", "prompt to rows for the transformer", read_torch_headers)
    sizes = Sizes(
        dit=config,
        vae=vae_config(vae.headers, config),
        text_encoder=text_encoder_sizes(text_encoder.headers, config),
    )
    _check_tensors(vae, vae_shapes(sizes.vae))
    _check_tensors(text_encoder, text_encoder_shapes(**sizes.text_encoder))
    adapter = _check_adapter(files.adapter, config, shapes)
    tokenizer = _check_tokenizer(files.tokenizer, sizes.text_encoder["vocabulary_tokens"])
    audio_encoder = _check_audio_encoder(files.audio_encoder, config)
    return Report(files, sizes, [transformer, adapter, vae, text_encoder, tokenizer, audio_encoder])


def _check_transformer(files: OfficialFolder, shapes: Shapes) -> Part:
    part = Part(name="transformer", purpose="makes the video, block by block", path=files.base)
    try:
        index, shards = files.read_index(), files.dit_shards()
    except WeightsError as exc:
        part.problems.append(exc)
        return part
    unreadable: set[Path] = set()
    homes: dict[str, Path] = {}
    for shard in shards:
        try:
            headers = read_safetensors(shard)
        except WeightsError as exc:
            part.problems.append(exc)
            unreadable.add(shard)
            continue
        part.num_bytes += shard.stat().st_size
        for name, header in headers.items():
            if index and name in shapes and index.get(name) != shard:
                place = f"puts it into {index[name].name}" if name in index else "does not name it"
                part.problems.append(WeightsError(str(shard), f"tensor {name} is here, but the index {place}"))
            part.headers[name], homes[name] = header, shard
    for name in sorted(index.keys() - shapes.keys() - part.headers.keys()):
        words = f"it names tensor {name}, which is none of the transformer's"
        part.problems.append(WeightsError(str(files.dit_index), words))
    wanted = {name: shape for name, shape in shapes.items() if index.get(name, shards[0]) not in unreadable}

    def where(name: str) -> Path:
        return homes.get(name) or index.get(name) or files.dit_index

    part.problems += _compare(part.headers, wanted, where, "the transformer")
    return part


def _check_adapter(path: Path, config: DiTConfig, shapes: Shapes) -> Part:
    part = _read(path, "adapter", "makes four denoising steps enough", read_safetensors)
    if not part.problems:
        found = find_pairs(part.headers, adapter_targets(shapes), published_rank(config))
        part.problems += [WeightsError(str(path), problem) for problem in found.problems]
        if found.unused:
            more = len(found.unused) - _SHOWN_NAMES
            names = ", ".join(found.unused[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
            part.remarks.append(f"not used, because they belong to no layer that the adapter changes: {names}")
    return part


def _check_tensors(part: Part, shapes: Shapes) -> None:
    """Compare a part that is one file, unless that was unreadable anyway."""
    if not part.problems:
        part.problems += _compare(part.headers, shapes, lambda _: part.path, f"the {part.name}")


def _check_tokenizer(folder: Path, vocabulary_tokens: int) -> Part:
    part = Part(name="tokenizer", purpose="prompt to numbers for the text encoder", path=folder / _TOKENIZER_NAME)
    try:
        words = _pieces(read_json(part.path))
        part.num_bytes = part.path.stat().st_size
    except WeightsError as exc:
        part.problems.append(exc)
        return part
    if _END_MARK not in words:
        part.problems.append(WeightsError(str(part.path), f"it knows no {_END_MARK}: not the text encoder's tokenizer"))
    elif len(words) > vocabulary_tokens:
        rule = f"but the text encoder has {vocabulary_tokens}: not its tokenizer"
        part.problems.append(WeightsError(str(part.path), f"it has {len(words)} tokens, {rule}"))
    return part


def _pieces(tokenizer: Mapping[str, Any]) -> set[str]:
    """Find the tokens that a tokenizer's file lists; none where it is something else."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    listed = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(listed, list):  # pieces with their scores
        listed = [piece[0] for piece in listed if isinstance(piece, list) and piece]
    extra = [entry.get("content") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    return {piece for piece in (*(listed or ()), *extra) if isinstance(piece, str)}


def _check_audio_encoder(folder: Path, config: DiTConfig) -> Part:
    path, read = next(
        ((folder / name, read) for name, read in _AUDIO_WEIGHTS if (folder / name).exists()),
        (folder / _AUDIO_WEIGHTS[0][0], _AUDIO_WEIGHTS[0][1]),
    )
    part = _read(path, "audio encoder", "sound to features for the transformer", read)
    is_readable = not part.problems
    config_path, num_layers = folder / "config.json", config.num_audio_layers - 1
    try:
        sizes = read_wav2vec_sizes(config_path)
    except WeightsError as exc:
        part.problems.append(exc)
        return part
    for key, given, expected in (
        ("hidden_size", sizes.dim, config.audio_dim),
        ("num_hidden_layers", sizes.num_layers, num_layers),
    ):
        if given != expected:
            rule = f"{key} is {given}, but the transformer was made for {expected}"
            part.problems.append(WeightsError(str(config_path), rule))
    if is_readable:
        needed = {name: header for name, header in part.headers.items() if is_needed(name)}
        shapes = wav2vec_shapes(replace(sizes, dim=config.audio_dim, num_layers=num_layers), needed)
        part.problems += _compare(needed, shapes, lambda _: path, "the audio encoder")
    return part


def _read(path: Path, name: str, purpose: str, read: Callable[[Path], dict[str, TensorHeader]]) -> Part:
    """Begin with a part that is one file."""
    part = Part(name=name, purpose=purpose, path=path)
    try:
        part.headers = read(path)
        part.num_bytes = path.stat().st_size
    except WeightsError as exc:
        part.problems.append(exc)
    return part


def _compare(
    headers: Mapping[str, TensorHeader], expected: Shapes, where: Callable[[str], Path], owner: str
) -> Iterable[WeightsError]:
    """Name every tensor that is missing, too many, of another shape or of another type."""
    for name, reason in _differences(headers, expected, owner):
        yield WeightsError(str(where(name)), f"tensor {name} {reason}")


def _differences(headers: Mapping[str, TensorHeader], expected: Shapes, owner: str) -> Iterator[tuple[str, str]]:
    for name, shape in expected.items():
        header = headers.get(name)
        if header is None:
            yield name, f"{list(shape)} is missing"
            continue
        if header.shape != shape:
            yield name, f"is {list(header.shape)}, but it has to be {list(shape)}"
        if header.dtype not in _TYPES:
            yield name, f"is {header.dtype}, but it has to be {' or '.join(_TYPES)}"
    for name in sorted(headers.keys() - expected.keys()):
        yield name, f"is none of {owner}'s"
