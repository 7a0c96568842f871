"""The table of contexts, by a small network with random weights."""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from pipeline.audio.context import LiveContext
from pipeline.errors import ConfigError, MediaError, WeightsError
from pipeline.models.wav2vec import Wav2Vec
from tests.fakes.wav2vec import tiny_config, write_tiny_folder
from tools.bench.audio import Plan, layer_groups, load_network, random_network, run, show
from tools.cli import app

pytestmark = pytest.mark.numerics

WINDOW = 7680
GROUPS = ["0", "1-8", "9-16", "17-24", "all"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring at these sizes."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    write_tiny_folder(checkpoint / "wav2vec2-large-xlsr-53-english")
    return checkpoint


@pytest.fixture(scope="module")
def network(folder: Path) -> Wav2Vec:
    return load_network(folder)


def _write_sound(path: Path, num_samples: int) -> Path:
    """Noise that swells three times a second."""
    swell = 1 + 0.9 * np.sin(2 * np.pi * np.arange(num_samples) / 4800)
    noise = np.random.default_rng(0).normal(0, 0.1, num_samples)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.clip(noise * swell, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def _run_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "audio", *map(str, arguments)])


def test_every_right_context_is_tried_with_every_left_one(network: Wav2Vec, tmp_path: Path) -> None:
    sound = _write_sound(tmp_path / "a.wav", 12 * WINDOW)
    plan = Plan(left_ms=(480, 1920), right_ms=(80, 960), num_windows=3)
    told: list[str] = []
    report = run(network, plan, is_random=False, audio=sound, report=told.append)
    assert [(row["right_ms"], row["left_ms"]) for row in report["rows"]] == [
        (80, 480),
        (80, 1920),
        (960, 480),
        (960, 1920),
    ]
    assert all(list(row["error"]) == GROUPS for row in report["rows"])
    assert all(row["window_ms"] > 0 for row in report["rows"])
    assert (report["audio"], report["audio_s"], report["weights"]) == ("a.wav", 5.76, "published")
    # Windows 4 to 9 have 1920 ms before them and 960 ms after them.
    assert report["windows"] == [4, 6, 9]
    assert len(told) == 5
    json.dumps(report)


def test_context_brings_live_features_nearer_down_to_nothing(network: Wav2Vec, tmp_path: Path) -> None:
    """The last window of a file of 5 has all of it in a context of 1920 ms before and 5 ms after."""
    sound = _write_sound(tmp_path / "a.wav", 5 * WINDOW + 80)
    report = run(network, Plan(left_ms=(20, 480, 1920), right_ms=(5,)), is_random=False, audio=sound)
    assert report["windows"] == [4]
    nearly_none, little, all_of_it = (row["error"] for row in report["rows"])
    for group in GROUPS[1:]:
        assert nearly_none[group] > little[group] > 10 * all_of_it[group]
    assert all_of_it["all"] < 1e-3
    # What remains is where the published code reads the columns of a file.
    assert report["stretch"]["all"] > 10 * all_of_it["all"]


def test_the_shipped_sample_is_long_enough_for_the_table_that_is_made_without_options() -> None:
    plan = Plan()
    assert len(plan.contexts) == 20
    assert LiveContext() in plan.contexts
    report = run(random_network(tiny_config(num_hidden_layers=3)), plan, is_random=True)
    assert len(report["windows"]) == 8
    assert report["audio"] == "sample.wav"


def test_a_file_too_short_for_the_longest_contexts_is_refused(network: Wav2Vec, tmp_path: Path) -> None:
    sound = _write_sound(tmp_path / "a.wav", 5 * WINDOW)
    with pytest.raises(MediaError, match=r"a.wav is 2.4 s long, but the longest contexts need 2.9 s"):
        run(network, Plan(left_ms=(1920,), right_ms=(480,)), is_random=False, audio=sound)


def test_a_context_that_the_network_cannot_be_given_is_refused_before_anything_is_done() -> None:
    with pytest.raises(ConfigError, match="left_ms is 30"):
        Plan(left_ms=(30,))


@pytest.mark.parametrize(("num_layers", "names"), [(25, GROUPS), (4, ["0", "1-1", "2-2", "3-3", "all"])])
def test_the_layers_above_the_first_are_divided_in_thirds(num_layers: int, names: list[str]) -> None:
    groups = layer_groups(num_layers)
    assert list(groups) == names
    layers = list(range(num_layers))
    assert [layer for name in names[:-1] for layer in layers[groups[name]]] == layers[groups["all"]] == layers


def test_the_inner_folder_is_found_in_a_checkpoint(folder: Path, network: Wav2Vec) -> None:
    inner = load_network(folder / "wav2vec2-large-xlsr-53-english").state_dict()
    assert all(torch.equal(tensor, inner[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(WeightsError, match=r"config.json: is missing"):
        load_network(folder / "elsewhere")


@pytest.mark.parametrize("is_random", [True, False])
def test_random_weights_are_announced_in_red(network: Wav2Vec, tmp_path: Path, is_random: bool) -> None:
    sound = _write_sound(tmp_path / "a.wav", 10 * WINDOW)
    plan = Plan(left_ms=(480, 3840), right_ms=(80,), num_windows=1)
    text = io.StringIO()
    console = Console(file=text, width=160, force_terminal=True, color_system="standard")
    show(run(network, plan, is_random=is_random, audio=sound), console)
    assert ("\x1b[31mrandom weights: these figures say little" in text.getvalue()) == is_random
    assert "layers 17-24" in text.getvalue()
    # The row of the default stands out.
    assert text.getvalue().count("\x1b[1m") > 1
    plain = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue())
    assert "default: 3840 ms before, 80 ms after a window" in plain


def test_the_command_prints_json(folder: Path, tmp_path: Path) -> None:
    sound = _write_sound(tmp_path / "a.wav", 8 * WINDOW)
    options = ["--left-ms", "960", "--right-ms", "80", "--right-ms", "160", "--windows", "2", "--json"]
    result = _run_command("--weights", folder, "--audio", sound, *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(row["left_ms"], row["right_ms"]) for row in report["rows"]] == [(960, 80), (960, 160)]
    assert len(report["windows"]) == 2
    assert "encoding 4 s at once" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        ([], 2, "--weights is None, but either it or --random-weights has to be given"),
        (["--weights", "x", "--random-weights"], 2, "--weights is 'x', but either it or --random-weights"),
        (["--weights", "nowhere"], 1, "weights nowhere/config.json: is missing"),
        (["--weights", "nowhere", "--right-ms", "3"], 2, "right_ms is 3, but it has to be at least 5"),
    ],
)
def test_bad_input_ends_with_one_line(arguments: list[str], code: int, pattern: str) -> None:
    result = _run_command(*arguments)
    assert result.exit_code == code
    assert pattern in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_random_weights_are_always_the_same() -> None:
    before = torch.random.get_rng_state()
    first, second = (random_network(tiny_config()).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert torch.equal(torch.random.get_rng_state(), before)
