"""The control channel of a session: messages of the wire contract, as types.

Messages from the client are validated by pydantic; messages to it are built by the functions here.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.api import StreamParams
from pipeline.config import Prompt
from server.engine import EngineState
from server.errors import ErrorReply, RequestError
from server.ledger import History, WindowReport
from server.lifecycle import State

__all__ = [
    "Command",
    "Counters",
    "Interrupt",
    "Params",
    "SetPortrait",
    "Update",
    "done_message",
    "ledger_message",
    "parse_command",
    "problem_message",
    "state_message",
    "stats_message",
]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Params(_Message):
    """What may change while a session runs; what is left out stays as it is."""

    liveliness: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    """Size of head motion, brows and glances: 0 still, 1 natural, 2 lively."""
    look_at_camera: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """How much of the time the eyes rest on the viewer."""
    prompt: Prompt | None = None
    """Text prompt, for engines that take one."""

    def apply_to(self, params: StreamParams) -> StreamParams:
        """The parameters with what was given changed."""
        return StreamParams(
            liveliness=params.liveliness if self.liveliness is None else self.liveliness,
            look_at_camera=params.look_at_camera if self.look_at_camera is None else self.look_at_camera,
            prompt=params.prompt if self.prompt is None else self.prompt,
        )


class _Command(_Message):
    id: Annotated[int, Field(strict=True)] | str | None = None
    """Comes back in the answer."""


class Interrupt(_Command):
    """Drop what is under way."""

    type: Literal["interrupt"]


class SetPortrait(_Command):
    """Show another portrait from the next block edge on."""

    type: Literal["set_portrait"]
    portrait: str = Field(max_length=80)
    """Its id."""


class Update(_Command):
    """Change parameters from the next block edge on."""

    type: Literal["update"]
    params: Params
    """The changes."""


Command = Annotated[Interrupt | SetPortrait | Update, Field(discriminator="type")]
_COMMAND: TypeAdapter[Interrupt | SetPortrait | Update] = TypeAdapter(Command)


class Counters:
    """Counters of a session, since it began."""

    def __init__(self) -> None:
        self.skipped_windows = 0
        self.reduced_windows = 0
        self.underruns = 0
        self.held_frames = 0
        self.rest_frames = 0
        self.dropped_frames = 0


def parse_command(text: str) -> Interrupt | SetPortrait | Update:
    """Read a message of the client.

    Args:
        text: JSON, untrusted.

    Returns:
        The command.

    Raises:
        RequestError: It is no message of the wire contract; says what is wrong first.
    """
    try:
        return _COMMAND.validate_json(text)
    except ValidationError as exc:
        raise RequestError(describe(exc)) from exc


def describe(error: ValidationError) -> str:
    """One sentence for the first thing that is wrong with a body or message."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{key}: {message}" if key else message


def state_message(
    *, session_id: str, state: State, epoch: int, portrait: str | None, playout_delay_ms: int, engine: EngineState
) -> dict[str, Any]:
    """Where the session stands."""
    return {
        "type": "state",
        "session": session_id,
        "state": state.value,
        "epoch": epoch,
        "portrait": portrait,
        "playout_delay_ms": playout_delay_ms,
        "engine": engine,
    }


def ledger_message(window: WindowReport) -> dict[str, Any]:
    """What became of one window."""
    stages: dict[str, Any] = {stage: _ms(duration_s) for stage, duration_s in window.stage_s.items()}
    stages["steps"] = [_ms(step_s) for step_s in window.steps_s]
    return {
        "type": "ledger",
        "window": window.window,
        "epoch": window.epoch,
        "latency_ms": _ms(window.latency_s),
        "stages_ms": stages,
        "lead_ms": _ms(window.lead_s),
        "level_dbfs": round(window.level_dbfs, 1),
        "missed": window.missed,
    }


def stats_message(history: History, counters: Counters, *, gap_ms: float, silence_ms: float) -> dict[str, Any]:
    """The figures over many windows."""
    return {
        "type": "stats",
        "windows": history.num_windows,
        "latency_ms": {f"p{percent}": history.latency_ms(percent) for percent in (50, 95, 99)},
        "pace_ms": {f"p{percent}": history.pace_ms(percent) for percent in (50, 99)},
        "ttff_ms": {f"p{percent}": history.ttff_ms(percent) for percent in (50, 95)},
        "misses": dict(history.misses),
        "skipped_windows": counters.skipped_windows,
        "reduced_windows": counters.reduced_windows,
        "underruns": counters.underruns,
        "held_frames": counters.held_frames,
        "rest_frames": counters.rest_frames,
        "dropped_frames": counters.dropped_frames,
        "audio_gap_ms": round(gap_ms, 1),
        "silence_ms": round(silence_ms, 1),
    }


def done_message(command_id: int | str | None) -> dict[str, Any]:
    """A command was carried out."""
    return {"type": "done", "id": command_id}


def problem_message(reply: ErrorReply, command_id: int | str | None = None) -> dict[str, Any]:
    """A command was refused, or something went wrong."""
    message: dict[str, Any] = {"type": "error", "code": reply.code, "message": reply.message}
    if command_id is not None:
        message["id"] = command_id
    return message


def _ms(seconds: float) -> float:
    return round(seconds * 1000.0, 1)
