"""The command line as its users see it: what it prints, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[2]


def visavis(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "TERM": "dumb"}
    command = [sys.executable, "-m", "tools.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=cwd, env=environment, check=False)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 300), (200, 120, 90)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16_000))
    return tmp_path / "a.wav"


def assert_one_line(result: subprocess.CompletedProcess[str], code: int, pattern: str) -> None:
    """Check the exit code, and that stderr is one sentence and no traceback."""
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert re.search(pattern, lines[0]), lines[0]


def test_the_version_is_printed() -> None:
    result = visavis("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"visavis \d+\.\d+\.\d+\n", result.stdout)


def test_without_a_command_the_help_is_shown() -> None:
    assert "render" in visavis().stdout + visavis().stderr


def test_starting_it_loads_neither_torch_nor_the_server() -> None:
    code = "import sys, tools.cli; print([m for m in ('torch', 'fastapi', 'av', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout == "[]\n"


def test_render_makes_a_movie_and_says_so(tmp_path: Path, image: Path, audio: Path) -> None:
    output = tmp_path / "o.mp4"
    result = visavis(
        "render", "--engine", "pattern", "--size", "128*192", "--image", image, "--audio", audio, "-o", output
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.replace("\n", "").endswith("o.mp4: 1.00 s, 25 frames of 128x192")
    assert "no face was found" in result.stderr
    assert output.stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"--image": "README.md"}, r"image README.md is \d+ bytes of something else, but it has to be a JPEG"),
        ({"--image": "nobody.png"}, r"image nobody.png is unreadable \(no such file"),
        ({"--audio": "README.md"}, r"audio file README.md is not a media file"),
        ({"--size": "100x100"}, r"--size is '100x100', but width and height have to be multiples of 16"),
        ({"--size": "big"}, r"--size is 'big', but it has to look like 256x384"),
        ({"--steps": "99"}, r"engine.num_steps is 99, but"),
        ({"--prompt": "smile"}, r"prompt is 'smile', but"),
        ({"--set": "engine.colour=red"}, r"engine.colour is 'red', but there is no such setting"),
        ({"--config": "nowhere.yaml"}, r"nowhere.yaml"),
        ({"--output": "/nowhere/o.mp4"}, r"--output is '/nowhere/o.mp4', but there is no folder /nowhere"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(
    tmp_path: Path, image: Path, audio: Path, changes: dict[str, str], pattern: str
) -> None:
    values = {"--image": image, "--audio": audio, "--output": tmp_path / "o.mp4", "--engine": "pattern", **changes}
    result = visavis("render", *[part for item in values.items() for part in item])
    assert_one_line(result, 2, pattern)
    assert not (tmp_path / "o.mp4").exists()


def test_an_unknown_option_ends_with_2() -> None:
    assert visavis("render", "--colour", "red").returncode == 2


def test_missing_weights_end_with_1_and_one_line(tmp_path: Path, image: Path, audio: Path) -> None:
    (tmp_path / "none").mkdir()
    setting = f"engine.weights_dir={tmp_path / 'none'}"
    result = visavis("render", "--image", image, "--audio", audio, "-o", tmp_path / "o.mp4", "--set", setting)
    assert_one_line(result, 1, r"weights .*none/")


def test_verbose_shows_the_traceback() -> None:
    result = visavis("-v", "render", "--image", "x.png", "--audio", "x.wav", "-o", "/tmp/x.avi")
    assert "Traceback" in result.stderr
    assert "ConfigError" in result.stderr


def test_ctrl_c_leaves_no_half_file(tmp_path: Path, image: Path) -> None:
    """The engine is slow enough for the signal to come in the middle."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16_000 * 60))
    (tmp_path / "out").mkdir()
    arguments = ["--image", image, "--audio", tmp_path / "a.wav", "-o", tmp_path / "out" / "o.mp4"]
    slow = ["--engine", "pattern", "--set", "engine.pattern.compute_ms=400"]
    command = [sys.executable, "-m", "tools.cli", "render", *arguments, *slow]
    # A shell starts background jobs deaf to the interrupt key, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    signal.signal(signal.SIGINT, before)
    try:
        deadline_s = time.monotonic() + 30
        while not list((tmp_path / "out").iterdir()):
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert stderr.strip().endswith("visavis: interrupted")
    assert list((tmp_path / "out").iterdir()) == []


def test_serving_on_a_port_in_use_ends_with_1_and_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = visavis("serve", "--engine", "pattern", "--port", str(port), "--set", "log.level=error")
    assert_one_line(result, 1, rf"cannot listen on 127.0.0.1 port {port}: address already in use")
