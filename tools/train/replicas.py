"""Training in several processes at once, one per GPU: gradients are averaged, so a step sees all their batches.

Started by `python -m torch.distributed.run --nproc-per-node N -m tools.train.run ...`; alone otherwise.
"""

from __future__ import annotations

import os
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Replicas"]


class Replicas:
    """The processes that train together; this one is number `rank` of `count`. A context manager.

    Rank 0 keeps time, validates, logs and writes files.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = "cpu"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            self.device = "cuda"
        self._host: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process keeps time and writes files."""
        return self.rank == 0

    def __enter__(self) -> Self:
        """Meet the others, if there are any."""
        if self.count > 1:
            dist.init_process_group("nccl" if self.device == "cuda" else "gloo")
            self._host = dist.new_group(backend="gloo")
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Part from the others."""
        if self.count > 1:
            dist.destroy_process_group()

    def average(self, values: Tensor) -> None:
        """Replace a tensor by its mean over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
            values.div_(self.count)

    @torch.no_grad()
    def follow_first(self, network: nn.Module) -> None:
        """Take over parameters and buffers of the first process's network."""
        if self.count > 1:
            for tensor in (*network.parameters(), *network.buffers()):
                dist.broadcast(tensor, 0)

    def agree(self, number: float) -> float:
        """Give the first process's number in all of them, without waiting for any GPU."""
        if self.count == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64)
        dist.broadcast(shared, 0, group=self._host)
        return float(shared)
