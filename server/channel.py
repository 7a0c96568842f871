"""The WebSocket end of a session's control channel."""

import asyncio
import json
import logging
from collections import deque
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from pipeline.errors import AvatarError
from server.control import Interrupt, SetPortrait, done_message, parse_command, problem_message
from server.errors import RequestError, TooLarge, reply_for
from server.session import Session
from server.sessions import Sessions

__all__ = ["ControlChannel"]

logger = logging.getLogger(__name__)

MAX_WAITING_MESSAGES = 256
CLOSE_REPLACED = 4000
"""Close code for a channel whose session ended or that was replaced by another."""


class ControlChannel:
    """Reads commands from a WebSocket and sends it what the session has to say.

    Messages that the viewer does not take in time are dropped, the oldest first: the figures are stale then anyway.

    Args:
        socket: Accepted.
        session: Whose channel it is.
        sessions: Where portraits come from.
        max_bytes: Largest message from the client.
        retry_after_s: For errors that name it.
    """

    def __init__(
        self, socket: WebSocket, session: Session, sessions: Sessions, *, max_bytes: int, retry_after_s: int
    ) -> None:
        self._socket = socket
        self._session = session
        self._sessions = sessions
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING_MESSAGES)
        self._has_news = asyncio.Event()
        self._is_closed = False

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; never waits."""
        self._waiting.append(message)
        self._has_news.set()

    def close(self) -> None:
        """Send what is queued, then close the socket."""
        self._is_closed = True
        self._has_news.set()

    async def run(self) -> None:
        """Serve until either side closes. Cancellation closes the channel."""
        self._session.attach_control(self)
        tasks = [
            asyncio.create_task(self._write(), name=f"{self._session.id}-control-write"),
            asyncio.create_task(self._read(), name=f"{self._session.id}-control-read"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._session.detach_control(self)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                    logger.error("a control channel failed", exc_info=result)

    async def _write(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            while self._waiting:
                await self._socket.send_text(json.dumps(self._waiting.popleft()))
            if self._is_closed:
                await self._socket.close(CLOSE_REPLACED)
                return

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            # Many messages come in one piece: between two of them everybody else has a turn.
            await asyncio.sleep(0)
            if message["type"] == "websocket.disconnect":
                return
            command_id: int | str | None = None
            try:
                text = self._text(message)
                command_id = _find_id(text)
                await self._obey(text)
            except AvatarError as exc:
                self.send(problem_message(reply_for(exc, retry_after_s=self._retry_after_s), command_id))
            else:
                self.send(done_message(command_id))

    def _text(self, message: Any) -> str:
        text = message.get("text")
        if text is None:
            raise RequestError("a binary message is not understood, but a JSON text is")
        if len(text) > self._max_bytes:
            raise TooLarge("message", self._max_bytes)
        return str(text)

    async def _obey(self, text: str) -> None:
        command = parse_command(text)
        if isinstance(command, Interrupt):
            await self._session.interrupt()
        elif isinstance(command, SetPortrait):
            await self._session.set_portrait(await self._sessions.load_portrait(command.portrait))
        else:
            self._sessions.check_params(command.params)
            await self._session.update(command.params)


def _find_id(text: str) -> int | str | None:
    """The id of a message that may be wrong otherwise, so that its error can carry it."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = message.get("id") if isinstance(message, dict) else None
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None
