"""Runs the server until it is told to stop: what `visavis serve` calls."""

import asyncio
import gc
import logging
import math
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from pipeline.errors import ConfigError
from pipeline.host.engine import WorkerEngine
from server.app import create_app
from server.config import AppConfig, ServerConfig
from server.errors import AddressTaken
from server.http import bounded_http, bounded_websocket
from server.logs import install_logging, or_logged

__all__ = ["run"]

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(config: AppConfig, *, announce: Callable[[str], object]) -> int:
    """Serve until SIGINT or SIGTERM, then end sessions and worker in order.

    Args:
        config: Everything.
        announce: Gets lines for the person who started the server: the address of the page once it is served. Where
            nobody takes them any more, the log does.

    Returns:
        Exit status: 0 after a signal, 1 when the server could not start.

    Raises:
        AddressTaken: The address cannot be listened on.
        ConfigError: The host is no address at all.
    """
    install_logging(config.log)
    listener = bind(config.server)
    logger.info("settings that differ from the defaults: %s", config.model_dump_json(exclude_defaults=True))
    # uvicorn raises the signals it caught once more when it is done; these handlers keep that from ending the process.
    before = {number: signal.signal(number, _ignore) for number in _SIGNALS}
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(config, listener, or_logged(announce)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()


def bind(config: ServerConfig) -> socket.socket:
    """Take the address before anything is started.

    Args:
        config: Host and port.

    Returns:
        A listening socket.

    Raises:
        AddressTaken: The system refuses it.
        ConfigError: The host is no address at all.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as exc:
        raise ConfigError("server.host", config.host, f"it has to be an address of this machine ({exc})") from exc
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise AddressTaken(config.host, config.port, (exc.strerror or str(exc)).lower()) from exc
    return listener


def page_address(config: ServerConfig, listener: socket.socket) -> str:
    """Address of the page for a browser on this machine.

    Args:
        config: For the host.
        listener: For the port that was taken.

    Returns:
        An http address; one that listens on all addresses is reached by the loopback one.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{listener.getsockname()[1]}/"


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it serves."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_started()


async def _serve(config: AppConfig, listener: socket.socket, announce: Callable[[str], object]) -> int:
    engine = WorkerEngine(config.engine)

    def on_engine() -> None:
        info = engine.info
        if engine.state == "ready" and info is not None:
            announce(
                f"The {info.name} engine is ready: {info.width_px}x{info.height_px}, {info.num_steps} steps, "
                f"{info.warm_window_s * 1000.0:.0f} ms per window of 480 ms."
            )
            for note in info.notes:
                announce(f"  {note}")
        elif engine.state == "failed":
            announce(f"The engine has given up: {engine.failure}")

    unwatch = engine.watch(on_engine)
    server = _Server(
        uvicorn.Config(
            create_app(config.server, engine, prompt=config.engine.large.prompt),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            http=bounded_http(head_timeout_s=config.server.head_timeout_s, send_timeout_s=config.server.send_timeout_s),
            ws=bounded_websocket(send_timeout_s=config.server.send_timeout_s),
            ws_max_size=config.server.max_json_bytes,
            timeout_graceful_shutdown=math.ceil(config.server.shutdown_timeout_s),
        ),
        on_started=lambda: announce(f"Open {page_address(config.server, listener)}"),
    )
    engine.start()
    # What is loaded by now stays: without it, a full collection holds the loop for milliseconds instead of 100 ms.
    gc.collect()
    gc.freeze()
    try:
        await server.serve(sockets=[listener])
    finally:
        unwatch()
        await engine.aclose()
    return 0 if server.started else 1


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        # uvloop is not built for every system.
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _ignore(number: int, frame: FrameType | None) -> None:
    del number, frame
