"""Training together: alone there is nothing to do, and two processes come to the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tools.train.replicas import Replicas

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json
from pathlib import Path

import torch
from torch import nn
from tools.train.replicas import Replicas

with Replicas() as replicas:
    torch.manual_seed(replicas.rank)
    network = nn.Linear(2, 2)
    replicas.follow_first(network)
    gradients = torch.full((3,), float(replicas.rank))
    replicas.average(gradients)
    row = [gradients.tolist(), replicas.agree(0.25 + replicas.rank), float(network.weight.sum())]
    Path(f"{replicas.rank}.json").write_text(json.dumps(row))
"""


def test_alone_nothing_changes() -> None:
    with Replicas() as replicas:
        assert replicas.is_first
        values, network = torch.ones(3), nn.Linear(1, 1)
        before = float(network.weight.detach())
        replicas.average(values)
        replicas.follow_first(network)
        assert values.tolist() == [1, 1, 1]
        assert float(network.weight.detach()) == before
        assert replicas.agree(0.3) == 0.3


def test_two_processes_average_follow_and_agree(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[:2] == [[0.5, 0.5, 0.5], 0.25]
