"""How messages lie on the socket between server and worker: two lengths, a JSON header, raw bytes. Pure.

    uint32 header_bytes | uint32 payload_bytes | header (UTF-8 JSON object) | payload

Both lengths are big-endian. Both processes come from the same installation, so there is no version beside the one
that the worker's hello carries.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from pipeline.errors import WorkerError

__all__ = ["MAX_HEADER_BYTES", "MAX_PAYLOAD_BYTES", "FrameDecoder", "encode_frame"]

MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 26

_LENGTHS = struct.Struct(">II")


def encode_frame(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Write one frame.

    Args:
        header: Anything that JSON can hold, without NaN.
        payload: Raw bytes.

    Returns:
        The frame.

    Raises:
        WorkerError: Header or payload is over its limit.
    """
    header_json = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    _check_lengths(len(header_json), len(payload))
    return b"".join((_LENGTHS.pack(len(header_json), len(payload)), header_json, payload))


class FrameDecoder:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """Take more of the byte stream.

        Args:
            data: The next bytes, any number of them.

        Returns:
            Headers and payloads of all frames that are now complete.

        Raises:
            WorkerError: The bytes are no frames; the connection is of no more use.
        """
        self._pending += data
        frames = []
        offset = 0
        while len(self._pending) - offset >= _LENGTHS.size:
            header_bytes, payload_bytes = _LENGTHS.unpack_from(self._pending, offset)
            _check_lengths(header_bytes, payload_bytes)
            header_end = offset + _LENGTHS.size + header_bytes
            if len(self._pending) < header_end + payload_bytes:
                break
            header = _parse_header(bytes(self._pending[offset + _LENGTHS.size : header_end]))
            offset = header_end + payload_bytes
            frames.append((header, bytes(self._pending[header_end:offset])))
        del self._pending[:offset]
        return frames


def _check_lengths(header_bytes: int, payload_bytes: int) -> None:
    if header_bytes > MAX_HEADER_BYTES:
        raise WorkerError(f"message header has {header_bytes} bytes, but at most {MAX_HEADER_BYTES} are allowed")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise WorkerError(f"message payload has {payload_bytes} bytes, but at most {MAX_PAYLOAD_BYTES} are allowed")


def _parse_header(header_json: bytes) -> dict[str, Any]:
    try:
        header = json.loads(header_json)
    except ValueError as exc:
        raise WorkerError(f"message header is no JSON: {exc}") from exc
    if not isinstance(header, dict):
        raise WorkerError(f"message header is a {type(header).__name__}, but it has to be an object")
    return header
