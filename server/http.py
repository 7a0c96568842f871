"""HTTP and WebSocket of uvicorn, with bounds that uvicorn does not have: on the head of a request, and on sending.

A client that connects and says nothing, or says the head of a request byte by byte and without end, would hold its
connection and memory for ever, and so would one that never takes what it is sent: closing in order waits for it too.
Bodies are bounded where they are read (bodies.py), idle connections by uvicorn.
"""

import asyncio
import json
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from pipeline.errors import AvatarError
from server.errors import RequestError, TooLarge, reply_for

__all__ = ["MAX_HEAD_BYTES", "bounded_http", "bounded_websocket"]

MAX_HEAD_BYTES = 64 * 1024


class _Impatient(asyncio.Protocol):
    """Hangs up on a client that does not take what it is sent."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    send_timeout_s: ClassVar[float]
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have the transport say whenever anything waits to be taken."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_sending()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client."""
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        """Stop waiting: it has taken everything."""
        self._stop_sending()
        super().resume_writing()

    def _wait_for_client(self) -> None:
        num_left = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self.send_timeout_s, self._hang_up_unless_less, num_left)

    def _hang_up_unless_less(self, num_before: int) -> None:
        if self.transport.get_write_buffer_size() < num_before:
            self._wait_for_client()
        else:
            self.transport.abort()

    def _stop_sending(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


class _BoundedWebSocket(_Impatient, WebSocketsSansIOProtocol):
    """One connection after its upgrade."""


class _BoundedHttp(_Impatient, HttpToolsProtocol):
    """One connection. The parser calls `on_...` from within `data_received`."""

    head_timeout_s: ClassVar[float]
    _head_timer: asyncio.TimerHandle | None = None
    _is_head_open = False
    _num_head_bytes = 0

    @property
    def _is_answered(self) -> bool:
        """Whether there is no request whose answer is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; the head of a further request has to be there in time, whatever comes before it."""
        if self._is_answered:
            self._await_head()
        super().data_received(data)
        if self._is_head_open and not self.transport.is_closing():
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse_head(TooLarge("head of the request", MAX_HEAD_BYTES))

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._is_head_open = True
        self._num_head_bytes = 0
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End a head."""
        self._is_head_open = False
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the words of the wire contract; uvicorn calls it and would answer in plain text."""
        is_unanswered = self._is_answered or not self.cycle.response_started
        self._close(RequestError(f"{msg[:1].lower()}{msg[1:].rstrip('.')}") if is_unanswered else None)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._refuse_head(RequestError(f"the head of the request did not arrive within {self.head_timeout_s:g} s"))

    def _refuse_head(self, error: AvatarError) -> None:
        """Close, with an answer where a request was begun and no answer to another one is under way."""
        self._close(error if self._is_head_open and self._is_answered else None)

    def _close(self, error: AvatarError | None) -> None:
        if error is not None:
            reply = reply_for(error, retry_after_s=0)
            body = json.dumps(reply.body)
            lines = (
                f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                "Connection: close",
            )
            self.transport.write("\r\n".join((*lines, "", body)).encode("ascii"))
        self.transport.close()


def bounded_http(*, head_timeout_s: float, send_timeout_s: float) -> type[asyncio.Protocol]:
    """Make the protocol class for uvicorn.

    Args:
        head_timeout_s: Until the head of a request has to be there, from the connection or from its first byte on.
        send_timeout_s: Until the client has to have taken some of what it is sent.

    Returns:
        What `uvicorn.Config` takes as `http`.
    """
    limits = {"head_timeout_s": head_timeout_s, "send_timeout_s": send_timeout_s}
    return type("BoundedHttp", (_BoundedHttp,), limits)


def bounded_websocket(*, send_timeout_s: float) -> type[asyncio.Protocol]:
    """Make the protocol class for uvicorn.

    Args:
        send_timeout_s: Until the client has to have taken some of what it is sent.

    Returns:
        What `uvicorn.Config` takes as `ws`.
    """
    return type("BoundedWebSocket", (_BoundedWebSocket,), {"send_timeout_s": send_timeout_s})
