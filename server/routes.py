"""Every endpoint of client/PROTOCOL.md, as a thin layer over sessions and portraits."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel

from pipeline.geometry import WINDOW_S
from server.bodies import CropBody, OfferBody, read_body, read_json, require_type
from server.channel import ControlChannel
from server.config import ServerConfig
from server.control import problem_message
from server.engine import WatchedEngine
from server.errors import AnswerTimeout, NotFound, RequestError, reply_for
from server.hosts import Hosts
from server.metrics import Metrics
from server.portraits import PortraitStore
from server.sessions import Sessions

__all__ = ["Routes", "visitor_of"]

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

CLOSE_NOT_FOUND = 4004
"""Close code of a control channel whose session does not exist."""
CLOSE_FORBIDDEN = 4003
"""Close code of a control channel that a page of another origin tried to open."""
UPLOADS_AT_ONCE = 4
"""Uploads that are read and decoded at the same time; others wait, and their senders with them."""
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")


class Routes:
    """The endpoints.

    Args:
        engine: For its state.
        sessions: Where sessions are opened.
        portraits: Where portraits are kept.
        config: Limits.
        prompt: What an engine that takes a prompt does without one.
        hosts: Says which pages are its own.
        metrics: What /metrics shows.
        sample: The shipped speech sample; it may be missing.
    """

    def __init__(
        self,
        engine: WatchedEngine,
        sessions: Sessions,
        portraits: PortraitStore,
        *,
        config: ServerConfig,
        prompt: str | None,
        hosts: Hosts,
        metrics: Metrics,
        sample: Path,
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._portraits = portraits
        self._config = config
        self._prompt = prompt
        self._hosts = hosts
        self._metrics = metrics
        self._sample = sample
        self._version = version("visavis")
        self._upload_places = asyncio.Semaphore(UPLOADS_AT_ONCE)

    def router(self) -> APIRouter:
        """All endpoints by path."""
        router = APIRouter()
        router.add_api_route("/api/info", self.info, methods=["GET"])
        router.add_api_route("/api/portraits", self.list_portraits, methods=["GET"])
        router.add_api_route("/api/portraits", self.upload_portrait, methods=["POST"])
        router.add_api_route("/api/portraits/{portrait_id}.png", self.portrait_png, methods=["GET"])
        router.add_api_route("/api/portraits/{portrait_id}/crop", self.move_crop, methods=["PUT"])
        router.add_api_route("/api/sample.wav", self.sample, methods=["GET"])
        router.add_api_route("/offer", self.offer, methods=["POST"])
        router.add_api_route("/sessions/{session_id}", self.end_session, methods=["DELETE"])
        router.add_api_websocket_route("/sessions/{session_id}/control", self.control)
        router.add_api_route("/healthz", self.healthz, methods=["GET"])
        router.add_api_route("/readyz", self.readyz, methods=["GET"])
        router.add_api_route("/metrics", self.metrics, methods=["GET"])
        return router

    async def info(self) -> JSONResponse:
        """What the page shows before a session."""
        info = self._sessions.last_info
        engine = {
            "name": None if info is None else info.name,
            "state": self._engine.state,
            "height_px": None if info is None else info.height_px,
            "width_px": None if info is None else info.width_px,
            "num_steps": None if info is None else info.num_steps,
            "right_context_ms": None if info is None else round(info.right_context_s * 1000.0),
            "warm_window_ms": None if info is None else round(info.warm_window_s * 1000.0),
            "accepts_prompt": None if info is None else info.accepts_prompt,
            "prompt": self._prompt if info is not None and info.accepts_prompt else None,
            "notes": None if info is None else list(info.notes),
        }
        ice_servers = [
            {
                "urls": list(server.urls),
                "username": server.username,
                "credential": None if server.credential is None else server.credential.get_secret_value(),
            }
            for server in self._config.ice_servers
        ]
        return JSONResponse(
            {
                "version": self._version,
                "engine": engine,
                "sessions": {"active": self._sessions.num_active, "max": self._config.max_sessions},
                "window_ms": round(WINDOW_S * 1000.0),
                "budget_ms": round(self._config.session.budget_s * 1000.0),
                "ice_servers": [
                    {key: value for key, value in server.items() if value is not None} for server in ice_servers
                ],
            }
        )

    async def list_portraits(self, request: Request) -> JSONResponse:
        """The portraits that ship with the server, and the uploads that the asker names."""
        return JSONResponse({"portraits": self._portraits.list(request.query_params.getlist("upload"))})

    async def upload_portrait(self, request: Request) -> JSONResponse:
        """Take an image file."""
        require_type(request, IMAGE_TYPES)
        size = self._sessions.require_frame_size()
        async with self._upload_place():
            data = await read_body(
                request,
                what="portrait",
                limit_bytes=self._config.max_portrait_bytes,
                timeout_s=self._config.body_timeout_s,
            )
            portrait = await self._portraits.upload(
                data,
                size,
                visitor=visitor_of(request.client.host if request.client else ""),
                shown=lambda: self._sessions.shown_portraits,
            )
        return JSONResponse(portrait.detail, status_code=201)

    @asynccontextmanager
    async def _upload_place(self) -> AsyncIterator[None]:
        """Wait for one of the few places, no longer than for a body."""
        timeout_s = self._config.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._upload_places.acquire()
        except TimeoutError as exc:
            raise AnswerTimeout(timeout_s) from exc
        try:
            yield
        finally:
            self._upload_places.release()

    async def portrait_png(self, request: Request, portrait_id: str) -> Response:
        """The picture of a portrait, cut to the engine's frame."""
        png, tag = await self._portraits.png(portrait_id, self._sessions.frame_size)
        headers = {"ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(png, media_type="image/png", headers=headers)

    async def move_crop(self, request: Request, portrait_id: str) -> JSONResponse:
        """Show another part of an uploaded portrait."""
        size = self._sessions.require_frame_size()
        body = await self._read_json(request, CropBody)
        portrait = await self._portraits.move_crop(portrait_id, body.crop, size)
        return JSONResponse(portrait.detail)

    async def sample(self) -> FileResponse:
        """The shipped speech sample."""
        if not self._sample.is_file():
            raise NotFound("sample", self._sample.name)
        return FileResponse(self._sample, media_type="audio/wav")

    async def offer(self, request: Request) -> JSONResponse:
        """Open a session."""
        body = await self._read_json(request, OfferBody)
        opening = self._sessions.open(sdp=body.sdp, portrait_id=body.portrait, seed=body.seed, params=body.params)
        opened = await _unless_gone(request, opening)
        return JSONResponse(
            {
                "sdp": opened.answer_sdp,
                "type": "answer",
                "session": opened.session_id,
                "control": f"/sessions/{opened.session_id}/control",
                "playout_delay_ms": round(opened.playout_delay_s * 1000.0),
            }
        )

    async def end_session(self, session_id: str) -> Response:
        """End a session."""
        await self._sessions.close(session_id)
        return Response(status_code=204)

    async def control(self, socket: WebSocket, session_id: str) -> None:
        """The control channel of a session."""
        await socket.accept()
        if not self._hosts.is_own_page(socket.headers.get("origin"), socket.headers.get("host", "")):
            await socket.close(CLOSE_FORBIDDEN)
            return
        try:
            session = self._sessions.get(session_id)
        except NotFound as exc:
            await socket.send_json(problem_message(reply_for(exc, retry_after_s=self._config.retry_after_s)))
            await socket.close(CLOSE_NOT_FOUND)
            return
        channel = ControlChannel(
            socket,
            session,
            self._sessions,
            max_bytes=self._config.max_json_bytes,
            retry_after_s=self._config.retry_after_s,
        )
        await channel.run()

    async def healthz(self) -> JSONResponse:
        """The process serves."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> JSONResponse:
        """Whether a session could be opened now."""
        self._sessions.check_room()
        return JSONResponse({"status": "ready"})

    async def metrics(self) -> Response:
        """Prometheus text."""
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _read_json(self, request: Request, model: type[M]) -> M:
        return await read_json(
            request, model, limit_bytes=self._config.max_json_bytes, timeout_s=self._config.body_timeout_s
        )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Work for a request, but no longer than its client waits: an engine may take minutes to read a prompt."""

    async def go() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work_task = asyncio.create_task(work, name="request")
    gone_task = asyncio.create_task(go(), name="request-client")
    try:
        await asyncio.wait([work_task, gone_task], return_when=asyncio.FIRST_COMPLETED)
        if not work_task.done():
            raise RequestError("the client has gone")
        return work_task.result()
    finally:
        work_task.cancel()
        gone_task.cancel()
        await asyncio.gather(work_task, gone_task, return_exceptions=True)


def visitor_of(address: str) -> str:
    """Name the visitor behind an address.

    Args:
        address: Of the client, as uvicorn gives it.

    Returns:
        The address; of an IPv6 address the network, because a single machine has as many addresses in it as it likes.
    """
    try:
        version_6 = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(version_6.ipv4_mapped or ipaddress.IPv6Network((version_6, 64), strict=False))
