"""Tests of tools/loopback.py: a viewer without a screen, against a served pattern engine."""

import asyncio
import json
import re
import urllib.request
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from aiortc.rtp import RtcpSenderInfo, RtcpSrPacket

from pipeline.config import EngineConfig
from pipeline.host.engine import WorkerEngine
from server.app import create_app
from server.config import ServerConfig
from server.main import bind, page_address
from tools.loopback import Report, SenderClock, main, measure, skew_ms

pytestmark = pytest.mark.contract

RATE_HZ = 48_000


def babble(seconds: float, *, seed: int = 0) -> np.ndarray:
    """Sound whose level changes every 40 ms, after a short silence."""
    rng = np.random.default_rng(seed)
    num_frames = int(seconds * 25)
    gains = np.repeat(10 ** rng.uniform(-2.5, -0.5, num_frames), 1920)
    mono = (gains * rng.uniform(-1, 1, len(gains)) * 32767).astype(np.int16)
    return np.repeat(mono[:, None], 2, axis=1)


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """Serve the pattern engine on a free port."""
    engine = WorkerEngine(EngineConfig(name="pattern"))
    engine.start()
    config = ServerConfig(port=0)
    listener = bind(config)
    server = uvicorn.Server(
        uvicorn.Config(create_app(config, engine), log_config=None, lifespan="on", ws="websockets-sansio")
    )
    task = asyncio.create_task(server.serve([listener]))
    try:
        await engine.wait_ready()
        yield page_address(config, listener).rstrip("/")
    finally:
        server.should_exit = True
        await task
        await engine.aclose()
        listener.close()
        await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_live_session_is_paired_and_complete_from_microphone_to_viewer() -> None:
    async with served() as url:
        report = await measure(url, babble(10.0), 9.0)
    # The control channel may come up later than the connection, and a stall adds rests.
    seen = [state for state in dict.fromkeys(report.states) if state != "resting"]
    assert seen == ["connecting", "warming", "live"][-len(seen) :]
    assert report.windows >= 14
    assert report.latency_p50_ms is not None
    assert report.latency_p50_ms < 800
    assert report.distinct_frames > 150
    assert report.sound_s > 7.0
    assert report.skew_p50_ms is not None
    assert abs(report.skew_p50_ms) <= 40.0


async def test_a_viewer_who_is_refused_says_why() -> None:
    async with served() as url:
        with pytest.raises(OSError, match="answers 404: .*nobody"):
            await measure(url, babble(0.1), 0.1, {"portrait": "nobody"})


async def test_a_server_that_goes_away_is_noticed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as writer:
        writer.setparams((2, 2, RATE_HZ, 0, "NONE", ""))
        writer.writeframes(babble(1.0).tobytes())
    async with served() as url:
        viewing = asyncio.create_task(asyncio.to_thread(main, ["--url", url, "--audio", str(path), "--seconds", "50"]))
        while not json.loads(await asyncio.to_thread(fetch, f"{url}/api/info"))["sessions"]["active"]:  # noqa: ASYNC110 - a server tells nobody of a change
            await asyncio.sleep(0.05)
    assert await viewing == 1
    assert re.fullmatch(r"the session was lost after \d+\.\d s\n", capsys.readouterr().err)


def test_without_a_server_the_command_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "--audio", str(tmp_path / "none.wav")]) == 1
    assert capsys.readouterr().err.startswith("no session: ")


@pytest.mark.parametrize("delay_s", [0.0, 0.06, -0.1])
def test_the_skew_of_a_recording_is_found_to_the_grain_of_the_search(delay_s: float) -> None:
    sound = babble(10.0, seed=3)
    energy = np.mean(np.square(sound.astype(float) / 32768), axis=1).reshape(-1, 1920).mean(axis=1)
    levels = np.clip(1 + 10 * np.log10(energy + 1e-12) / 60, 0, 1)
    audio_clock, video_clock = SenderClock(RATE_HZ), SenderClock(90_000)
    audio_clock.note(sender_report(100.0, 5_000))
    video_clock.note(sender_report(100.0 + delay_s, 2**32 - 1000))
    packets = [((5_000 + i * 960) % 2**32, sound[i * 960 : (i + 1) * 960]) for i in range(500)]
    frames = [((2**32 - 1000 + i * 3600) % 2**32, i, float(level)) for i, level in enumerate(levels)]
    found = skew_ms(frames, packets, video_clock, audio_clock)
    assert found
    assert found[0] == pytest.approx(delay_s * 1000, abs=2.0)


def test_without_sender_reports_there_is_no_skew_to_tell() -> None:
    assert skew_ms([(0, 0, 0.5)], [(0, babble(0.04))], SenderClock(90_000), SenderClock(RATE_HZ)) == []


def test_a_report_is_plain_data() -> None:
    assert Report(windows=3).to_json()["windows"] == 3


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as response:
        body: bytes = response.read()
        return body


def sender_report(wall_s: float, timestamp: int) -> RtcpSrPacket:
    return RtcpSrPacket(
        ssrc=1,
        sender_info=RtcpSenderInfo(
            ntp_timestamp=int(wall_s * 2**32), rtp_timestamp=timestamp, packet_count=1, octet_count=1
        ),
    )
