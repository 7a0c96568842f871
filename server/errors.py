"""The server's branches of the error tree, and the one table that gives each error its HTTP status.

AvatarError (pipeline/errors.py)
├── AddressTaken
└── SessionError
    ├── RequestError (also ValueError)
    ├── UnknownHost (also ValueError)
    ├── NotFound
    ├── TooLarge (also ValueError)
    ├── SessionLimitReached
    ├── UploadLimitReached
    ├── EngineNotReady
    ├── AnswerTimeout
    ├── SignalingError (also ValueError)
    └── UnsupportedMedia (also ValueError)
"""

from dataclasses import dataclass

from pipeline.errors import AvatarError, ConfigError, MediaError, StreamLimitReached, WorkerError

__all__ = [
    "AddressTaken",
    "AnswerTimeout",
    "EngineNotReady",
    "ErrorReply",
    "NotFound",
    "RequestError",
    "SessionError",
    "SessionLimitReached",
    "SignalingError",
    "TooLarge",
    "UnknownHost",
    "UnsupportedMedia",
    "UploadLimitReached",
    "reply_for",
]


class AddressTaken(AvatarError):
    """The server cannot listen where it was told to.

    Args:
        host: The address.
        port: The port.
        reason: What the system says.
    """

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(host, port, reason)
        self.host = host
        self.port = port
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot listen on {self.host} port {self.port}: {self.reason}; choose another with --port or --host"


class SessionError(AvatarError):
    """Base of what the server refuses or cannot do for a client."""


class RequestError(SessionError, ValueError):
    """A request breaks the wire contract.

    Args:
        reason: What is wrong, with the value and the rule.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class UnknownHost(SessionError, ValueError):
    """A request was made to a name that is none of this server.

    Args:
        host: The `Host` header.
    """

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host

    def __str__(self) -> str:
        return f"host {self.host[:80]!r} is no name of this server; --set server.allowed_hosts=[NAME] adds one"


class NotFound(SessionError):
    """Something named in a request does not exist.

    Args:
        kind: What it would be ("portrait", "session").
        name: How it was named.
    """

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind = kind
        self.name = name

    def __str__(self) -> str:
        return f"{self.kind} {self.name[:80]!r} does not exist"


class TooLarge(SessionError, ValueError):
    """A request body is over its limit.

    Args:
        what: What the body is.
        limit_bytes: The limit.
    """

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(what, limit_bytes)
        self.what = what
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"the {self.what} is larger than {self.limit_bytes} bytes"


class SessionLimitReached(SessionError):
    """All sessions are taken.

    Args:
        max_sessions: How many there can be.
    """

    def __init__(self, max_sessions: int) -> None:
        super().__init__(max_sessions)
        self.max_sessions = max_sessions

    def __str__(self) -> str:
        return f"all {self.max_sessions} sessions are taken"


class UploadLimitReached(SessionError):
    """There is no room for another uploaded portrait.

    Args:
        num_shown: How many uploads there are; live sessions show all of them.
    """

    def __init__(self, num_shown: int) -> None:
        super().__init__(num_shown)
        self.num_shown = num_shown

    def __str__(self) -> str:
        return f"no room for another upload: sessions show all {self.num_shown} that can be kept"


class EngineNotReady(SessionError):
    """The engine is starting, restarting or has failed.

    Args:
        state: The state of the engine, in one word.
    """

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state

    def __str__(self) -> str:
        return f"the engine is {self.state}, but a session needs it to be ready"


class AnswerTimeout(SessionError):
    """A request was not answered in time, which is no fault of it.

    Args:
        timeout_s: The time.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"there was no answer within {self.timeout_s:g} s"


class SignalingError(SessionError, ValueError):
    """An offer cannot be answered.

    Args:
        reason: What is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the offer cannot be answered: {self.reason}"


class UnsupportedMedia(SessionError, ValueError):
    """A body or an offer is of a kind that the server does not take.

    Args:
        what: What was looked at ("Content-Type", "audio section").
        value: What it is.
        rule: What it has to be, as the end of the sentence "<what> is <value>, but ...".
    """

    def __init__(self, what: str, value: str, rule: str) -> None:
        super().__init__(what, value, rule)
        self.what = what
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.what} is {self.value}, but {self.rule}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """How an error crosses the wire."""

    status: int
    """HTTP status."""
    code: str
    """Stable word for programs."""
    message: str
    """Sentence for people."""
    retry_after_s: int | None = None
    """When to try again, with 503 only."""

    @property
    def body(self) -> dict[str, object]:
        """The JSON body."""
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        return {"error": error}


_TABLE: tuple[tuple[type[AvatarError], int, str], ...] = (
    (NotFound, 404, "not_found"),
    (UnknownHost, 421, "unknown_host"),
    (TooLarge, 413, "too_large"),
    (UnsupportedMedia, 415, "unsupported_media"),
    (MediaError, 422, "bad_portrait"),
    (SessionLimitReached, 503, "session_limit_reached"),
    (StreamLimitReached, 503, "session_limit_reached"),
    (UploadLimitReached, 503, "upload_limit_reached"),
    (EngineNotReady, 503, "engine_not_ready"),
    (WorkerError, 503, "engine_not_ready"),
    (AnswerTimeout, 503, "answer_timeout"),
    (SignalingError, 400, "bad_sdp"),
    (RequestError, 400, "bad_request"),
    (ConfigError, 400, "bad_request"),
)


def reply_for(error: AvatarError, *, retry_after_s: int) -> ErrorReply:
    """Translate an error for the wire.

    Args:
        error: Any error of ours.
        retry_after_s: What to put into `Retry-After` where the status is 503.

    Returns:
        The reply; 500 `internal` for an error that no client can cause.
    """
    for kind, status, code in _TABLE:
        if isinstance(error, kind):
            retry = retry_after_s if status == 503 else None
            return ErrorReply(status=status, code=code, message=str(error), retry_after_s=retry)
    return ErrorReply(status=500, code="internal", message="the server failed; its log says why")
