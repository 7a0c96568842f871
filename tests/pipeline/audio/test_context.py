"""Which contexts the speech network can be given."""

from __future__ import annotations

import pytest

from pipeline.audio.context import SMALLEST_RIGHT_CONTEXT_MS, LiveContext
from pipeline.errors import ConfigError

pytestmark = pytest.mark.unit


def test_lengths_are_given_in_milliseconds_and_used_in_samples() -> None:
    context = LiveContext(left_ms=2000, right_ms=85)
    assert (context.left_samples, context.right_samples) == (32_000, 1360)


def test_the_last_state_of_a_window_needs_5_ms_after_it() -> None:
    assert SMALLEST_RIGHT_CONTEXT_MS == 5
    assert LiveContext(left_ms=20, right_ms=5).right_samples == 80


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"left_ms": 1010}, "left_ms is 1010, but it has to be a positive multiple of 20"),
        ({"left_ms": 0}, "left_ms is 0, but it has to be a positive multiple of 20"),
        ({"right_ms": 4}, "right_ms is 4, but it has to be at least 5"),
    ],
)
def test_other_lengths_are_refused(changes: dict[str, int], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        LiveContext(**changes)
