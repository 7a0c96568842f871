"""Tests of server/app.py and the endpoints behind it, over HTTP and WebSocket, with an engine in memory."""

import asyncio
import dataclasses
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from fastapi import FastAPI
from PIL import Image

from pipeline.api import EngineInfo
from server.app import create_app
from server.clock import MonotonicClock
from server.config import IceServer, ServerConfig
from server.routes import UPLOADS_AT_ONCE
from tests.fakes.engine import INFO, FakeEngine

pytestmark = pytest.mark.contract

JSON = {"Content-Type": "application/json"}


def png(width_px: int = 200, height_px: int = 200) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width_px, height_px), (10, 20, 30)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    folder = tmp_path / "portraits"
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps([{"id": "ada", "name": "Ada"}]))
    (folder / "ada.png").write_bytes(png())
    (tmp_path / "sample.wav").write_bytes(b"RIFF")
    return tmp_path


class Served:
    """An application with its lifespan running, and a client to it."""

    def __init__(self, app: FastAPI, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        self.app = app
        self.engine = engine
        self.client = client

    async def error(self, method: str, path: str, **request: Any) -> tuple[int, str, str]:
        """Status, code and message of a refused request."""
        response = await self.client.request(method, path, **request)
        body = response.json()["error"]
        return response.status_code, body["code"], body["message"]

    async def socket(self, path: str, *, headers: list[tuple[bytes, bytes]] | None = None) -> "Socket":
        socket = Socket(self.app, path, headers or [])
        await socket.opened()
        return socket


class Socket:
    """The client end of a WebSocket to an ASGI application."""

    def __init__(
        self, app: FastAPI, path: str, headers: list[tuple[bytes, bytes]], *, host: bytes = b"localhost"
    ) -> None:
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", host), *headers],
            "subprotocols": [],
            "scheme": "ws",
            "server": ("localhost", 80),
            "client": ("localhost", 1),
        }
        self.task = asyncio.create_task(app(scope, self._to_app.get, self._from_app.put))

    async def opened(self) -> None:
        assert (await self._next())["type"] == "websocket.accept"

    async def message(self, kind: str) -> dict[str, Any]:
        """The next message of a kind."""
        while True:
            event = await self._next()
            assert event["type"] == "websocket.send", event
            message: dict[str, Any] = json.loads(event["text"])
            if message["type"] == kind:
                return message

    async def close_code(self) -> int:
        while True:
            event = await self._next()
            if event["type"] == "websocket.close":
                await self.task
                return int(event["code"])

    def say(self, message: Any) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        self._to_app.put_nowait({"type": "websocket.receive", "text": text})

    async def leave(self) -> None:
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self.task, 5)

    async def _next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._from_app.get(), 10)


@asynccontextmanager
async def served(
    assets: Path, *, info: EngineInfo = INFO, prompt: str | None = None, **config: Any
) -> AsyncIterator[Served]:
    engine = FakeEngine(MonotonicClock(), info)
    app = create_app(ServerConfig(**config), engine, prompt=prompt, assets=assets)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield Served(app, engine, client)


@asynccontextmanager
async def viewer() -> AsyncIterator[RTCPeerConnection]:
    """A peer that has made its offer."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("audio", direction="sendrecv")
    peer.addTransceiver("video", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    try:
        yield peer
    finally:
        await peer.close()


def offer_of(peer: RTCPeerConnection, **more: Any) -> dict[str, Any]:
    return {"sdp": peer.localDescription.sdp, "type": "offer", **more}


async def test_the_page_is_told_what_the_engine_can_do(assets: Path) -> None:
    async with served(assets, ice_servers=(IceServer(urls=("stun:s.example",)),)) as s:
        info = (await s.client.get("/api/info")).json()
        assert info["engine"] == {
            "name": "fake", "state": "ready", "height_px": 16, "width_px": 16, "num_steps": 4, "right_context_ms": 80,
            "warm_window_ms": 100, "accepts_prompt": False, "prompt": None, "notes": ["is not real"],
        }  # fmt: skip
        assert info["sessions"] == {"active": 0, "max": 1}
        assert (info["window_ms"], info["budget_ms"]) == (480, 800)
        assert info["ice_servers"] == [{"urls": ["stun:s.example"]}]


async def test_before_the_engine_was_ready_its_figures_are_null_and_afterwards_remembered(assets: Path) -> None:
    async with served(assets) as s:
        s.engine.state = "starting"
        engine = (await s.client.get("/api/info")).json()["engine"]
        assert engine.pop("state") == "starting"
        assert set(engine.values()) == {None}
        s.engine.state = "ready"
        await s.client.get("/api/info")
        s.engine.state = "restarting"
        engine = (await s.client.get("/api/info")).json()["engine"]
        assert (engine["state"], engine["name"]) == ("restarting", "fake")


async def test_readiness_follows_engine_and_room_while_health_does_not(assets: Path) -> None:
    async with served(assets) as s:
        assert (await s.client.get("/readyz")).status_code == 200
        s.engine.state = "restarting"
        response = await s.client.get("/readyz")
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert response.json()["error"]["code"] == "engine_not_ready"
        assert (await s.client.get("/healthz")).status_code == 200


async def test_the_metrics_are_prometheus_text(assets: Path) -> None:
    async with served(assets) as s:
        text = (await s.client.get("/metrics")).text
        types = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
        assert types >= {
            "window_latency_seconds", "stage_seconds", "pace_seconds", "lead_seconds", "drift_seconds", "ttff_seconds",
            "underruns_total", "frames_sent_total", "frames_dropped_total", "windows_missed_total",
            "windows_skipped_total", "windows_reduced_total", "sessions", "event_loop_lag_seconds",
            "worker_restarts_total", "engine_ready",
        }  # fmt: skip
        s.engine.become("restarting")
        text = (await s.client.get("/metrics")).text
        assert 'worker_restarts_total{rank="0"} 1.0' in text
        assert "engine_ready 0.0" in text


async def test_an_offer_whose_viewer_does_not_wait_for_the_answer_gives_its_place_back(assets: Path) -> None:
    async with served(assets) as s, viewer() as peer:
        s.engine.open_gate.clear()
        to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        to_app.put_nowait({"type": "http.request", "body": json.dumps(offer_of(peer)).encode(), "more_body": False})
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/offer", "query_string": b"", "headers": headers}
        sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        offering = asyncio.create_task(s.app(scope, to_app.get, sent.put))
        while (await s.client.get("/api/info")).json()["sessions"]["active"] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        to_app.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(offering, 10)
        assert (await s.client.get("/api/info")).json()["sessions"]["active"] == 0
        assert s.engine.num_open == 0


async def test_every_answer_has_the_security_headers(assets: Path) -> None:
    async with served(assets) as s:
        for path in ("/", "/api/info", "/nowhere"):
            headers = (await s.client.get(path)).headers
            assert "script-src 'self'" in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-cache"
            assert "Access-Control-Allow-Origin" not in headers


async def test_the_page_is_served_and_not_sent_again_unchanged(assets: Path) -> None:
    async with served(assets) as s:
        page = await s.client.get("/")
        assert page.status_code == 200
        assert "visavis" in page.text
        again = await s.client.get("/", headers={"If-None-Match": page.headers["ETag"]})
        assert again.status_code == 304


async def test_portraits_are_listed_and_served_cut_to_the_frame(assets: Path) -> None:
    async with served(assets) as s:
        listed = (await s.client.get("/api/portraits")).json()["portraits"]
        assert [entry["id"] for entry in listed] == ["ada"]
        picture = await s.client.get(listed[0]["url"])
        assert Image.open(io.BytesIO(picture.content)).size == (16, 16)
        again = await s.client.get(listed[0]["url"], headers={"If-None-Match": picture.headers["ETag"]})
        assert again.status_code == 304


async def test_a_portrait_is_uploaded_and_its_crop_moved(assets: Path) -> None:
    async with served(assets) as s:
        uploaded = await s.client.post("/api/portraits", content=png(300, 400), headers={"Content-Type": "image/png"})
        assert uploaded.status_code == 201
        detail = uploaded.json()
        assert detail["id"] not in (await s.client.get("/api/portraits")).text
        assert detail["id"] in (await s.client.get("/api/portraits", params={"upload": ["u-0", detail["id"]]})).text
        crop = {"x_px": 10, "y_px": 20, "width_px": 200, "height_px": 200}
        moved = await s.client.put(f"/api/portraits/{detail['id']}/crop", json=crop)
        assert moved.json()["crop"] == crop
        assert moved.json()["url"] != detail["url"]
        assert (await s.client.get(moved.json()["url"])).status_code == 200


async def test_an_upload_too_many_is_refused_while_sessions_show_the_others(assets: Path) -> None:
    async with served(assets, max_uploads=1) as s, viewer() as peer:
        image = {"content": png(), "headers": {"Content-Type": "image/png"}}
        first, second = [(await s.client.post("/api/portraits", **image)).json()["id"] for _ in range(2)]
        assert (await s.client.get(f"/api/portraits/{first}.png")).status_code == 404
        answer = (await s.client.post("/offer", json=offer_of(peer, portrait=second))).json()
        refused = await s.client.post("/api/portraits", **image)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upload_limit_reached")
        assert refused.headers["retry-after"] == "5"
        assert (await s.client.get(f"/api/portraits/{second}.png")).status_code == 200
        await s.client.delete(f"/sessions/{answer['session']}")
        assert (await s.client.post("/api/portraits", **image)).status_code == 201


async def test_only_so_many_uploads_are_taken_in_at_once_and_the_others_wait(assets: Path) -> None:
    num_read, may_go_on = 0, asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        nonlocal num_read
        num_read += 1
        await may_go_on.wait()
        yield png(100, 100)

    async with served(assets) as s:
        headers = {"Content-Type": "image/png"}
        uploads = [
            asyncio.create_task(s.client.post("/api/portraits", content=body(), headers=headers)) for _ in range(7)
        ]
        for _ in range(200):
            await asyncio.sleep(0)
        assert num_read == UPLOADS_AT_ONCE
        may_go_on.set()
        assert [(await upload).status_code for upload in uploads] == [201] * 7


async def test_an_upload_that_waits_for_too_long_is_told_to_come_again(assets: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with served(assets, body_timeout_s=0.05) as s:
        headers = {"Content-Type": "image/png"}
        uploads = [s.client.post("/api/portraits", content=body(), headers=headers) for _ in range(3 * UPLOADS_AT_ONCE)]
        answers = await asyncio.gather(*uploads)
    # Those that have a place give up at the same moment as those that wait, so the first of these may still get one.
    told = [answer for answer in answers if answer.status_code == 503]
    assert len(told) >= UPLOADS_AT_ONCE
    assert {answer.status_code for answer in answers} == {400, 503}
    assert {answer.json()["error"]["code"] for answer in told} == {"answer_timeout"}
    assert {answer.headers["retry-after"] for answer in told} == {"5"}


async def test_the_sample_is_served_where_there_is_one(assets: Path) -> None:
    async with served(assets) as s:
        assert (await s.client.get("/api/sample.wav")).content == b"RIFF"
        (assets / "sample.wav").unlink()
        assert (await s.error("GET", "/api/sample.wav"))[:2] == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "code"),
    [
        ("GET", "/api/nothing", {}, 404, "not_found"),
        ("GET", "/api/portraits/nobody.png", {}, 404, "not_found"),
        ("DELETE", "/sessions/s-0", {}, 404, "not_found"),
        ("PATCH", "/offer", {}, 405, "bad_request"),
        ("POST", "/offer", {"content": b"{}"}, 415, "unsupported_media"),
        ("POST", "/offer", {"content": b"", "headers": JSON}, 400, "bad_request"),
        ("POST", "/offer", {"content": b"{", "headers": JSON}, 400, "bad_request"),
        ("POST", "/offer", {"content": b"[" * 100_000, "headers": JSON}, 400, "bad_request"),
        ("POST", "/offer", {"content": b"\xff\xfe", "headers": JSON}, 400, "bad_request"),
        ("POST", "/offer", {"json": {"sdp": "v=0", "type": "offer", "x": 1}}, 400, "bad_request"),
        ("POST", "/offer", {"json": {"sdp": "v=0", "type": "answer"}}, 400, "bad_request"),
        ("POST", "/offer", {"json": {"sdp": "v=0", "type": "offer", "seed": -1}}, 400, "bad_request"),
        ("POST", "/offer", {"json": {"sdp": "hello", "type": "offer"}}, 400, "bad_sdp"),
        ("POST", "/offer", {"json": {"sdp": "x" * 300_000, "type": "offer"}}, 413, "too_large"),
        ("POST", "/api/portraits", {"content": b"hello", "headers": {"Content-Type": "text/plain"}}, 415,
         "unsupported_media"),
        ("POST", "/api/portraits", {"content": b"hello", "headers": {"Content-Type": "image/png"}}, 422,
         "bad_portrait"),
        ("POST", "/api/portraits", {"content": png(20, 20), "headers": {"Content-Type": "image/png"}}, 422,
         "bad_portrait"),
        ("PUT", "/api/portraits/u-0/crop", {"json": {"x_px": 0}}, 400, "bad_request"),
        ("PUT", "/api/portraits/u-0/crop", {"json": {"x_px": 0, "y_px": 0, "width_px": 9, "height_px": 9}}, 404,
         "not_found"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_in_json_and_the_server_goes_on(
    assets: Path, method: str, path: str, request_: dict[str, Any], status: int, code: str
) -> None:
    async with served(assets) as s:
        assert (await s.error(method, path, **request_))[:2] == (status, code)
        assert (await s.client.get("/healthz")).status_code == 200


async def test_a_body_over_its_limit_is_cut_off_while_it_streams_in(assets: Path) -> None:
    num_sent = 0

    async def flood() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 1
            yield b"x" * 10_000

    async with served(assets, max_portrait_bytes=100_000) as s:
        status, code, _ = await s.error(
            "POST", "/api/portraits", content=flood(), headers={"Content-Type": "image/png"}
        )
        assert (status, code) == (413, "too_large")
        assert num_sent <= 12


async def test_an_upload_needs_to_know_the_frame(assets: Path) -> None:
    async with served(assets) as s:
        s.engine.state = "starting"
        refused = await s.error("POST", "/api/portraits", content=png(), headers={"Content-Type": "image/png"})
        assert refused[:2] == (503, "engine_not_ready")
        assert (await s.client.get("/api/portraits/ada.png")).status_code == 200


async def test_an_offer_opens_a_session_that_can_be_deleted(assets: Path) -> None:
    async with served(assets) as s, viewer() as peer:
        answer = (await s.client.post("/offer", json=offer_of(peer, portrait="ada", seed=3))).json()
        assert answer["type"] == "answer"
        assert answer["playout_delay_ms"] == 760
        assert len(answer["session"]) >= 32, "who knows the id may end the session, so nobody may guess it"
        assert "a=candidate" in answer["sdp"]
        await peer.setRemoteDescription(RTCSessionDescription(sdp=answer["sdp"], type="answer"))
        assert s.engine.streams[0].request.seed == 3
        assert s.engine.streams[0].request.portrait is not None
        assert (await s.client.get("/api/info")).json()["sessions"]["active"] == 1
        assert (await s.client.delete(f"/sessions/{answer['session']}")).status_code == 204
        assert (await s.client.get("/api/info")).json()["sessions"]["active"] == 0
        assert s.engine.num_open == 0


async def test_sound_and_picture_come_in_one_media_stream(assets: Path) -> None:
    async with served(assets) as s, viewer() as peer:
        answer = (await s.client.post("/offer", json=offer_of(peer))).json()
        streams = {line.split()[0] for line in answer["sdp"].splitlines() if line.startswith("a=msid:")}
        assert len(streams) == 1
        directions = [line for line in answer["sdp"].splitlines() if line in ("a=sendrecv", "a=sendonly")]
        assert directions == ["a=sendrecv", "a=sendonly"]
        await s.client.delete(f"/sessions/{answer['session']}")


async def test_a_session_too_many_is_told_when_to_come_again(assets: Path) -> None:
    async with served(assets) as s, viewer() as first, viewer() as second:
        answer = (await s.client.post("/offer", json=offer_of(first))).json()
        response = await s.client.post("/offer", json=offer_of(second))
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert response.json()["error"] == {
            "code": "session_limit_reached", "message": "all 1 sessions are taken", "retry_after_s": 5,
        }  # fmt: skip
        await s.client.delete(f"/sessions/{answer['session']}")
        again = await s.client.post("/offer", json=offer_of(second))
        assert again.status_code == 200
        metrics = (await s.client.get("/metrics")).text
        assert 'sessions_refused_total{code="session_limit_reached"} 1.0' in metrics


async def test_offers_at_the_same_moment_do_not_share_a_place(assets: Path) -> None:
    async with served(assets) as s, viewer() as first, viewer() as second:
        both = await asyncio.gather(*(s.client.post("/offer", json=offer_of(peer)) for peer in (first, second)))
        assert sorted(response.status_code for response in both) == [200, 503]


async def test_a_refused_offer_leaves_nothing_behind(assets: Path) -> None:
    async with served(assets) as s, viewer() as peer:
        assert (await s.error("POST", "/offer", json=offer_of(peer, portrait="nobody")))[:2] == (404, "not_found")
        s.engine.state = "restarting"
        assert (await s.error("POST", "/offer", json=offer_of(peer)))[:2] == (503, "engine_not_ready")
        s.engine.state = "ready"
        broken = offer_of(peer)
        broken["sdp"] = broken["sdp"].replace("fingerprint:sha-", "fingerprint:md-")
        assert (await s.error("POST", "/offer", json=broken))[:2] == (400, "bad_sdp")
        info = (await s.client.get("/api/info")).json()
        assert info["sessions"]["active"] == 0


async def test_commands_on_the_control_channel_are_obeyed_and_answered(assets: Path) -> None:
    async with served(assets) as s, viewer() as peer:
        answer = (await s.client.post("/offer", json=offer_of(peer))).json()
        socket = await s.socket(answer["control"])
        state = await socket.message("state")
        assert (state["state"], state["portrait"], state["engine"]) == ("connecting", "ada", "ready")
        socket.say({"type": "interrupt", "id": 1})
        assert await socket.message("done") == {"type": "done", "id": 1}
        socket.say({"type": "update", "id": "b", "params": {"liveliness": 0.5}})
        assert await socket.message("done") == {"type": "done", "id": "b"}
        assert s.engine.streams[0].params[0].liveliness == 0.5
        socket.say({"type": "set_portrait", "id": 2, "portrait": "nobody"})
        assert await socket.message("error") == {
            "type": "error", "code": "not_found", "message": "portrait 'nobody' does not exist", "id": 2,
        }  # fmt: skip
        socket.say("garbage")
        assert (await socket.message("error"))["code"] == "bad_request"
        socket.say({"type": "set_portrait", "portrait": "ada", "id": 4})
        assert await socket.message("done") == {"type": "done", "id": 4}
        assert len(s.engine.streams[0].portraits) == 1
        await socket.leave()
        await s.client.delete(f"/sessions/{answer['session']}")


async def test_an_engine_that_takes_a_prompt_gets_it_with_the_offer_and_later(assets: Path) -> None:
    info = dataclasses.replace(INFO, accepts_prompt=True)
    async with served(assets, info=info, prompt="A person talks") as s, viewer() as peer:
        assert (await s.client.get("/api/info")).json()["engine"]["prompt"] == "A person talks"
        answer = (await s.client.post("/offer", json=offer_of(peer, params={"prompt": "A man laughs"}))).json()
        assert s.engine.streams[0].request.params.prompt == "A man laughs"
        socket = await s.socket(answer["control"])
        for number, params in enumerate(({"prompt": "A man cries"}, {"liveliness": 0.5})):
            socket.say({"type": "update", "id": number, "params": params})
            assert await socket.message("done") == {"type": "done", "id": number}
        assert [params.prompt for params in s.engine.streams[0].params] == ["A man cries", "A man cries"]
        await socket.leave()
        await s.client.delete(f"/sessions/{answer['session']}")


async def test_a_prompt_for_an_engine_that_takes_none_is_refused_and_forgotten(assets: Path) -> None:
    async with served(assets, prompt="A person talks") as s, viewer() as peer:
        assert (await s.client.get("/api/info")).json()["engine"]["prompt"] is None
        answer = (await s.client.post("/offer", json=offer_of(peer))).json()
        socket = await s.socket(answer["control"])
        socket.say({"type": "update", "id": 1, "params": {"prompt": "A man laughs"}})
        problem = await socket.message("error")
        assert (problem["code"], problem["id"]) == ("bad_request", 1)
        assert "the engine fake knows no prompts" in problem["message"]
        socket.say({"type": "update", "id": 2, "params": {"liveliness": 0.5}})
        assert await socket.message("done") == {"type": "done", "id": 2}
        assert [params.prompt for params in s.engine.streams[0].params] == [None]
        await socket.leave()
        await s.client.delete(f"/sessions/{answer['session']}")


async def test_the_control_channel_closes_with_its_session_and_with_its_successor(assets: Path) -> None:
    async with served(assets) as s, viewer() as peer:
        answer = (await s.client.post("/offer", json=offer_of(peer))).json()
        first = await s.socket(answer["control"])
        await first.message("state")
        second = await s.socket(answer["control"])
        assert await first.close_code() == 4000
        await s.client.delete(f"/sessions/{answer['session']}")
        assert (await second.message("state"))["state"] in ("connecting", "closed")
        assert await second.close_code() == 4000


async def test_the_control_channel_of_no_session_says_so(assets: Path) -> None:
    async with served(assets) as s:
        socket = await s.socket("/sessions/s-0/control")
        assert (await socket.message("error"))["code"] == "not_found"
        assert await socket.close_code() == 4004


async def test_a_page_of_another_origin_gets_no_control_channel(assets: Path) -> None:
    async with served(assets) as s:
        socket = await s.socket("/sessions/s-0/control", headers=[(b"origin", b"http://evil.example")])
        assert await socket.close_code() == 4003


async def test_a_request_to_a_name_of_somebody_else_is_refused_and_says_how_names_are_added(assets: Path) -> None:
    async with served(assets, allowed_hosts=("avatar.example",)) as s:
        for path in ("/", "/api/info", "/healthz"):
            response = await s.client.get(path, headers={"Host": "evil.example:8080"})
            assert response.status_code == 421
            assert response.json()["error"] == {
                "code": "unknown_host",
                "message": "host 'evil.example:8080' is no name of this server; "
                "--set server.allowed_hosts=[NAME] adds one",
            }
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert (await s.client.get("/api/info", headers={"Host": "avatar.example"})).status_code == 200
        socket = Socket(s.app, "/sessions/s-0/control", [], host=b"evil.example")
        assert await socket.close_code() == 1000, "closed before it was accepted: status 403"


async def test_stopping_the_application_ends_its_sessions(assets: Path) -> None:
    async with viewer() as peer:
        async with served(assets) as s:
            answer = (await s.client.post("/offer", json=offer_of(peer))).json()
            assert answer["session"]
        assert s.engine.num_open == 0
