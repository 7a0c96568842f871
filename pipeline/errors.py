"""What can go wrong in visavis, as one tree of exceptions.

    AvatarError
    ├── ConfigError (also ValueError)
    ├── MediaError (also ValueError)
    ├── WeightsError
    ├── StreamLimitReached
    └── WorkerError
        ├── WorkerStartTimeout
        ├── WorkerCrashed
        └── WorkerStalled

The server adds its own branch, `SessionError`, in server/errors.py. Facts are attributes; the sentence is built in
`__str__`, in lower case and without a full stop.
"""

__all__ = [
    "AvatarError",
    "ConfigError",
    "MediaError",
    "StreamLimitReached",
    "WeightsError",
    "WorkerCrashed",
    "WorkerError",
    "WorkerStalled",
    "WorkerStartTimeout",
]


class AvatarError(Exception):
    """Base of every error that visavis raises on purpose."""


class ConfigError(AvatarError, ValueError):
    """A setting or an argument breaks a rule.

    Args:
        key: Name of the setting or argument.
        value: What was given.
        rule: What it has to be, as the end of the sentence "<key> is <value>, but ...".
    """

    def __init__(self, key: str, value: object, rule: str) -> None:
        super().__init__(key, value, rule)
        self.key = key
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.key} is {self.value!r}, but {self.rule}"


class MediaError(AvatarError, ValueError):
    """An image or a sound cannot be used.

    Args:
        what: What was given, in words ("portrait", "audio file speech.wav").
        value: The offending property ("12000x9000 px", "0 samples").
        rule: What it has to be, as the end of the sentence "<what> is <value>, but ...".
    """

    def __init__(self, what: str, value: str, rule: str) -> None:
        super().__init__(what, value, rule)
        self.what = what
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.what} is {self.value}, but {self.rule}"


class WeightsError(AvatarError):
    """A weight file is missing, damaged, or does not fit the model.

    Args:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"weights {self.path}: {self.reason}"


class StreamLimitReached(AvatarError):
    """The engine already runs as many streams as it can hold.

    Args:
        max_streams: How many it can hold.
    """

    def __init__(self, max_streams: int) -> None:
        super().__init__(max_streams)
        self.max_streams = max_streams

    def __str__(self) -> str:
        return f"all {self.max_streams} streams of the engine are taken"


class WorkerError(AvatarError):
    """The engine's worker process failed; the text may be what the worker itself reported."""


class WorkerStartTimeout(WorkerError):
    """The worker did not become ready in time.

    Args:
        waited_s: How long was waited, in seconds.
    """

    def __init__(self, waited_s: float) -> None:
        super().__init__(waited_s)
        self.waited_s = waited_s

    def __str__(self) -> str:
        return f"the worker was not ready after {self.waited_s:.0f} s"


class WorkerCrashed(WorkerError):
    """The worker process ended by itself.

    Args:
        rank: Index of the worker.
        exit_code: Exit status of the process; negative for a signal.
    """

    def __init__(self, rank: int, exit_code: int | None) -> None:
        super().__init__(rank, exit_code)
        self.rank = rank
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"worker {self.rank} ended with exit code {self.exit_code}"


class WorkerStalled(WorkerError):
    """The worker process lives but no longer answers.

    Args:
        rank: Index of the worker.
        silent_s: Seconds since its last heartbeat.
    """

    def __init__(self, rank: int, silent_s: float) -> None:
        super().__init__(rank, silent_s)
        self.rank = rank
        self.silent_s = silent_s

    def __str__(self) -> str:
        return f"worker {self.rank} has been silent for {self.silent_s:.1f} s"
