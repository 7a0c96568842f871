"""Tests of server/http.py: slow, silent and endless heads of requests, and clients that take nothing.

Over real sockets, in time that is skipped.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.http import MAX_HEAD_BYTES, bounded_http, bounded_websocket

pytestmark = pytest.mark.contract

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
FLOOD = 32 * 1024 * 1024 * b"a"
"""More than the buffers on the way hold."""
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
TIMEOUT_S = 1000.0
"""So long that it is only reached by skipping."""
LATE = (400, "bad_request", f"the head of the request did not arrive within {TIMEOUT_S:g} s")

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """Answers every request with its path or with a body, once its gate is open; a WebSocket is sent it at once."""

    def __init__(self, body: bytes = b"") -> None:
        self.body = body
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_begun = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        self.num_begun += 1
        await self.gate.wait()
        body = self.body or scope["path"].encode()
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "bytes": body})
            while (await receive())["type"] != "websocket.disconnect":
                pass
            return
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Connection:
    """The client's end, and what the test knows of the server's."""

    def __init__(self, app: Application, state: ServerState) -> None:
        self.app = app
        self._state = state
        self.num_received = 0
        self._num_said = 0
        self._skipped_s = 0.0
        loop = asyncio.get_running_loop()
        real_s = loop.time
        loop.time = lambda: real_s() + self._skipped_s  # type: ignore[method-assign]

    async def open(self, address: tuple[str, int]) -> None:
        self._reader, self._writer = await asyncio.open_connection(*address)

    async def skip(self, seconds: float) -> None:
        """Let time pass at once."""
        self._skipped_s += seconds
        await asyncio.sleep(0.001)

    async def say(self, data: bytes) -> None:
        """Send, and wait until the server has it."""
        self._writer.write(data)
        self._num_said += len(data)
        while self.num_received < self._num_said:  # noqa: ASYNC110 - the server does not tell
            await asyncio.sleep(0.001)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line.split()[1]) for line in head.splitlines() if line.lower().startswith("content-length"))
        return int(head.split()[1]), await self._reader.readexactly(length)

    async def take(self, num_bytes: int) -> None:
        """Read past the head and over so many bytes more."""
        await self._reader.readuntil(b"\r\n\r\n")
        await self.take_more(num_bytes)

    async def take_more(self, num_bytes: int) -> None:
        """Read over so many bytes."""
        await self._reader.readexactly(num_bytes)

    def num_open(self) -> int:
        """Connections that the server still has."""
        return len(self._state.connections)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        return await self._reader.read()

    async def problem(self) -> tuple[int, str, str]:
        """Status, code and message of the only answer that comes until the server closes."""
        head, _, body = (await self.rest()).decode().partition("\r\n\r\n")
        error = json.loads(body)["error"]
        return int(head.split()[1]), error["code"], error["message"]

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(app: Application | None = None) -> AsyncIterator[Connection]:
    app = app or Application()
    config = uvicorn.Config(
        app,
        http=bounded_http(head_timeout_s=TIMEOUT_S, send_timeout_s=TIMEOUT_S),
        ws=bounded_websocket(send_timeout_s=TIMEOUT_S),
        ws_ping_interval=None,
        lifespan="off",
        log_config=None,
        timeout_keep_alive=100 * int(TIMEOUT_S),
    )
    config.load()
    state = ServerState()
    connection = Connection(app, state)

    class Counted(config.http_protocol_class):  # type: ignore[misc, name-defined]
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            connection.num_received += len(data)

    server = await asyncio.get_running_loop().create_server(
        lambda: Counted(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    await connection.open(server.sockets[0].getsockname())
    try:
        yield connection
    finally:
        connection.close()
        server.close()
        await asyncio.gather(*state.tasks)
        while state.connections:  # noqa: ASYNC110 - a set tells nobody of a change
            await asyncio.sleep(0.001)


async def test_a_client_that_says_nothing_is_hung_up_on_without_a_word() -> None:
    async with connected() as c:
        await c.skip(TIMEOUT_S)
        assert await c.rest() == b""


async def test_a_head_that_is_there_in_time_is_answered() -> None:
    async with connected() as c:
        await c.say(GET[:-2])
        await c.skip(0.9 * TIMEOUT_S)
        await c.say(GET[-2:])
        assert await c.answer() == (200, b"/")


async def test_a_head_that_comes_byte_by_byte_has_no_more_time_than_another() -> None:
    async with connected() as c:
        await c.say(GET[:-2])
        for _ in range(4):
            await c.skip(0.22 * TIMEOUT_S)
            await c.say(b"X-Header: a\r\n")
        await c.skip(0.22 * TIMEOUT_S)
        assert await c.problem() == LATE
        assert c.app.num_begun == 0


async def test_the_head_of_a_further_request_has_its_own_deadline() -> None:
    async with connected() as c:
        await c.say(GET)
        assert await c.answer() == (200, b"/")
        await c.skip(5 * TIMEOUT_S)
        await c.say(b"GET /second")
        await c.skip(0.9 * TIMEOUT_S)
        await c.say(b" HTTP/1.1\r\n\r\n")
        assert await c.answer() == (200, b"/second")
        await c.say(b"GET /third")
        await c.skip(TIMEOUT_S)
        assert await c.problem() == LATE


async def test_empty_lines_between_requests_buy_no_time() -> None:
    async with connected() as c:
        await c.say(GET)
        assert await c.answer() == (200, b"/")
        await c.say(b"\r\n")
        await c.skip(0.9 * TIMEOUT_S)
        await c.say(b"\r\n")
        await c.skip(0.2 * TIMEOUT_S)
        assert await c.rest() == b""


async def test_an_answer_may_take_longer_than_the_deadline() -> None:
    async with connected() as c:
        c.app.gate.clear()
        await c.say(GET)
        await c.skip(2 * TIMEOUT_S)
        c.app.gate.set()
        assert await c.answer() == (200, b"/")


async def test_a_head_without_end_is_refused_when_it_is_too_large() -> None:
    async with connected() as c:
        await c.say(GET[:-2] + b"X-Large: ")
        await c.say(b"a" * (MAX_HEAD_BYTES - len(GET[:-2] + b"X-Large: ")))
        await c.say(b"a")
        message = f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"
        assert await c.problem() == (413, "too_large", message)


async def test_many_requests_over_one_connection_are_each_measured_by_themselves() -> None:
    async with connected() as c:
        for number in range(4):
            await c.say(b"GET /%d HTTP/1.1\r\nHost: here\r\n" % number)
            await c.say(b"X-Large: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n")
            assert await c.answer() == (200, f"/{number}".encode())


async def test_a_body_that_is_sent_on_after_the_answer_is_no_head_and_ends_with_the_connection() -> None:
    async with connected() as c:
        await c.say(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10000000\r\n\r\n")
        assert await c.answer() == (200, b"/")
        await c.say(b"a" * 2 * MAX_HEAD_BYTES)
        await c.skip(TIMEOUT_S)
        assert await c.rest() == b""


async def test_a_second_request_that_does_not_end_puts_no_word_into_the_first_ones_answer() -> None:
    async with connected() as c:
        c.app.gate.clear()
        await c.say(GET + b"GET /second")
        await c.skip(TIMEOUT_S)
        assert await c.rest() == b""
        c.app.gate.set()


async def test_what_is_no_http_is_refused_in_json() -> None:
    async with connected() as c:
        await c.say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert await c.problem() == (400, "bad_request", "invalid HTTP request received")


async def test_a_body_that_is_no_http_is_refused_in_json_too() -> None:
    async with connected() as c:
        c.app.gate.clear()
        await c.say(GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n")
        assert await c.problem() == (400, "bad_request", "invalid HTTP request received")
        c.app.gate.set()


@pytest.mark.parametrize("request_head", [GET, UPGRADE], ids=["http", "websocket"])
async def test_a_client_that_does_not_take_its_answer_is_hung_up_on(request_head: bytes) -> None:
    async with connected(Application(FLOOD)) as c:
        await c.say(request_head)
        await c.skip(0.9 * TIMEOUT_S)
        assert c.num_open() == 1
        while c.num_open():  # what the buffers on the way took late counts as taken
            await c.skip(1.1 * TIMEOUT_S)
        assert len(await c.rest()) < len(FLOOD)


async def test_a_client_that_takes_its_answer_slowly_is_waited_for() -> None:
    async with connected(Application(FLOOD)) as c:
        await c.say(GET)
        await c.take(len(FLOOD) // 4)
        for _ in range(3):
            await c.skip(0.9 * TIMEOUT_S)
            await c.take_more(len(FLOOD) // 4)
        assert c.num_open() == 1


@pytest.mark.parametrize("request_head", [GET, UPGRADE], ids=["http", "websocket"])
async def test_a_client_that_takes_its_answer_in_time_gets_all_of_it_and_stays(request_head: bytes) -> None:
    async with connected(Application(FLOOD)) as c:
        await c.say(request_head)
        await c.skip(0.9 * TIMEOUT_S)
        await c.take(len(FLOOD))
        await c.skip(10 * TIMEOUT_S)
        assert c.num_open() == 1
