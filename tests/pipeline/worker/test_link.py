import logging
import socket
from collections.abc import Iterator

import pytest

from pipeline.host.messages import Heartbeat, Hello, LogRecord, MessageDecoder, Shutdown, encode_message
from pipeline.worker.link import LinkHandler, ParentLost, WorkerLink

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, worker = socket.socketpair()
    yield server, worker
    server.close()
    worker.close()


def test_messages_arrive_whole_even_if_they_come_in_pieces(sockets: tuple[socket.socket, socket.socket]) -> None:
    server, worker = sockets
    link = WorkerLink(worker)
    frame = encode_message(Shutdown())
    server.sendall(frame[:5])
    assert link.poll(0) == []
    server.sendall(frame[5:] + frame)
    assert link.poll(0) == [Shutdown(), Shutdown()]
    assert link.poll(0) == []


def test_a_heartbeat_goes_out_after_half_of_the_allowed_silence(sockets: tuple[socket.socket, socket.socket]) -> None:
    server, worker = sockets
    clock = Clock()
    link = WorkerLink(worker, now_s=clock)
    clock.now_s += 0.2
    link.beat(0.5)
    link.send(Hello(pid=1, protocol_version=1))
    clock.now_s += 0.2
    link.beat(0.5)
    clock.now_s += 0.1
    link.beat(0.5)
    link.beat(0.5)
    received = MessageDecoder().feed(server.recv(10_000))
    assert received == [Hello(pid=1, protocol_version=1), Heartbeat()]


def test_a_server_that_hangs_up_is_noticed_by_reading_and_by_writing(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    server, worker = sockets
    link = WorkerLink(worker)
    server.close()
    with pytest.raises(ParentLost):
        link.poll(0)
    with pytest.raises(ParentLost):
        link.send(Heartbeat())


def test_a_server_that_dies_with_unread_messages_is_noticed_too(sockets: tuple[socket.socket, socket.socket]) -> None:
    server, worker = sockets
    link = WorkerLink(worker)
    link.send(Heartbeat())
    server.close()  # Closing with unread data resets the connection.
    with pytest.raises(ParentLost):
        link.poll(0)


def test_log_records_travel_with_their_traceback(sockets: tuple[socket.socket, socket.socket]) -> None:
    server, worker = sockets
    logger = logging.Logger("pipeline.worker.some", logging.INFO)
    logger.addHandler(LinkHandler(WorkerLink(worker)))
    logger.debug("not this")
    logger.info("stream %d", 7)
    try:
        raise OSError("no such thing")
    except OSError:
        logger.exception("failed")
    first, second = MessageDecoder().feed(server.recv(10_000))
    assert first == LogRecord(logger="pipeline.worker.some", level=logging.INFO, text="stream 7")
    assert isinstance(second, LogRecord)
    assert second.text.startswith("failed\nTraceback")
    assert second.text.endswith("OSError: no such thing")


def test_logging_to_a_server_that_is_gone_is_no_error(sockets: tuple[socket.socket, socket.socket]) -> None:
    server, worker = sockets
    logger = logging.Logger("pipeline.worker.some", logging.INFO)
    logger.addHandler(LinkHandler(WorkerLink(worker)))
    server.close()
    logger.info("into the void")
