"""All settings of `visavis serve`, and where they come from: default < preset file < environment < `--set`.

This is the only module that reads the environment. Changing any of these needs a restart.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from pipeline.config import EngineConfig
from pipeline.errors import ConfigError

__all__ = ["AppConfig", "IceServer", "LogConfig", "ServerConfig", "SessionConfig", "load_config"]

ENVIRONMENT_PREFIX = "AVATAR__"

Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


_ICE_URL = re.compile(r"(stuns?|turns?):[^?:\s]+(?::(\d{1,5}))?(?:\?transport=(udp|tcp))?")
_ICE_TRANSPORTS = {"turn": ("udp", "tcp"), "turns": ("tcp",)}
_LAST_PORT = 65_535


class IceServer(_Section):
    """A STUN or TURN server that both sides may use to find a path through a NAT."""

    urls: tuple[str, ...] = Field(min_length=1)
    """Addresses like stun:host:port or turn:host:port?transport=udp."""
    username: str | None = None
    """Name at a TURN server."""
    credential: SecretStr | None = None
    """Password at a TURN server. The page needs it too, so it is sent to every viewer."""

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            match = _ICE_URL.fullmatch(url)
            scheme, port, transport = match.groups() if match else ("", None, None)
            is_known = transport is None or transport in _ICE_TRANSPORTS.get(scheme, ())
            if match is None or not is_known or int(port or 0) > _LAST_PORT:
                raise ValueError(f"{url!r} has to look like stun:host:port or turn:host:port?transport=udp")
        return urls


class SessionConfig(_Section):
    """One viewer: timing, sound and picture."""

    budget_s: Seconds = 0.8
    """Limit on window latency: last audio sample of a window at the engine to its last frame at the track."""
    margin_s: float = Field(default=0.1, ge=0, le=10, allow_inf_nan=False)
    """Room in the playout delay, beyond the measured need, for jitter of the network, the engine and the loop."""
    guard_s: float = Field(default=0.02, ge=0, le=1, allow_inf_nan=False)
    """How far below the budget the window latency is planned."""
    jitter_s: Seconds = 0.08
    """How late an audio packet may be before silence takes its place."""
    drift_tolerance_s: Seconds = 0.01
    """How far the sender's sound may run ahead of or behind the clock before it is moved, in a quiet moment."""
    quiet_dbfs: float = Field(default=-50.0, ge=-100, le=0)
    """Level below which sound counts as silence: for the rest block, and for moving sound unheard."""
    connect_timeout_s: Seconds = 15.0
    """Until the peer connection has to be up after the answer."""
    offer_timeout_s: Seconds = 8.0
    """Until an offer has to be answered."""
    peer_silence_s: Seconds = 10.0
    """A peer that sends nothing at all for so long is gone."""
    close_timeout_s: Seconds = 5.0
    """Until a closing session has to be cleaned up."""
    video_min_bps: int = Field(default=400_000, ge=100_000, le=50_000_000)
    """Lowest video bitrate, however slow the network says it is."""
    video_max_bps: int = Field(default=2_000_000, ge=100_000, le=50_000_000)
    """Video bitrate at the start and on a good network; clear at 384x256."""

    @model_validator(mode="after")
    def _check_order(self) -> "SessionConfig":
        if self.video_min_bps > self.video_max_bps:
            rule = f"it has to be at most video_max_bps ({self.video_max_bps})"
            raise ValueError(f"video_min_bps is {self.video_min_bps}, but {rule}")
        return self


class LogConfig(_Section):
    """The log of the server process; records of the worker are in it too."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe records that are kept."""
    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object per line for machines."""


class ServerConfig(_Section):
    """The address, the limits and the sessions of the server."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. Browsers allow the microphone on localhost and over HTTPS only."""
    port: int = Field(default=8080, ge=0, le=65535)
    """TCP port to listen on; 0 lets the system choose."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server is reached besides its addresses, localhost and the name of this machine, for
    example those of a proxy before it; "*" takes every name."""
    max_sessions: int = Field(default=1, ge=1, le=64)
    """Viewers at once; the engine needs as many streams (engine.max_streams)."""
    ice_servers: tuple[IceServer, ...] = ()
    """STUN and TURN servers; with none only addresses of this machine are offered."""
    retry_after_s: int = Field(default=5, ge=1, le=3600)
    """When a client that was refused for lack of room should try again."""
    max_json_bytes: int = Field(default=256 * 1024, ge=1024, le=16 * 1024 * 1024)
    """Largest JSON body, and largest message on the control channel."""
    max_portrait_bytes: int = Field(default=20_000_000, ge=100_000, le=1_000_000_000)
    """Largest image file that can be uploaded."""
    max_uploads: int = Field(default=16, ge=1, le=1000)
    """Uploaded portraits kept in memory, of all visitors; for a further one the visitor's oldest goes, or the oldest of
    all, but none that a session shows."""
    max_uploads_per_visitor: int = Field(default=4, ge=1, le=1000)
    """Those of one visitor, known by the address; for a further one the visitor's oldest goes that no session shows."""
    head_timeout_s: Seconds = 10.0
    """Until the head of a request has to have arrived, from the connection or from its first byte on."""
    body_timeout_s: Seconds = 30.0
    """Until a request body has to have arrived."""
    send_timeout_s: Seconds = 30.0
    """Until a client has to have taken some of what it is sent; one that reads nothing any more is hung up on."""
    encode_threads: int = Field(default=4, ge=1, le=256)
    """Threads that encode sound and pictures."""
    image_threads: int = Field(default=1, ge=1, le=64)
    """Threads that decode and cut portraits."""
    shutdown_timeout_s: Seconds = 5.0
    """Until open connections have to end when the server stops."""
    session: SessionConfig = SessionConfig()
    """Settings of every session."""

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"\*|[\w.-]+", name):
                raise ValueError(f"{name!r} has to be a name without scheme and port, or '*'")
        return names


class AppConfig(_Section):
    """Everything: the engine, the server, the log."""

    engine: EngineConfig = EngineConfig()
    """Which engine runs, on what, and how its worker process is watched."""
    server: ServerConfig = ServerConfig()
    """The address, the limits and the sessions of the server."""
    log: LogConfig = LogConfig()
    """The log."""

    @model_validator(mode="after")
    def _check_places(self) -> "AppConfig":
        if self.server.max_sessions > self.engine.max_streams:
            rule = f"it has to be at most engine.max_streams ({self.engine.max_streams})"
            raise ValueError(f"server.max_sessions is {self.server.max_sessions}, but {rule}")
        return self


def load_config(
    preset: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    assignments: Sequence[str] = (),
) -> AppConfig:
    """Read the settings.

    Args:
        preset: YAML file with differences from the defaults.
        environment: Variables like `AVATAR__SERVER__PORT`; the process environment when None.
        assignments: Settings like `server.port=9000`; the last one wins.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: A file cannot be read, a key does not exist, or a value breaks its rule; names all three.
    """
    values: dict[str, Any] = {} if preset is None else _read_preset(preset)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _assign(values, name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), text, source=name)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError("--set", assignment, "it has to look like section.key=value")
        _assign(values, key.strip().split("."), text, source=key.strip())
    try:
        return AppConfig.model_validate(values)
    except ValidationError as exc:
        raise _first_error(exc) from exc


def _read_preset(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("preset", str(path), f"it has to be a readable YAML file ({exc})") from exc
    except yaml.YAMLError as exc:
        raise ConfigError("preset", str(path), f"it has to be valid YAML ({exc})") from exc
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError("preset", str(path), "its top level has to be a mapping of sections")
    return cast(dict[str, Any], loaded)


def _assign(values: dict[str, Any], path: Sequence[str], text: str, *, source: str) -> None:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(source, text, "it has to be a valid YAML value") from exc
    section = values
    for name in path[:-1]:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(source, text, f"{name} is a value and not a section")
        section = inner
    section[path[-1]] = value


def _first_error(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return ConfigError(f"{key}.{cause.key}", cause.value, cause.rule)
    if first["type"] == "extra_forbidden":
        return ConfigError(key, first["input"], "there is no such setting")
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(key, first["input"], message[:1].lower() + message[1:])
