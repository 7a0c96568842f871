"""Firefox for the tests, driven by WebDriver BiDi (W3C draft): it needs nothing but Firefox itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from base64 import b64decode
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

__all__ = ["Firefox"]

START_LIMIT_S = 60.0
COMMAND_LIMIT_S = 30.0
PREFERENCES = {
    # A microphone that hums, and is allowed.
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    # It asks nobody outside this machine.
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
}


class Firefox:
    """A headless Firefox with one page.

    Args:
        executable: The program.
        profile: An empty folder.
        port: Where it listens for commands.
    """

    def __init__(self, executable: str, profile: Path, port: int) -> None:
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
        (profile / "user.js").write_text("".join(lines))
        command = [executable, "--headless", "--no-remote", "--profile", str(profile)]
        self._process = subprocess.Popen(
            [*command, "--remote-debugging-port", str(port), "about:blank"],
            env={**os.environ, "HOME": str(profile)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.errors: list[str] = []
        self._num_commands = 0
        self._open = ExitStack()
        try:
            self._socket = self._connect(port)
            self._command("session.new", capabilities={})
            self._command("session.subscribe", events=["log.entryAdded"])
            self._page: str = self._command("browsingContext.getTree")["contexts"][0]["context"]
        except BaseException:
            self.close()
            raise

    def goto(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self._command("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Value of an expression in the page; it may wait for a promise."""
        answer = self._command(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._page},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))

    def wait_for(self, expression: str, limit_s: float) -> None:
        """Wait until an expression is true."""
        deadline_s = time.monotonic() + limit_s
        while not self.evaluate(expression):
            assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {expression}"
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Click into the middle of an element, as a person does."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.evaluate(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        press = [
            {"type": "pointerMove", "x": int(x), "y": int(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": press}
        self._command("input.performActions", context=self._page, actions=[mouse])

    def shoot(self, path: Path) -> None:
        """Keep a screenshot."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b64decode(self._command("browsingContext.captureScreenshot", context=self._page)["data"]))

    def close(self) -> None:
        """End it with everything that it started."""
        self._open.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _connect(self, port: int) -> ClientConnection:
        deadline_s = time.monotonic() + START_LIMIT_S
        while True:
            try:
                return self._open.enter_context(connect(f"ws://127.0.0.1:{port}/session", max_size=None))
            except OSError:
                assert self._process.poll() is None, "Firefox ended"
                assert time.monotonic() < deadline_s, f"Firefox did not start within {START_LIMIT_S:.0f} s"
                time.sleep(0.2)

    def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._num_commands += 1
        self._socket.send(json.dumps({"id": self._num_commands, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(COMMAND_LIMIT_S))
            if message["type"] == "event":
                self._note(message["params"])
            elif message["id"] == self._num_commands:
                assert message["type"] == "success", message
                result: dict[str, Any] = message["result"]
                return result

    def _note(self, entry: dict[str, Any]) -> None:
        if entry["level"] == "error":
            self.errors.append(str(entry["text"]))
