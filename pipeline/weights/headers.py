"""What weight files say of their tensors: name, shape, type.

No tensor is read. Pickled code is never run: `.pth` files are opened with torch's weights-only reader, which knows
tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import WeightsError

__all__ = ["TensorHeader", "read_header_bytes", "read_json", "read_safetensors", "read_torch", "read_torch_headers"]

_LFS_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LENGTH_BYTES = 8
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I32": "int32", "I64": "int64"}
# What torch's reader raises for damaged files, beside UnpicklingError.
_DAMAGE = (RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError, AssertionError, struct.error)
_NOT_ONLY_TENSORS = "holds something else than tensors, which is never loaded because it could run code"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as its file describes it."""

    shape: tuple[int, ...]
    """Sizes of its dimensions."""
    dtype: str
    """Type of its numbers, in torch's words: "bfloat16"."""


def read_safetensors(path: Path) -> dict[str, TensorHeader]:
    """Read the header of a safetensors file.

    Args:
        path: The file.

    Returns:
        Every tensor by name.

    Raises:
        WeightsError: The file is missing, incomplete or something else.
    """
    _read_start(path)
    headers = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_slice(name)
                dtype = tensor.get_dtype()
                headers[name] = TensorHeader(tuple(tensor.get_shape()), _DTYPES.get(dtype, dtype.lower()))
    except SafetensorError as exc:
        raise WeightsError(str(path), f"is no complete safetensors file ({exc})") from exc
    return headers


def read_header_bytes(path: Path) -> bytes:
    """Read the header of a safetensors file as it stands, to recognise the file by.

    Args:
        path: The file; `read_safetensors` has found it whole.

    Returns:
        The header's JSON.
    """
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little"))


def read_torch(path: Path, device: str) -> dict[str, Tensor]:
    """Open a file of torch's that holds a dictionary of tensors, and nothing else. Safe on any thread.

    Args:
        path: The file.
        device: "cpu" maps the tensors into memory, to be read when they are used (files from before torch 1.6 are read
            at once); "meta" gives shapes only.

    Returns:
        The tensors by name.

    Raises:
        WeightsError: The file is missing, incomplete, or holds anything but tensors.
    """
    start = _read_start(path)
    if start[:1] not in (_ZIP[:1], _PICKLE):
        raise WeightsError(str(path), "is no file of torch's")
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=start.startswith(_ZIP))
    except pickle.UnpicklingError as exc:
        raise WeightsError(str(path), _NOT_ONLY_TENSORS) from exc
    except _DAMAGE as exc:
        raise WeightsError(str(path), f"is no complete file of torch's ({_first_sentence(exc)})") from exc
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(str(path), _NOT_ONLY_TENSORS)
    return state


def read_torch_headers(path: Path) -> dict[str, TensorHeader]:
    """Read what a file of torch's says of its tensors.

    Args:
        path: The file.

    Returns:
        Every tensor by name.

    Raises:
        WeightsError: As in `read_torch`.
    """
    tensors = read_torch(path, "meta").items()
    return {name: TensorHeader(tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in tensors}


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON file that lies beside weights.

    Args:
        path: The file.

    Returns:
        Its object.

    Raises:
        WeightsError: The file is missing or holds no JSON object.
    """
    _read_start(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise WeightsError(str(path), f"is no JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise WeightsError(str(path), "is no JSON object")
    return content


def _read_start(path: Path) -> bytes:
    """Read what tells kinds of files apart; refuse what cannot be read or was not downloaded."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as exc:
        reason = "is missing" if isinstance(exc, FileNotFoundError) else f"cannot be read ({exc.strerror})"
        raise WeightsError(str(path), reason) from exc
    if start == _LFS_POINTER:
        raise WeightsError(str(path), "is only a pointer of Git LFS: the file itself was not downloaded")
    return start


def _first_sentence(exc: Exception) -> str:
    return str(exc).partition("\n")[0].partition(". ")[0] or type(exc).__name__
