"""The noise schedule: the values for which the published model was distilled."""

import pytest

from pipeline.errors import ConfigError
from pipeline.schedule import make_schedule

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("num_steps", "sigmas"),
    [
        (3, [1.0, 0.751121104, 0.008928572, 0]),
        (4, [1.0, 0.857692301, 0.602150559, 0.008928572, 0]),
        (
            8,
            [1, 0.947542548, 0.882787764, 0.800837338, 0.693793118, 0.548045576, 0.337972164, 0.008928572, 0],
        ),
    ],
)
def test_the_noise_levels_are_those_of_the_published_sampler(num_steps: int, sigmas: list[float]) -> None:
    """The reference values are float32."""
    schedule = make_schedule(num_steps)
    assert schedule.num_steps == num_steps
    assert schedule.sigmas == pytest.approx(sigmas, abs=1e-7)


def test_timesteps_are_a_thousand_times_the_noise_levels() -> None:
    assert make_schedule(4).timesteps == pytest.approx([1000.0, 857.69232, 602.15057, 8.92857], abs=1e-4)


@pytest.mark.parametrize("num_steps", [2, 9])
def test_other_numbers_of_steps_are_refused(num_steps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_steps is {num_steps}, but it has to be 3 to 8"):
        make_schedule(num_steps)
