"""Steps, averages, schedules and logs of the training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tools.train.replicas import Replicas
from tools.train.steps import Ema, GraphedStep, Learner, Log, Schedule

pytestmark = pytest.mark.unit


def learner(weight: nn.Parameter) -> Learner:
    return Learner([weight], betas=(0.9, 0.99), weight_decay=0.0)


def test_a_step_computes_gradients_from_its_inputs_and_applies_them() -> None:
    weight = nn.Parameter(torch.ones(1))
    own = learner(weight)

    def compute(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = (weight * (a + b)).sum()
        loss.backward()
        return {"loss": loss.detach()}

    step = GraphedStep(compute, [own], {"a": torch.zeros(()), "b": torch.zeros(())}, Replicas())
    for rate, expected in ((0.0, 1.0), (0.1, 0.9)):
        own.set_rate(rate)
        assert float(step(a=torch.tensor(2.0), b=torch.tensor(3.0))["loss"]) == 5
        assert float(weight.detach()) == pytest.approx(expected, abs=1e-3)
    assert own.gradients.tolist() == [pytest.approx(1.0, abs=1e-3)], "5, bounded to a norm of 1, and not 10"


def test_gradients_of_all_parameters_lie_in_one_buffer_however_the_parameters_are_laid_out() -> None:
    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    own = Learner(conv.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    conv(torch.randn(1, 2, 4, 4)).square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.bias is not None
    assert conv.bias.grad is not None
    assert conv.weight.grad.stride() == conv.weight.stride()
    total = conv.weight.grad.square().sum() + conv.bias.grad.square().sum()
    torch.testing.assert_close(own.gradients.square().sum(), total)
    own.clear()
    assert not conv.weight.grad.any()


def test_the_average_starts_as_the_network_and_follows_it_slower_and_slower() -> None:
    model, average = nn.Linear(1, 1), nn.Linear(1, 1)
    ema = Ema(model, average, decay=0.5)
    assert torch.equal(average.weight, model.weight)
    start = float(model.weight.detach())
    with torch.no_grad():
        model.weight += 1
    ema.update()
    first = float(average.weight) - start
    assert first == pytest.approx(1 - 1 / 21, abs=1e-5)
    for _ in range(200):
        ema.update()
    with torch.no_grad():
        model.weight += 1
    ema.update()
    assert float(average.weight) - start == pytest.approx(1.5, abs=1e-3)
    assert not average.weight.requires_grad


def test_buffers_are_copied_and_not_averaged() -> None:
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    ema = Ema(model, average, decay=0.999)
    model.running_mean.fill_(3)  # type: ignore[union-attr]
    ema.update()
    assert average.running_mean is not None
    assert average.running_mean.tolist() == [3, 3]


def test_a_schedule_ends_after_its_steps_or_after_its_time_and_makes_one_step_at_least() -> None:
    steps = Schedule(seconds=1e6, peak=1, max_steps=3)
    assert len(list(steps)) == 3
    assert steps.step == 3
    assert len(list(Schedule(seconds=1e-9, peak=1))) == 1


def test_the_rate_warms_up_and_falls_to_its_floor() -> None:
    schedule = Schedule(seconds=1, peak=2.0, warm_up=10)
    assert schedule.rate(0.0) == pytest.approx(0.2)
    schedule.step = 100
    rates = [schedule.rate(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates[0] == 2.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.08)


def test_a_log_has_one_object_per_line_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("one", "two"):
        with Log(tmp_path / "log.jsonl") as log:
            log(stage, loss=torch.tensor(math.pi), step=7, name="x")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["one", "two"]
    assert (rows[0]["loss"], rows[0]["step"], rows[0]["name"]) == (3.142, 7, "x")
    assert len(capsys.readouterr().out.splitlines()) == 2
