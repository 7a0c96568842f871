"""The parts of a training step: what learns, the step replayed as CUDA graphs, moving averages, and bounded time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from tools.train.replicas import Replicas

__all__ = ["Ema", "GraphedStep", "Learner", "Log", "Schedule"]

MAX_GRADIENT_NORM = 1.0


class Learner:
    """Parameters with their optimiser, and their gradients in one buffer, which replicas average in one message.

    Args:
        parameters: All on one device.
        betas: Of AdamW.
        weight_decay: Of AdamW.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, betas: tuple[float, float], weight_decay: float) -> None:
        chosen = list(parameters)
        device = chosen[0].device
        cuda = device.type == "cuda"
        self.gradients = torch.zeros(sum(p.numel() for p in chosen), device=device)
        first = 0
        for p in chosen:
            # Laid out as the parameter, which the fused optimiser takes for granted.
            p.grad = self.gradients.as_strided(p.shape, p.stride(), first)
            first += p.numel()
        self._rate = torch.zeros((), device=device)
        self._optimiser = torch.optim.AdamW(
            chosen, lr=self._rate, betas=betas, weight_decay=weight_decay, fused=cuda, capturable=cuda
        )

    def set_rate(self, rate: float) -> None:
        """Set the learning rate; 0 at first."""
        self._rate.fill_(rate)

    def clear(self) -> None:
        """Forget the gradients."""
        self.gradients.zero_()

    def apply(self) -> None:
        """Bound the gradients' norm and make a step."""
        norm = torch.linalg.vector_norm(self.gradients)
        self.gradients.mul_((MAX_GRADIENT_NORM / (norm + 1e-6)).clamp(max=1.0))
        self._optimiser.step()


class GraphedStep:
    """A training step over fixed input tensors, on CUDA replayed without launch overhead.

    Gradients are computed, averaged over the replicas, and applied.

    Args:
        compute: Takes the inputs by name, adds gradients to the learners and returns named scalars; must not
            synchronise.
        learners: What learns.
        inputs: Example inputs; their shapes and dtypes stay.
        replicas: Who trains together.
        warm_up: Plain runs before capture; with learning rates still at 0 they change no weights.
    """

    def __init__(
        self,
        compute: Callable[..., dict[str, Tensor]],
        learners: Sequence[Learner],
        inputs: dict[str, Tensor],
        replicas: Replicas,
        warm_up: int = 3,
    ) -> None:
        self._compute = compute
        self._learners = learners
        self._replicas = replicas
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self._graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None
        if next(iter(inputs.values())).is_cuda:
            self._capture(warm_up)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run one step.

        Args:
            **inputs: New values of all inputs.

        Returns:
            The step's scalars; on CUDA they are overwritten by the next call.
        """
        if self._graphs is None:
            values = self._gradients(inputs)
            self._average()
            self._apply()
            return values
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._graphs[0].replay()
        self._average()
        self._graphs[1].replay()
        return self._outputs

    def _capture(self, warm_up: int) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                self._gradients(self._inputs)
                self._average()
                self._apply()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Only this thread's calls count: the collective library's watchdog asks about events meanwhile.
        with torch.cuda.graph(self._graphs[0], capture_error_mode="thread_local"):
            self._outputs = self._gradients(self._inputs)
        with torch.cuda.graph(self._graphs[1], capture_error_mode="thread_local"):
            self._apply()

    def _gradients(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        for learner in self._learners:
            learner.clear()
        return self._compute(**inputs)

    def _average(self) -> None:
        for learner in self._learners:
            self._replicas.average(learner.gradients)

    def _apply(self) -> None:
        for learner in self._learners:
            learner.apply()


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
    agree: Callable[[float], float] = float
    """Makes one number of those of all replicas."""
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    def __iter__(self) -> Iterator[float]:
        """Yield the progress of each step until the time is over."""
        self.started = time.monotonic()
        while self.step < self.max_steps:
            progress = self.agree((time.monotonic() - self.started) / self.seconds)
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
