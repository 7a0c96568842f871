"""Running a training step many times: as one CUDA graph where there is a GPU, plainly elsewhere; and time-bounded
stages.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["Ema", "GraphedStep", "Log", "Schedule", "adamw"]


class GraphedStep:
    """A training step (forward, backward, optimiser) over fixed input tensors, replayed without launch overhead on
    CUDA.

    Args:
        step: Takes the inputs by name and returns named scalars; must not synchronise.
        inputs: Example inputs; their shapes and dtypes stay.
        warm_up: Plain runs before capture.
    """

    def __init__(self, step: Callable[..., dict[str, Tensor]], inputs: dict[str, Tensor], warm_up: int = 4) -> None:
        self._step = step
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self._graph: torch.cuda.CUDAGraph | None = None
        if next(iter(inputs.values())).is_cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(warm_up):
                    step(**self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = step(**self._inputs)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run one step.

        Args:
            **inputs: New values of all inputs.

        Returns:
            The step's scalars; on CUDA they are overwritten by the next call.
        """
        if self._graph is None:
            return self._step(**inputs)
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        return self._outputs


def adamw(parameters: list[nn.Parameter], *, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """An AdamW whose learning rate is a tensor, so that it may change inside a CUDA graph."""
    device = parameters[0].device
    cuda = device.type == "cuda"
    rate = torch.zeros((), device=device)
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=weight_decay, fused=cuda, capturable=cuda)


class Ema:
    """Exponential moving average of a network's parameters; buffers are copied.

    Args:
        model: The network that is trained.
        average: A network of the same shape that holds the average.
        decay: Per step; the first steps average faster.
    """

    def __init__(self, model: nn.Module, average: nn.Module, decay: float) -> None:
        average.load_state_dict(model.state_dict())
        average.requires_grad_(False)
        self.average = average
        self._pairs = list(average.parameters()), list(model.parameters())
        self._buffers = list(average.buffers()), list(model.buffers())
        self._decay = decay
        self._count = 0

    @torch.no_grad()
    def update(self) -> None:
        """Follow the trained network by one step."""
        self._count += 1
        weight = 1 - min(self._decay, self._count / (self._count + 20))
        torch._foreach_lerp_(self._pairs[0], self._pairs[1], weight)  # type: ignore[arg-type]
        for old, new in zip(*self._buffers, strict=True):
            old.copy_(new)


@dataclass(slots=True)
class Schedule:
    """A stage bounded in time (and in steps, for tests): iterating yields the progress from 0 to 1.

    The learning rate warms up over `warm_up` steps, then falls by a cosine over the time.
    """

    seconds: float
    peak: float
    max_steps: int = 10_000_000
    warm_up: int = 200
    floor: float = 0.04
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    def __iter__(self) -> Iterator[float]:
        """Yield the progress of each step until the time is over."""
        self.started = time.monotonic()
        while self.step < self.max_steps:
            progress = (time.monotonic() - self.started) / self.seconds
            if progress >= 1 and self.step > 0:
                return
            yield min(progress, 1.0)
            self.step += 1

    def rate(self, progress: float) -> float:
        """Learning rate at a progress."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak * min(1, (self.step + 1) / self.warm_up) * (self.floor + (1 - self.floor) * cosine)


class Log:
    """Writes one JSON object per line to a file and to the screen.

    Args:
        path: The file; appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the file."""
        self._file.close()

    def __call__(self, stage: str, **values: object) -> None:
        """Write one line.

        Args:
            stage: What is running.
            **values: Numbers and texts; tensors are read out.
        """
        record: dict[str, object] = {"t_s": round(time.monotonic() - self._started, 1), "stage": stage}
        for name, value in values.items():
            number = float(value) if isinstance(value, Tensor) else value
            record[name] = float(f"{number:.4g}") if isinstance(number, float) else number
        line = json.dumps(record)
        self._file.write(line + "\n")
        print(line, flush=True)
