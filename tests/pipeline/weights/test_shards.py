"""Streaming: a network gets its tensors straight from the shards, and the host holds one shard at most."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import WeightsError
from pipeline.weights.official import ADAPTER_NAME
from pipeline.weights.shards import assemble, read_tensors
from tests.fakes.checkpoint import TINY_DIT, write_adapter, write_transformer

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
LAYERS, WIDTH = 8, 1536
ALLOCATORS = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONMALLOC": "malloc",
    "MKL_DISABLE_FAST_MM": "1",
    "OMP_NUM_THREADS": "1",
}
"""Memory goes back at once: what allocators keep for later differs from run to run, up to a fifth of these shards."""


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
from safetensors.torch import load_file
from torch import nn
from pipeline.weights.merged import load_transformer
from pipeline.weights.official import find_official
from pipeline.weights.random_weights import random_network
from pipeline.weights.shards import assemble, read_tensors
from pipeline.models.dit import DiT
from tests.fakes.checkpoint import TINY_DIT

def status_bytes(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

def load_layers():
    build = lambda: nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}) for _ in range({LAYERS})))
    return assemble(build, read_tensors(shards, torch.device("cpu")), shards[0])

def load_merged():
    return load_transformer(find_official(Path(sys.argv[1])), device=torch.device("cpu"), cache=None)

# What products, and networks that are built without memory, need once.
torch.ones(64, 64).double() @ torch.ones(64, 64).double()
random_network(lambda: DiT(TINY_DIT), device=torch.device("cpu"), dtype=torch.float32, seed=0)
shards = sorted(Path(sys.argv[1]).glob("*.safetensors"))
held = [load_file(path) for path in shards] if sys.argv[3] == "all at once" else None
copies = [value.clone() for file in held for value in file.values()] if held else None
before = int(sys.argv[4]) if held else status_bytes("VmRSS:")
network = dict(layers=load_layers, merged=load_merged)[sys.argv[2]]()
print(before, status_bytes("VmHWM:") - before, sum(p.nbytes for p in network.parameters()))
"""


def measure(folder: Path, *arguments: str) -> list[int]:
    """Load in a process of its own; return its memory before, by how much the peak is above that, and the network's."""
    command = [sys.executable, "-c", MEASURE, str(folder), *arguments]
    variables = os.environ | ALLOCATORS
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()]


def check_peak(folder: Path, kind: str) -> None:
    """Here the host is the device too, so the network's own size comes on top."""
    largest_shard_bytes = max(path.stat().st_size for path in folder.glob("*-of-*.safetensors"))
    before, streamed, num_bytes = measure(folder, kind, "streamed")
    allowed = num_bytes + 1.3 * largest_shard_bytes
    assert num_bytes > 2.7 * largest_shard_bytes
    assert streamed < allowed
    # The measure sees a load that holds everything twice.
    _, at_once, _ = measure(folder, kind, "all at once", str(before))
    assert at_once > 1.15 * allowed


def test_the_host_holds_the_device_s_tensors_and_at_most_1_3_shards(tmp_path: Path) -> None:
    for number in range(4):
        layers = range(2 * number, 2 * number + 2)
        save_file(
            {f"{layer}.weight": torch.ones(WIDTH, WIDTH) for layer in layers}
            | {f"{layer}.bias": torch.ones(WIDTH) for layer in layers},
            tmp_path / f"{number}-of-4.safetensors",
        )
    check_peak(tmp_path, "layers")


def test_so_it_does_while_an_adapter_is_merged(tmp_path: Path) -> None:
    """A layer is unpacked while it is merged: with many layers it is small, as at the published size."""
    config = dataclasses.replace(TINY_DIT, dim=448, ffn_dim=896, num_layers=24)
    write_transformer(tmp_path, config, num_shards=3)
    write_adapter(tmp_path / ADAPTER_NAME, config)
    check_peak(tmp_path, "merged")
