"""The only place where the objects of the server are wired together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from pipeline.errors import AvatarError
from server.clock import Clock, MonotonicClock
from server.config import ServerConfig
from server.engine import WatchedEngine
from server.errors import ErrorReply, reply_for
from server.headers import SecurityHeaders
from server.hosts import HostCheck, Hosts
from server.metrics import Metrics
from server.portraits import PortraitStore
from server.routes import Routes
from server.sessions import Sessions

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
_WEB = _ROOT / "client" / "web"
_EMBEDDED = _ROOT / "pipeline" / "weights" / "embedded"
_LAG_PERIOD_S = 0.25


def create_app(
    config: ServerConfig,
    engine: WatchedEngine,
    *,
    prompt: str | None = None,
    clock: Clock | None = None,
    assets: Path = _EMBEDDED,
) -> FastAPI:
    """Make the application around an engine; the caller starts the engine and closes it after the application.

    Args:
        config: Limits and deadlines.
        engine: Where streams come from.
        prompt: What an engine that takes a prompt does without one; the page shows it to begin with.
        clock: The clock of all sessions; the real one when None.
        assets: Folder with the default portraits and the speech sample.

    Returns:
        The ASGI application. Its lifespan gives the loop its own executor for encoding, and ends all sessions.
    """
    clock = clock or MonotonicClock()
    metrics = Metrics()
    images = ThreadPoolExecutor(config.image_threads, thread_name_prefix="visavis-image")
    portraits = PortraitStore(
        images, max_uploads=config.max_uploads, max_uploads_per_visitor=config.max_uploads_per_visitor
    )
    sessions = Sessions(engine, portraits, config=config, clock=clock, metrics=metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        # aiortc encodes on the loop's default executor.
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(config.encode_threads, thread_name_prefix="visavis-encode")
        )
        await portraits.load_defaults(assets / "portraits")
        unwatch = _watch_engine(engine, metrics)
        lag_task = asyncio.create_task(_measure_lag(metrics), name="event-loop-lag")
        try:
            yield
        finally:
            lag_task.cancel()
            await asyncio.gather(lag_task, return_exceptions=True)
            await sessions.aclose()
            unwatch()
            images.shutdown(wait=False, cancel_futures=True)

    # Without the generated documentation: its pages load scripts from elsewhere.
    app = FastAPI(title="visavis", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    hosts = Hosts(config.host, config.allowed_hosts)
    app.add_middleware(HostCheck, hosts=hosts)
    app.add_middleware(SecurityHeaders)
    _install_error_handlers(app, config, metrics)
    routes = Routes(
        engine,
        sessions,
        portraits,
        config=config,
        prompt=prompt,
        hosts=hosts,
        metrics=metrics,
        sample=assets / "sample.wav",
    )
    app.include_router(routes.router())
    app.mount("/", StaticFiles(directory=_WEB, html=True, check_dir=False), name="page")
    return app


def _install_error_handlers(app: FastAPI, config: ServerConfig, metrics: Metrics) -> None:
    async def on_ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AvatarError)
        reply = reply_for(error, retry_after_s=config.retry_after_s)
        if reply.status == 500:
            logger.error("a request failed", exc_info=error)
        if request.url.path == "/offer":
            metrics.refused.labels(reply.code).inc()
        return _json(reply)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path[:80]
        if error.status_code == 404:
            return _json(ErrorReply(status=404, code="not_found", message=f"path {path!r} does not exist"))
        message = f"{request.method[:20]} {path!r}: {str(error.detail)[:1].lower()}{str(error.detail)[1:]}"
        return _json(ErrorReply(status=error.status_code, code="bad_request", message=message))

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        # The last edge of a request; the server logs the traceback.
        del request, error
        return _json(ErrorReply(status=500, code="internal", message="the server failed; its log says why"))

    app.add_exception_handler(AvatarError, on_ours)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def _json(reply: ErrorReply) -> JSONResponse:
    headers = {} if reply.retry_after_s is None else {"Retry-After": str(reply.retry_after_s)}
    return JSONResponse(reply.body, status_code=reply.status, headers=headers)


def _watch_engine(engine: WatchedEngine, metrics: Metrics) -> Callable[[], None]:
    num_counted = engine.num_restarts

    def note() -> None:
        nonlocal num_counted
        metrics.is_ready.set(engine.state == "ready")
        metrics.restarts.labels("0").inc(engine.num_restarts - num_counted)
        num_counted = engine.num_restarts

    note()
    return engine.watch(note)


async def _measure_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _LAG_PERIOD_S
        await asyncio.sleep(_LAG_PERIOD_S)
        metrics.loop_lag.observe(max(0.0, loop.time() - due_s))
