"""Comparing pictures, and the discriminator's part of a step."""

from __future__ import annotations

import pytest
import torch

from tools.train.clips import NUM_LANDMARKS
from tools.train.critic import Critic, compare_pictures

pytestmark = pytest.mark.numerics


def frames(seed: int = 0, count: int = 4) -> torch.Tensor:
    return torch.rand(1, count, 3, 112, 96, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def marks(count: int = 4) -> torch.Tensor:
    return torch.full((1, count, NUM_LANDMARKS, 2), 48.0)


def test_equal_pictures_have_no_loss() -> None:
    losses = compare_pictures(frames(), frames(), marks())
    parts = (losses.l1, losses.squared, losses.edges, losses.change, losses.activity)
    assert [float(part) for part in parts] == [0, 0, 0, 0, 0]


def test_an_error_on_the_mouth_costs_more_than_one_elsewhere() -> None:
    real = frames()
    on_mouth, elsewhere = real.clone(), real.clone()
    on_mouth[..., 44:52, 44:52] += 0.5
    elsewhere[..., 100:108, 4:12] += 0.5
    assert float(compare_pictures(on_mouth, real, marks()).l1) > 4 * float(
        compare_pictures(elsewhere, real, marks()).l1
    )


def test_flicker_is_a_change_and_a_constant_error_is_none() -> None:
    real = frames() + 0.5
    flicker = real.clone()
    flicker[:, ::2] += 0.2
    assert float(compare_pictures(flicker, real, marks()).change) == pytest.approx(0.2, abs=1e-4)
    assert float(compare_pictures(real + 0.2, real, marks()).change) < 1e-6


def test_movement_in_steps_is_too_little_and_then_too_much_activity() -> None:
    """The same way in all, but the whole of it at once: half of the loss is of the still frames, half of the jump."""
    real = torch.zeros(1, 5, 3, 112, 96) + torch.arange(5.0).mul(0.1).view(1, 5, 1, 1, 1)
    steps = torch.zeros_like(real)
    steps[:, 4] += 0.4
    assert float(compare_pictures(steps, real, marks(5)).activity) == pytest.approx((3 * 0.1 + 0.3) / 4, rel=0.05)
    assert float(compare_pictures(real.flip(1), real, marks(5)).activity) < 1e-5, "where to, it does not ask"


def test_a_verdict_trains_the_judge_and_gives_gradients_to_the_made_pictures_alone() -> None:
    torch.manual_seed(0)
    critic = Critic(torch.device("cpu"))
    made, real = frames(1, 8).requires_grad_(), frames(2, 8) * 0.1
    chosen, centre = torch.tensor([[1, 6]]), torch.tensor([[48.0, 50.0], [40.0, 60.0]])
    verdicts = []
    for _ in range(12):
        critic.learner.clear()
        verdicts.append(critic(made, real, chosen, centre))
        critic.learner.apply()
    assert float(verdicts[-1].judged) < float(verdicts[0].judged), "it learns to tell noise from grey"
    assert not verdicts[-1].judged.requires_grad
    before = critic.learner.gradients.clone()
    (verdicts[-1].matching + verdicts[-1].fooled).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(critic.learner.gradients, before)
    assert made.grad is not None
    seen = [bool(made.grad[0, frame].any()) for frame in range(8)]
    assert seen == [True, True, True, False, False, True, True, True], "each with its neighbours"
