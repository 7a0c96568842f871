"""The real server as a process of its own, and headless Chromium with a spoken file as its microphone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from pipeline.geometry import FPS

ROOT = Path(__file__).parents[2]
ARTEFACTS = ROOT / "artefacts" / "e2e"
OTHER_HOST = "another-machine.test"
"""A name of this machine that Chromium does not take for this machine: pages from there get no microphone."""
START_LIMIT_S = 120.0
STOP_LIMIT_S = 15.0
MAX_WINDOW_MS = 400.0
"""An engine that needs more of the 480 ms leaves nothing for encoding and the browser on the same cores."""
MAX_LATE_SHARE, BUSY_WINDOW_MS = 0.05, 300.0
"""A face of which more is held or resting cannot be asked to follow the sound, where windows took so long as a rule."""
SOUND_AND_PICTURE = """async ({seconds, size, part}) => {
  const video = document.querySelector("#video");
  const audio = new AudioContext();
  const analyser = audio.createAnalyser();
  analyser.fftSize = 1024;
  audio.createMediaStreamSource(video.srcObject).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const canvas = new OffscreenCanvas(...size);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const rows = [];
  const end = performance.now() + 1000 * seconds;
  while (performance.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 40));
    analyser.getFloatTimeDomainData(samples);
    context.drawImage(video, 0, 0, ...size);
    rows.push({
      time: performance.now(),
      level: Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length),
      pixels: Array.from(context.getImageData(...part).data).filter((_, index) => index % 4 === 1),
    });
  }
  await audio.close();
  return rows;
}"""
SPEECH = (
    "Good afternoon. Peter Piper picked a peck of pickled peppers, and you may watch the lips close on every "
    "one of them. Who knew that a portrait could speak so soon?"
)


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """Not checked in this process, where Playwright keeps threads and a driver: `Server.stop` checks the server's."""


def is_running(process: int) -> bool:
    """Whether a process is there and not merely waiting to be collected."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class Server:
    """`visavis serve` on a free port; can be killed and started again on the same one."""

    def __init__(self, engine: str, log: Path, options: tuple[str, ...] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.engine = engine
        self.options = options
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start and wait until a session could be opened."""
        command = [sys.executable, "-m", "tools.cli", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--engine", self.engine, "--set", f"server.allowed_hosts=[{OTHER_HOST}]", *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self._wait(lambda: self.get("readyz") is not None, START_LIMIT_S, "become ready")

    def workers(self) -> list[int]:
        """Processes that the server started; they lead sessions of their own. Only known on Linux, else empty."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in children.read_text().split()] if children.is_file() else []

    def stop(self, *, is_kill: bool = False) -> None:
        """End the server as a user would, or kill it: its worker has to notice."""
        if self.process is None:
            return
        workers = self.workers()
        process, self.process = self.process, None
        if is_kill:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_LIMIT_S)
            deadline_s = time.monotonic() + STOP_LIMIT_S
            while any(map(is_running, workers)) and time.monotonic() < deadline_s:
                time.sleep(0.05)
            assert not any(map(is_running, workers)), "the worker did not notice that its server was killed"
            return
        process.terminate()
        try:
            status = process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pytest.fail(f"the server did not stop within {STOP_LIMIT_S:.0f} s; its log ends:\n{self.log_tail()}")
        assert status == 0, f"the server ended with status {status}; its log ends:\n{self.log_tail()}"
        assert not any(map(is_running, workers)), f"the server left its worker behind; its log ends:\n{self.log_tail()}"

    def get(self, path: str) -> bytes | None:
        """Body of a successful answer, or None."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                body: bytes = response.read()
                return body
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def post(self, path: str, body: bytes, kind: str) -> None:
        """Send something that has to be taken."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 201

    def wait_until_free(self, limit_s: float = 15.0) -> None:
        """Wait until no session is left."""

        def is_free() -> bool:
            body = self.get("api/info")
            return body is not None and json.loads(body)["sessions"]["active"] == 0

        self._wait(is_free, limit_s, "free its session")

    def skip_where_too_slow(self) -> None:
        """Skip a live test of an engine whose own measurement at start says that this machine has no room for it."""
        warm_ms = json.loads(self.get("api/info") or b"")["engine"]["warm_window_ms"]
        if warm_ms > MAX_WINDOW_MS:
            pytest.skip(f"a window takes {warm_ms:.0f} ms on this machine, more than {MAX_WINDOW_MS:.0f}: not live")

    def skip_where_it_was_late(self) -> None:
        """Skip, with the figures, where the viewer left the engine too little of these cores.

        An engine that had its time and whose frames were late all the same is a defect.
        """
        values = self.metrics()
        kinds = {kind: values.get(f'frames_sent_total{{kind="{kind}"}}', 0.0) for kind in ("fresh", "held", "rest")}
        late = (kinds["held"] + kinds["rest"]) / max(1.0, sum(kinds.values()))
        window_ms = 1000 * values["pace_seconds_sum"] / max(1.0, values["pace_seconds_count"])
        if late > MAX_LATE_SHARE and window_ms > BUSY_WINDOW_MS:
            beside = f"a window took {window_ms:.0f} ms beside its viewer on these cores"
            pytest.skip(f"{beside}, and {late:.0%} of the frames came too late: not live")

    def metrics(self) -> dict[str, float]:
        """Every value of /metrics by its name and labels."""
        lines = (self.get("metrics") or b"").decode().splitlines()
        pairs = (line.rsplit(maxsplit=1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def _wait(self, is_done: Callable[[], bool], limit_s: float, what: str) -> None:
        deadline_s = time.monotonic() + limit_s
        while not is_done():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline_s:
                pytest.fail(f"the server did not {what} within {limit_s:.0f} s; its log ends:\n{self.log_tail()}")
            time.sleep(0.1)

    def log_tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where Chromium is; skips where it is not."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("no Chromium found (looked for chromium, chromium-browser, google-chrome); .ci/run installs it")


@pytest.fixture(scope="session")
def speech_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spoken WAV of some seconds with a pause at its end; bursts of a buzz where espeak-ng is not installed."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    espeak = shutil.which("espeak-ng")
    if espeak:
        subprocess.run([espeak, "-v", "en", "-s", "150", "-w", str(path), SPEECH], check=True, timeout=30)
        with wave.open(str(path)) as reader:
            rate_hz, pcm = reader.getframerate(), np.frombuffer(reader.readframes(reader.getnframes()), np.int16)
    else:
        rate_hz = 24_000
        times_s = np.arange(8 * rate_hz) / rate_hz
        is_loud = np.random.default_rng(7).random(40).repeat(len(times_s) // 40) > 0.4
        pcm = (9000 * np.sign(np.sin(2 * np.pi * 130 * times_s)) * is_loud).astype(np.int16)
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(np.concatenate([pcm, np.zeros(2 * rate_hz, np.int16)]).tobytes())
    return path


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Playwright's driver."""
    with sync_playwright() as driver:
        yield driver


def launch(playwright: Playwright, chromium_path: str, *flags: str) -> Browser:
    """Start a headless Chromium that asks nobody outside this machine."""
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    return playwright.chromium.launch(executable_path=chromium_path, headless=True, args=[*quiet, *flags])


@pytest.fixture(scope="module")
def browser(playwright: Playwright, chromium_path: str, speech_path: Path) -> Iterator[Browser]:
    """Chromium whose microphone speaks the spoken file, over and over."""
    browser = launch(
        playwright,
        chromium_path,
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={speech_path}",
        f"--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1",
    )
    yield browser
    browser.close()


@pytest.fixture
def browser_without_microphone(playwright: Playwright, chromium_path: str) -> Iterator[Browser]:
    """Chromium in which the user refuses the microphone."""
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream=deny")
    browser = launch(playwright, chromium_path, *flags)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def engine() -> str:
    """The pattern engine: what the page does depends on no weights and on no spare cores."""
    return "pattern"


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    """More of the server's command line."""
    return ()


@pytest.fixture(scope="module")
def server(
    chromium_path: str, engine: str, options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server, ready. Started once per module."""
    server = Server(engine, tmp_path_factory.mktemp("server") / "server.log", options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Visitor:
    """One browser context with the page open: what it does, shows and says on its control channel."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.sent: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("websocket", self._listen)
        self.page.goto(url)
        self.page.wait_for_selector("#status-title:not(:text-is('Loading'))")

    def _listen(self, socket: Any) -> None:
        socket.on("framesent", lambda text: self.sent.append(json.loads(text)))
        socket.on("framereceived", lambda text: self.received.append(json.loads(text)))

    def start(self) -> None:
        """Press the button and wait for the live picture."""
        self.page.click("#main")
        self.wait_for_picture()

    def wait_for_picture(self, limit_s: float = 30.0) -> None:
        """Wait until the avatar is live and its picture is on the page."""
        self.page.wait_for_selector("#stage[data-phase=live].has-picture", timeout=limit_s * 1000)

    def wait_for_message(
        self, is_wanted: Callable[[dict[str, Any]], bool], *, num_seen: int | None = None, limit_s: float = 10.0
    ) -> dict[str, Any]:
        """Wait for a message of the server beyond the first `num_seen`, by default beyond all that are there."""
        num_seen = len(self.received) if num_seen is None else num_seen
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            for message in self.received[num_seen:]:
                if is_wanted(message):
                    return message
            self.page.wait_for_timeout(50)
        pytest.fail(f"no such message within {limit_s:.0f} s; the last ones: {self.received[-3:]}")

    def sound_and_picture(
        self, *, seconds: int, size: tuple[int, int], part: tuple[int, int, int, int] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What is heard and seen at the same moments, 25 a second.

        Args:
            seconds: For how long.
            size: Width and height to which the picture is scaled.
            part: Left, top, width and height of the part of it that is kept; all when None.

        Returns:
            Levels (RMS, full scale 1), (num,), and the green of the pixels of the part, (num, num_pixels).
        """
        part = part or (0, 0, *size)
        rows: list[dict[str, Any]] = self.page.evaluate(
            SOUND_AND_PICTURE, {"seconds": seconds, "size": size, "part": part}
        )
        times_s = np.array([row["time"] for row in rows]) / 1000
        # The picture of the moment nearest to each point of the grid: a mean of two would look like motion.
        grid_s = np.arange(times_s[0], times_s[-1], 1 / FPS)
        nearest = np.abs(grid_s[:, None] - times_s).argmin(axis=1)
        levels = np.array([row["level"] for row in rows])[nearest]
        return levels, np.array([row["pixels"] for row in rows], np.float64)[nearest]

    def notice(self) -> str:
        """The words on the stage."""
        return self.page.inner_text("#notice")

    def shoot(self, name: str) -> None:
        """Keep a screenshot."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")


@pytest.fixture
def visit(server: Server, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Visitor]]:
    """Opens the page in a fresh context; afterwards no visitor may have had a script error, and all are gone."""
    visitors: list[Visitor] = []

    def visit(in_browser: Browser = browser, host: str = "127.0.0.1", **options: Any) -> Visitor:
        options.setdefault("viewport", {"width": 1440, "height": 900})
        options.setdefault("color_scheme", "dark")
        visitor = Visitor(in_browser.new_context(**options), server.url.replace("127.0.0.1", host))
        visitors.append(visitor)
        return visitor

    server.wait_until_free()
    yield visit
    name = re.sub(r"\W+", "-", request.node.name)
    for number, visitor in enumerate(visitors):
        visitor.shoot(f"{name}-{number}")
        visitor.context.close()
    assert [error for visitor in visitors for error in visitor.errors] == []
