"""Streaming: a network gets its tensors straight from the shards, and the host holds one shard at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import WeightsError
from pipeline.weights.shards import assemble, read_tensors

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
LAYERS, WIDTH = 8, 1536
LAYER_BYTES = WIDTH * (WIDTH + 1) * 4


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two shards of a small network."""
    torch.manual_seed(0)
    state = make().state_dict()
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for number, path in enumerate(paths):
        save_file({name: value for name, value in state.items() if name.startswith(f"{number}.")}, path)
    return paths


def test_a_network_gets_exactly_its_tensors_without_copies(shards: list[Path]) -> None:
    torch.manual_seed(0)
    expected = make().state_dict()
    tensors = dict(read_tensors(shards, CPU))
    network = assemble(make, tensors.items(), shards[0].parent)
    assert not network.training
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert parameter.data_ptr() == tensors[name].data_ptr()
        assert not parameter.requires_grad


def test_tensors_outlive_their_file(shards: list[Path]) -> None:
    """They hold nothing of it, so that its memory can go, and it can be overwritten."""
    tensors = dict(read_tensors(shards, CPU))
    expected = {name: value.clone() for name, value in tensors.items()}
    for path in shards:
        path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


def test_a_dtype_is_kept(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2).bfloat16(), "bias": torch.ones(2)}, tmp_path / "x.safetensors")
    network = assemble(lambda: nn.Linear(2, 2), read_tensors([tmp_path / "x.safetensors"], CPU), tmp_path)
    assert (network.weight.dtype, network.bias.dtype) == (torch.bfloat16, torch.float32)


def test_a_missing_shard_is_named(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(WeightsError, match=r"2\.safetensors: cannot be read"):
        assemble(make, read_tensors(shards, CPU), shards[0])


def test_a_truncated_shard_is_named(shards: list[Path]) -> None:
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"1\.safetensors: cannot be read \(.*not fully covered"):
        assemble(make, read_tensors(shards, CPU), shards[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"0.weight": None}, r'Missing key\(s\).*"0\.weight"'),
        ({"2.weight": torch.zeros(1)}, r'Unexpected key\(s\).*"2\.weight"'),
        ({"1.bias": torch.zeros(3)}, r"size mismatch for 1\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    shards: list[Path], changes: dict[str, torch.Tensor | None], words: str
) -> None:
    tensors = {**dict(read_tensors(shards, CPU)), **changes}
    given = [(name, value) for name, value in tensors.items() if value is not None]
    with pytest.raises(WeightsError, match=rf"(?s)folder: does not fit the network .*{words}"):
        assemble(make, given, Path("folder"))


MEASURE = f"""
import sys
from pathlib import Path
import torch
from torch import nn
from pipeline.weights.shards import assemble, read_tensors

def status_bytes(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

shards = sorted(Path(sys.argv[1]).glob("*.safetensors"))
build = lambda: nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}) for _ in range({LAYERS})))
tensors = read_tensors(shards, torch.device("cpu"))
if sys.argv[2] == "all at once":
    tensors = list(tensors)
    copies = [value.clone() for name, value in tensors]
before = status_bytes("VmRSS:") if sys.argv[2] == "streamed" else int(sys.argv[3])
network = assemble(build, tensors, shards[0])
assert sum(p.nbytes for p in network.parameters()) == {LAYERS * LAYER_BYTES}
print(before, status_bytes("VmHWM:") - before)
"""


def measure(folder: Path, *arguments: str) -> list[int]:
    """Load in a process of its own; return its memory before, and by how much the peak is above that."""
    command = [sys.executable, "-c", MEASURE, str(folder), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()]


def test_the_host_holds_the_device_s_tensors_and_at_most_1_3_shards(tmp_path: Path) -> None:
    """Here the host is the device too, so the network's own size comes on top."""
    for number in range(4):
        layers = range(2 * number, 2 * number + 2)
        save_file(
            {f"{layer}.weight": torch.ones(WIDTH, WIDTH) for layer in layers}
            | {f"{layer}.bias": torch.ones(WIDTH) for layer in layers},
            tmp_path / f"{number}.safetensors",
        )
    allowed = LAYERS * LAYER_BYTES + 1.3 * 2 * LAYER_BYTES
    before, streamed = measure(tmp_path, "streamed")
    assert streamed < allowed
    # The measure sees a load that holds everything twice.
    _, at_once = measure(tmp_path, "all at once", str(before))
    assert at_once > 1.15 * allowed
