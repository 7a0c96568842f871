"""Tests of server/main.py: starting, being told to stop, and an address that is taken."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from pipeline.errors import ConfigError
from server.config import ServerConfig
from server.errors import AddressTaken
from server.main import bind, page_address

pytestmark = pytest.mark.contract

RUN = (
    "import sys; from server.config import load_config; from server.main import run;"
    "config = load_config(environment={}, assignments=sys.argv[1:]);"
    "sys.exit(run(config, announce=lambda line: print(line, flush=True)))"
)


def test_a_taken_port_is_an_error_with_port_and_rule() -> None:
    with bind(ServerConfig(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(AddressTaken, match=f"port {port}: address already in use"):
            bind(ServerConfig(port=port))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(AddressTaken, match=r"192\.0\.2\.1"):
        bind(ServerConfig(host="192.0.2.1", port=0))
    with pytest.raises(ConfigError, match="server.host is 'no host'"):
        bind(ServerConfig(host="no host", port=0))


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "http://127.0.0.1:{}/"), ("0.0.0.0", "http://127.0.0.1:{}/")]
)
def test_the_address_is_one_that_a_browser_here_can_open(host: str, address: str) -> None:
    config = ServerConfig(host=host, port=0)
    with bind(config) as listener:
        assert page_address(config, listener) == address.format(listener.getsockname()[1])


def run_server(*settings: str) -> subprocess.Popen[str]:
    """Start a server with the pattern engine as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "engine.name=pattern", "server.port=0", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def read_lines(process: subprocess.Popen[str], *beginnings: str) -> list[str]:
    """Read until a line with each of these beginnings was there: server and engine may speak in either order."""
    assert process.stdout is not None
    found: dict[str, str] = {}
    while set(found) < set(beginnings):
        line = process.stdout.readline()
        assert line, f"the output ended; found so far: {found}"
        found |= {beginning: line for beginning in beginnings if line.startswith(beginning)}
    return [found[beginning] for beginning in beginnings]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_says_where_it_is_serves_and_ends_in_order_when_told(number: signal.Signals) -> None:
    with run_server("server.head_timeout_s=1") as process:
        opened, _ = read_lines(process, "Open http://127.0.0.1:", "The pattern engine is ready")
        address = opened.removeprefix("Open ").strip()
        with urllib.request.urlopen(f"{address}api/info", timeout=20) as response:
            assert json.load(response)["engine"]["state"] == "ready"
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))), timeout=20) as silent:
            assert silent.recv(1) == b"", "who says nothing is hung up on"
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0, log
        assert "Traceback" not in log
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))), timeout=1)


def test_an_engine_that_gives_up_is_announced_with_its_reason_and_the_server_stays() -> None:
    settings = ["engine.pattern.fault=raise", "engine.pattern.fault_at_warm_up=true", "engine.max_restarts=0"]
    with run_server(*settings) as process:
        opened, _ = read_lines(process, "Open ", "The engine has given up: ")
        address = opened.removeprefix("Open ").strip()
        with urllib.request.urlopen(f"{address}api/info", timeout=20) as response:
            assert json.load(response)["engine"]["state"] == "failed"
        process.terminate()
        rest, log = process.communicate(timeout=20)
        assert process.returncode == 0, log
        assert rest == "", "it is said once"
