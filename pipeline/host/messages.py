"""What server and worker say to each other, as plain data. Pure.

    server                                   worker
      Configure            ->
                           <-                Hello                  at once
                           <-                Ready                  after warm-up (or Failed)
      AttachRing           ->
      OpenStream           ->                StreamOpened | StreamFailed
      PushAudio, EndAudio, Interrupt, UpdateParams, SetPortrait ->
                           <-                FramesMade, WindowsSkipped, AudioDone, StreamFailed
      ReleaseSlots, CloseStream ->
      Shutdown             ->                (exit 0)
                           <-                Heartbeat, LogRecord   at any time

A message is a frame (framing.py) whose header is `{"type": class name, **fields}`. The field `payload`, where a
message has one, is the frame's payload. Values are checked against the annotations when a message is read.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

from pipeline.api import EngineInfo, StreamParams, WindowLedger
from pipeline.errors import WorkerError
from pipeline.host.framing import FrameDecoder, encode_frame

__all__ = [
    "PROTOCOL_VERSION",
    "AttachRing",
    "AudioDone",
    "CloseStream",
    "Configure",
    "EndAudio",
    "Failed",
    "FramesMade",
    "Heartbeat",
    "Hello",
    "Interrupt",
    "LogRecord",
    "Message",
    "MessageDecoder",
    "OpenStream",
    "PushAudio",
    "Ready",
    "ReleaseSlots",
    "SetPortrait",
    "Shutdown",
    "StreamFailed",
    "StreamOpened",
    "UpdateParams",
    "WindowsSkipped",
    "encode_message",
]

PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Base of all messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure(Message):
    """First word of the server."""

    rank: int
    """Index of the worker."""
    config_json: str
    """The `EngineConfig`, as JSON."""
    log_level: int
    """Level below which log records stay in the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRing(Message):
    """The frame ring has its size now."""

    num_slots: int
    """Slots in all; each stream's place owns `num_slots / max_streams` neighbours."""
    slot_bytes: int
    """Bytes of a slot: one I420 frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStream(Message):
    """Open a stream; answered by StreamOpened or StreamFailed."""

    stream: int
    """Number of the stream, never used twice in the life of a worker."""
    place: int
    """Which part of the frame ring is the stream's, 0 .. max_streams - 1."""
    has_portrait: bool
    """Whether the payload is a portrait."""
    prompt: str | None
    """Text prompt."""
    seed: int
    """Seed."""
    params: StreamParams
    """Parameters."""
    live: bool
    """As in StreamRequest."""
    num_sound_bytes: int = 0
    """How much of the payload is the whole sound: int16 samples, 16 kHz mono, of the machine's byte order."""
    num_voices: int = 1
    """Voices in the sound, one after the other."""
    num_mask_bytes: int = 0
    """How much of the payload is masks: with two voices or more, a byte per voice and token, 1 or 0."""
    payload: bytes = b""
    """Portrait: uint8 RGB in the engine's frame size; then the sound; then the masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushAudio(Message):
    """Sound for a stream."""

    stream: int
    """Number of the stream."""
    pts: int
    """Index of the first sample."""
    captured_s: float
    """When the sound reached the engine (monotonic clock)."""
    payload: bytes
    """int16 samples, 16 kHz mono, of the machine's byte order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAudio(Message):
    """No more sound comes; answered by AudioDone after the last frames."""

    stream: int
    """Number of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt(Message):
    """A new epoch begins."""

    stream: int
    """Number of the stream."""
    epoch: int
    """The new epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateParams(Message):
    """New parameters from the next window on."""

    stream: int
    """Number of the stream."""
    params: StreamParams
    """The parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPortrait(Message):
    """New portrait from the next window on."""

    stream: int
    """Number of the stream."""
    payload: bytes
    """uint8 RGB in the engine's frame size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSlots(Message):
    """The oldest slots that a stream holds are free again."""

    stream: int
    """Number of the stream."""
    num_slots: int
    """How many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStream(Message):
    """Forget a stream; its place is free after this message. Not answered."""

    stream: int
    """Number of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown(Message):
    """End orderly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """First word of the worker."""

    pid: int
    """Its process id."""
    protocol_version: int
    """Its PROTOCOL_VERSION."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Message):
    """The model is loaded and warm."""

    info: EngineInfo
    """What it can do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """The main loop is alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Message):
    """The worker cannot go on and ends itself."""

    error: str
    """Name of the exception's class."""
    text: str
    """Its text."""
    traceback: str
    """Its traceback."""
    is_permanent: bool
    """Whether a restart would fail in the same way (a wrong setting, a damaged weight file)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened(Message):
    """A stream is open."""

    stream: int
    """Number of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFailed(Message):
    """A stream could not be opened, or is over because of an error. Others go on."""

    stream: int
    """Number of the stream."""
    error: str
    """Name of the exception's class."""
    text: str
    """Its text."""
    traceback: str
    """Its traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesMade(Message):
    """Consecutive frames of one window lie in the ring."""

    stream: int
    """Number of the stream."""
    window: int
    """Index of the window."""
    epoch: int
    """Epoch of the window."""
    first_frame: int
    """Index of the first frame in the stream."""
    slots: tuple[int, ...]
    """Where they lie, in order."""
    ledger: WindowLedger | None
    """On the last batch of a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowsSkipped(Message):
    """The late policy dropped windows of a live stream."""

    stream: int
    """Number of the stream."""
    first_window: int
    """Index of the first one."""
    num_windows: int
    """How many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioDone(Message):
    """All frames of a stream whose audio ended are in the ring."""

    stream: int
    """Number of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord(Message):
    """A record of the worker's log."""

    logger: str
    """Name of the logger."""
    level: int
    """Level of the record."""
    text: str
    """The text, with a traceback if there was one."""


_MESSAGE_CLASSES: dict[str, type[Message]] = {
    message_class.__name__: message_class
    for message_class in (
        AttachRing,
        AudioDone,
        CloseStream,
        Configure,
        EndAudio,
        Failed,
        FramesMade,
        Heartbeat,
        Hello,
        Interrupt,
        LogRecord,
        OpenStream,
        PushAudio,
        Ready,
        ReleaseSlots,
        SetPortrait,
        Shutdown,
        StreamFailed,
        StreamOpened,
        UpdateParams,
        WindowsSkipped,
    )
}
_FIELD_TYPES: dict[Any, dict[str, Any]] = {
    data_class: typing.get_type_hints(data_class)
    for data_class in (*_MESSAGE_CLASSES.values(), EngineInfo, StreamParams, WindowLedger)
}


def encode_message(message: Message) -> bytes:
    """Write a message as a frame.

    Args:
        message: The message.

    Returns:
        The frame.
    """
    header = {"type": type(message).__name__, **dataclasses.asdict(message)}
    payload = header.pop("payload", b"")
    return encode_frame(header, payload)


class MessageDecoder:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._frames = FrameDecoder()

    def feed(self, data: bytes) -> list[Message]:
        """Take more of the byte stream.

        Args:
            data: The next bytes, any number of them.

        Returns:
            The messages that are now complete.

        Raises:
            WorkerError: The bytes are no messages; the connection is of no more use.
        """
        return [_read_message(header, payload) for header, payload in self._frames.feed(data)]


def _read_message(header: dict[str, Any], payload: bytes) -> Message:
    name = header.pop("type", None)
    message_class = _MESSAGE_CLASSES.get(name) if isinstance(name, str) else None
    if message_class is None:
        raise WorkerError(f"message type is {name!r}, but no such message exists")
    if "payload" in _FIELD_TYPES[message_class]:
        header["payload"] = payload
    message = _read_value(message_class, header, where=str(name))
    return typing.cast("Message", message)


def _read_value(annotation: Any, value: Any, *, where: str) -> Any:
    """Check a JSON value against an annotation and turn it into what the annotation says."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _read_dataclass(annotation, value, where=where)
    origin = typing.get_origin(annotation)
    if origin is types.UnionType:
        inner, none = typing.get_args(annotation)
        assert none is types.NoneType, annotation
        return None if value is None else _read_value(inner, value, where=where)
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(annotation)[0]
        return tuple(_read_value(item, entry, where=where) for entry in value)
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not annotation:
        raise WorkerError(f"{where} is a {type(value).__name__}, but it has to be a {annotation}")
    return value


def _read_dataclass(data_class: type[Any], value: Any, *, where: str) -> Any:
    if not isinstance(value, dict):
        raise WorkerError(f"{where} is a {type(value).__name__}, but it has to be an object")
    field_types = _FIELD_TYPES[data_class]
    unknown = sorted(value.keys() - field_types.keys())
    if unknown:
        raise WorkerError(f"{where} has the unknown fields {unknown}")
    fields = {key: _read_value(field_types[key], entry, where=f"{where}.{key}") for key, entry in value.items()}
    try:
        return data_class(**fields)
    except TypeError as exc:
        raise WorkerError(f"{where} is incomplete: {exc}") from exc
