import pytest

from pipeline.config import EngineConfig
from pipeline.host.restart import RestartDecision, after_failure

pytestmark = pytest.mark.unit

CONFIG = EngineConfig(restart_delay_s=0.5, restart_delay_max_s=3, max_restarts=4, healthy_after_s=60)


def test_pauses_double_up_to_the_longest_and_then_it_gives_up() -> None:
    num_failures, delays_s = 0, []
    for _ in range(5):
        decision = after_failure(num_failures, ready_for_s=1, config=CONFIG)
        num_failures = decision.num_failures
        delays_s.append(decision.delay_s)
    assert delays_s == [0.5, 1.0, 2.0, 3.0, None]


def test_a_worker_that_ran_well_starts_the_count_again() -> None:
    assert after_failure(4, ready_for_s=60, config=CONFIG) == RestartDecision(num_failures=1, delay_s=0.5)


def test_without_restarts_the_first_failure_is_the_last() -> None:
    config = EngineConfig(max_restarts=0)
    assert after_failure(0, ready_for_s=1000, config=config).delay_s is None
