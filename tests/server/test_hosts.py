"""Tests of server/hosts.py: which names the server answers to, and which pages may open a control channel."""

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from server.hosts import HostCheck, Hosts

pytestmark = pytest.mark.unit

LOOPBACK = Hosts("127.0.0.1", machine="Studio")
OPEN = Hosts("0.0.0.0", ("Avatar.example",), machine="Studio")
ANY = Hosts("::1", ("*",), machine="studio")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "app.localhost:1",
        "127.0.0.1:8080",
        "127.9.9.9",
        "[::1]",
        "[::1]:80",
    ],
)
@pytest.mark.parametrize("hosts", [LOOPBACK, OPEN, ANY], ids=["loopback", "open", "any"])
def test_this_machine_always_reaches_its_server(hosts: Hosts, host: str) -> None:
    assert hosts.has(host)


@pytest.mark.parametrize(
    "host", ["192.168.1.5:8080", "[fe80::1]:8080", "studio", "STUDIO.local:8080", "avatar.example"]
)
def test_a_server_for_others_answers_to_addresses_and_to_its_names(host: str) -> None:
    assert OPEN.has(host)
    assert not LOOPBACK.has(host)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]", ":80"],
)
def test_a_name_of_somebody_else_is_none_of_the_server_unless_every_name_is_taken(host: str) -> None:
    assert not LOOPBACK.has(host)
    assert not OPEN.has(host)
    assert ANY.has(host)


def test_a_server_that_listens_on_a_name_answers_to_it() -> None:
    assert Hosts("avatar.example", machine="studio").has("avatar.example:8080")
    assert not Hosts("localhost", machine="studio").has("studio")


@pytest.mark.parametrize("origin", [None, "http://localhost:8080", "http://LOCALHOST:8080", "https://avatar.example"])
def test_programs_own_pages_and_pages_of_added_names_may_open_a_channel(origin: str | None) -> None:
    assert OPEN.is_own_page(origin, "localhost:8080")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:3000", "http://127.0.0.1:8080", "null", "", "http://[", "file://"],
)
def test_pages_of_other_origins_may_not(origin: str) -> None:
    assert not OPEN.is_own_page(origin, "localhost:8080")
    assert not LOOPBACK.is_own_page(origin, "")


async def test_what_is_neither_http_nor_a_socket_passes_the_check() -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    async def nothing(*message: Any) -> Any:
        pytest.fail("nothing is received or sent")

    await HostCheck(app, LOOPBACK)({"type": "lifespan"}, nothing, nothing)
    assert passed == ["lifespan"]
