"""Logging of the server process: handlers are installed here, once; everybody else only gets a logger."""

import json
import logging
import sys
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from server.config import LogConfig

__all__ = ["SessionLog", "install_logging", "or_logged"]

logger = logging.getLogger(__name__)

_FIELDS = ("session_id", "rank")
_LOUD = ("aioice", "aiortc", "uvicorn.access", "uvicorn.error", "websockets", "PIL", "asyncio")


class SessionLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the session to every record.

    Args:
        logger: Where the records go.
        session_id: Which session they belong to.
    """

    def __init__(self, logger: logging.Logger, session_id: str) -> None:
        super().__init__(logger, {"session_id": session_id})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the session to one record, beside the fields that it has already."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class TextFormatter(logging.Formatter):
    """Lines for people: time, level, logger, session or rank, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        where = " ".join(str(getattr(record, name)) for name in _FIELDS if hasattr(record, name))
        record.where = f" [{where}]" if where else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: getattr(record, name) for name in _FIELDS if hasattr(record, name)})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def install_logging(config: LogConfig) -> None:
    """Send the records of the whole process to stderr; replaces the handlers of an earlier call.

    Args:
        config: Level and format.
    """
    handler = logging.StreamHandler(sys.stderr)
    if config.format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)-7s %(name)s%(where)s: %(message)s"))
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)


def or_logged(announce: Callable[[str], object]) -> Callable[[str], None]:
    """Announce without fail: a pipe that nobody reads (`visavis serve | head -1`) or a lost terminal ends no server.

    Args:
        announce: Says a line to the person who started the server; it may raise what printing raises.

    Returns:
        Says a line, or logs it where that fails.
    """

    def say(line: str) -> None:
        try:
            announce(line)
        except (OSError, ValueError) as exc:
            logger.warning("not announced (%s): %s", exc, line)

    return say
