"""The command line as its users see it: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path

import pytest
from PIL import Image

from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.command_line import ENVIRONMENT, ROOT, visavis, visavis_command

pytestmark = pytest.mark.contract


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
    lines = result.stderr.splitlines()
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
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=True)
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
        ({"--pose": "dance.mp4"}, r"--pose is 'dance.mp4', but only the large engine follows a film"),
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


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--prompt", "smile"], "--prompt is 'smile', but only the large engine reads a prompt"),
        (["--size", "512x512"], "--size is '512x512', but the embedded engine makes pictures of 256x384 only"),
        (["--steps", "5"], "engine.num_steps is 5, but the embedded engine was trained for 4 at most"),
    ],
)
def test_what_the_embedded_engine_cannot_ends_with_2_before_it_is_started(
    tmp_path: Path, image: Path, audio: Path, options: list[str], pattern: str
) -> None:
    """An engine that was started would miss its weights first."""
    files = ("--image", image, "--audio", audio, "-o", tmp_path / "o.mp4")
    assert_one_line(visavis("render", *files, "--set", f"engine.weights_dir={tmp_path}", *options), 2, pattern)


def test_a_server_whose_engine_reads_no_prompt_refuses_one() -> None:
    result = visavis("serve", "--port", "0", "--prompt", "smile")
    assert_one_line(result, 2, "--prompt is 'smile', but only the large engine reads a prompt")


def test_only_so_many_clips_are_made_and_the_engine_s_notes_are_told(tmp_path: Path, image: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16_000 * 4))
    files = ("--image", image, "--audio", tmp_path / "a.wav", "-o", tmp_path / "o.mp4")
    result = visavis("render", *files, "--clips", "1", "--set", "engine.precision=fp32")
    assert result.returncode == 0, result.stderr
    assert result.stdout.replace("\n", "").endswith("o.mp4: 1.92 s, 48 frames of 256x384")
    assert re.search(r"^precision fp32 \(fp32 \d+ ms per window\)$", result.stderr, re.MULTILINE)


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
    command = visavis_command("render", *arguments, *slow)
    # A shell starts background jobs deaf to the interrupt key, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT)
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The large engine's official folder at a tiny size, not to be changed."""
    folder = tmp_path_factory.mktemp("official")
    write_checkpoint(folder)
    return folder


def large(weights: Path, image: Path, audio: Path, output: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    """Render with the large engine on the CPU."""
    files = ("--weights", weights, "--image", image, "--audio", audio, "-o", output)
    settings = ("--set", "engine.large.device=cpu", "--set", "engine.threads=1")
    return visavis("render", "--engine", "large", *files, *settings, *more)


def test_the_large_engine_makes_a_movie_from_a_folder_in_the_official_layout(
    tmp_path: Path, weights: Path, image: Path, audio: Path
) -> None:
    """In the size of 128x128 that fits a portrait of 200x300 best; and a merged copy of the weights is kept."""
    words = ("--prompt", "a person talks", "--steps", "3", "--seed", "7")
    area = ("--set", "engine.large.height_px=64", "--set", "engine.large.width_px=256")
    cache = ("--set", f"engine.large.cache_dir={tmp_path / 'cache'}")
    result = large(weights, image, audio, tmp_path / "o.mp4", *words, *area, *cache)
    assert result.returncode == 0, result.stderr
    assert result.stdout.replace("\n", "").endswith("o.mp4: 1.00 s, 25 frames of 128x128")
    assert (tmp_path / "o.mp4").stat().st_size > 1000
    assert list((tmp_path / "cache").glob("transformer-*/manifest.json"))


def test_two_speakers_share_a_movie(tmp_path: Path, weights: Path, image: Path, audio: Path) -> None:
    """As long as the shorter sound; the voices are those of the two halves of the picture."""
    with wave.open(str(tmp_path / "b.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 12_800))
    more = ("--audio", tmp_path / "b.wav", "--speaker", "0,0,0.5,1", "--speaker", "100,0,200,300")
    cache = ("--set", "engine.large.cache_dir=null")
    result = large(weights, image, audio, tmp_path / "o.mp4", *more, "--size", "128x64", *cache)
    assert result.returncode == 0, result.stderr
    assert result.stdout.replace("\n", "").endswith("o.mp4: 0.80 s, 20 frames of 128x64")


def test_damaged_weights_of_the_large_engine_end_with_1_and_name_the_file(
    tmp_path: Path, weights: Path, image: Path, audio: Path
) -> None:
    damaged = shutil.copytree(weights, tmp_path / "damaged")
    adapter = damaged / "LiveAvatar" / "liveavatar.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-10])
    result = large(damaged, image, audio, tmp_path / "o.mp4")
    assert_one_line(result, 1, r"weights .*liveavatar.safetensors: is no complete safetensors file")
    assert not (tmp_path / "o.mp4").exists()


def test_random_weights_are_announced_in_red_and_too_little_memory_with_its_sum(
    tmp_path: Path, image: Path, audio: Path
) -> None:
    settings = ("--set", "engine.large.device=cpu", "--set", "engine.large.memory_gb=60")
    result = visavis(
        *("render", "--engine", "large", "--random-weights", "--size", "704x384"),
        *("--image", image, "--audio", audio, "-o", tmp_path / "o.mp4", *settings),
    )
    assert result.returncode == 1
    red, refusal = result.stderr.splitlines()
    assert "random weights: this engine has learnt nothing" in red
    assert "60.00 GB may be used" in refusal or "are free" in refusal
    assert "94.07 GB are needed: transformer 32.59" in refusal


def test_the_large_engine_is_measured_as_json(weights: Path) -> None:
    settings = ("device=cpu", "height_px=64", "width_px=64", "cache_dir=null")
    changes = [part for setting in settings for part in ("--set", f"engine.large.{setting}")]
    result = visavis("-v", "bench", "large", "--weights", weights, "--windows", "10", "--json", *changes)
    assert result.returncode == 0, result.stderr
    assert "transformer: ready after" in result.stderr, "the log was asked for"
    report = json.loads(result.stdout)
    assert (report["width_px"], report["device"], report["has_random_weights"]) == (64, "cpu", False)
    assert len(report["relative_errors"]) == 3
    assert_one_line(visavis("bench", "large"), 2, "engine.weights_dir is None, but the large engine takes either")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ([], "engine.weights_dir is None, but the large engine takes either it or large.random_weights"),
        (["--weights", "w", "--size", "720x400"], "engine.large.height_px is 400, but .* multiple of 64"),
        (["--weights", "w", "--pose", "README.md"], "video file .*README.md is not a media file"),
        (["--weights", "w", "--speaker", "0,0,1,1"], "number of speakers is 1, but masks are for two or more"),
        (["--weights", "w", "--steps", "9"], "engine.num_steps is 9, but .* less than or equal to 8"),
        (["--weights", "w", "--steps", "2"], "engine.num_steps is 2, but .* greater than or equal to 3"),
    ],
)
def test_wrong_settings_of_the_large_engine_end_with_2_before_anything_is_started(
    tmp_path: Path, image: Path, audio: Path, options: list[str], pattern: str
) -> None:
    files = ("--image", image, "--audio", audio, "-o", tmp_path / "o.mp4")
    assert_one_line(visavis("render", "--engine", "large", *files, *options), 2, pattern)
