"""`visavis bench live`: a server of its own on a free port, and a viewer that talks to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.errors import WorkerError, WorkerStartTimeout
from tools.bench.run import SAMPLE_SPEECH, describe_machine
from tools.loopback import measure, read_sound

__all__ = ["run", "served", "show"]

STOP_TIMEOUT_S = 15.0
POLL_S = 0.25
ADDRESS_WORD, FAILED_WORDS = "Open ", "The engine has given up: "
"""How the lines begin that the server prints of its address, and of an engine that has failed for good."""


@contextmanager
def served(arguments: list[str], *, ready_timeout_s: float) -> Iterator[str]:
    """Run a server on a free port for as long as the block lasts.

    Args:
        arguments: More arguments of `visavis serve`.
        ready_timeout_s: Until its engine has to be ready.

    Yields:
        The address of its page, once a session can be opened.

    Raises:
        WorkerError: It ended before it was ready, or its engine has given up.
        WorkerStartTimeout: It was not ready in time.
    """
    command = [sys.executable, "-m", "tools.cli", "serve", "--port", "0", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield _wait_ready(process, ready_timeout_s)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _wait_ready(process: subprocess.Popen[str], ready_timeout_s: float) -> str:
    """Read the address that the server prints, then ask it until a session could be opened."""
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    url = next((line.split()[1] for line in lines if line.startswith(ADDRESS_WORD)), None)
    if url is None:
        raise WorkerError(f"the server ended with exit code {process.wait()}")
    deadline_s = time.monotonic() + ready_timeout_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise WorkerError(f"the server ended with exit code {process.returncode}")
        try:
            state = _info(url)["engine"]["state"]
        except (urllib.error.URLError, TimeoutError):
            state = "starting"
        if state == "ready":
            return url
        if state == "failed":
            words = (line.removeprefix(FAILED_WORDS).strip() for line in lines if line.startswith(FAILED_WORDS))
            raise WorkerError(next(words, "the engine has given up"))
        time.sleep(POLL_S)
    raise WorkerStartTimeout(ready_timeout_s)


def _info(url: str) -> Any:
    with urllib.request.urlopen(f"{url}api/info", timeout=10) as answer:
        return json.load(answer)


def run(arguments: list[str], *, seconds: float, audio: Path | None, ready_timeout_s: float) -> dict[str, Any]:
    """Measure a live session.

    Args:
        arguments: Of `visavis serve`.
        seconds: Length of the session.
        audio: What is said into the microphone, again and again; the shipped sample if None.
        ready_timeout_s: Until the engine has to be ready.

    Returns:
        The report, as JSON.

    Raises:
        WorkerError: The server could not be started, or was not ready in time.
    """
    sound = read_sound(audio or SAMPLE_SPEECH)
    with served(arguments, ready_timeout_s=ready_timeout_s) as url:
        info = _info(url)
        report = asyncio.run(measure(url, sound, seconds))
    return {"machine": describe_machine(), "engine": info["engine"], "session": report.to_json()}


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report, one figure per line."""
    for name, value in report["session"].items():
        console.print(f"{name:>20}  {round(value, 1) if isinstance(value, float) else value}")
    machine, engine = report["machine"], report["engine"]
    console.print(
        f"engine {engine['name']}; {machine['cpu']}, {machine['num_cores']} cores; commit {machine['commit']}"
    )
