"""The worker's end of the socket: send, poll, and the watch on the parent.

The main loop sends and polls. Log records may be sent from any thread, so sending takes a lock. A small thread does
nothing but wait for the parent to be gone, because the main loop may be deep in a computation then. It reads a pipe of
which only the parent has the other end: not every system tells of a hang-up without reading, and the socket is not the
thread's to read.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from pipeline.host.messages import Heartbeat, LogRecord, Message, MessageDecoder, encode_message

__all__ = ["LinkHandler", "ParentLost", "WorkerLink", "watch_parent"]

_RECEIVE_BYTES = 1 << 20


class ParentLost(Exception):
    """The server is gone: the worker has nobody to work for and ends."""


class WorkerLink:
    """Messages to and from the server.

    Args:
        control: The connected socket, in blocking mode; the link owns it.
        now_s: Monotonic clock.
    """

    def __init__(self, control: socket.socket, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._control = control
        self._now_s = now_s
        self._decoder = MessageDecoder()
        self._send_lock = threading.Lock()
        self._sent_s = now_s()

    def send(self, message: Message) -> None:
        """Send a message; waits while the socket is full.

        Args:
            message: The message.

        Raises:
            ParentLost: The server is gone.
        """
        frame = encode_message(message)
        with self._send_lock:
            try:
                self._control.sendall(frame)
            except OSError as exc:
                raise ParentLost from exc
            self._sent_s = self._now_s()

    def beat(self, heartbeat_s: float) -> None:
        """Send a heartbeat if nothing was sent for a while.

        Args:
            heartbeat_s: The longest silence allowed; half of it is waited for.

        Raises:
            ParentLost: The server is gone.
        """
        if self._now_s() - self._sent_s >= heartbeat_s / 2:
            self.send(Heartbeat())

    def poll(self, timeout_s: float) -> list[Message]:
        """Receive what is there.

        Args:
            timeout_s: How long to wait for the first byte; 0 does not wait.

        Returns:
            The messages that are complete, perhaps none.

        Raises:
            ParentLost: The server is gone.
        """
        readable, _, _ = select.select([self._control], [], [], timeout_s)
        if not readable:
            return []
        try:
            data = self._control.recv(_RECEIVE_BYTES)
        except OSError as exc:
            raise ParentLost from exc
        if not data:
            raise ParentLost
        return self._decoder.feed(data)

    def close(self) -> None:
        """Close the socket."""
        self._control.close()


class LinkHandler(logging.Handler):
    """Sends log records to the server, which logs them with the worker's rank.

    Args:
        link: The link.
    """

    def __init__(self, link: WorkerLink) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record.

        Args:
            record: The record.
        """
        with suppress(ParentLost):  # Nobody is left to tell; the main loop ends by itself.
            self._link.send(LogRecord(logger=record.name, level=record.levelno, text=self.format(record)))


def watch_parent(lifeline_fd: int, *, grace_s: float) -> threading.Thread:
    """Start the thread that ends the process when the server is gone.

    Args:
        lifeline_fd: The pipe; nothing ever comes out of it but its end.
        grace_s: Time that the main loop gets to end by itself.

    Returns:
        The running thread; it ends with the process.
    """

    def wait_for_end() -> None:
        while os.read(lifeline_fd, 1):
            pass
        time.sleep(grace_s)
        os._exit(1)

    thread = threading.Thread(target=wait_for_end, name="parent-watch", daemon=True)
    thread.start()
    return thread
