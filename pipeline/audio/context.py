"""How much sound around a window the speech network of the large engine hears when it listens live. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.geometry import SAMPLE_RATE_HZ

__all__ = ["SMALLEST_RIGHT_CONTEXT_MS", "STATE_HOP_SAMPLES", "LiveContext"]

STATE_HOP_SAMPLES = 320
"""Samples from one hidden state of the network to the next."""
STATE_FIELD_SAMPLES = 400
"""Samples that one hidden state is made of, before attention."""

_SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
_HOP_MS = STATE_HOP_SAMPLES // _SAMPLES_PER_MS

SMALLEST_RIGHT_CONTEXT_MS = (STATE_FIELD_SAMPLES - STATE_HOP_SAMPLES) // _SAMPLES_PER_MS
"""With less, the hidden state of a window's last 20 ms could not be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveContext:
    """Sound before and after a window.

    The defaults are from `visavis bench audio` with random weights of the published sizes: half as much left context
    again brings live features nearer to those of the whole file by a twentieth, twice the right context by a thirtieth.

    Raises:
        ConfigError: A length that the network cannot be given.
    """

    left_ms: int = 3840
    """Sound before a window: it costs computing time."""
    right_ms: int = 80
    """Sound after a window: it is waited for, so it is delay."""

    def __post_init__(self) -> None:
        # The first column of a window may lie between its first state and the one before.
        if self.left_ms < _HOP_MS or self.left_ms % _HOP_MS:
            raise ConfigError("left_ms", self.left_ms, f"it has to be a positive multiple of {_HOP_MS}")
        if self.right_ms < SMALLEST_RIGHT_CONTEXT_MS:
            raise ConfigError("right_ms", self.right_ms, f"it has to be at least {SMALLEST_RIGHT_CONTEXT_MS}")

    @property
    def left_samples(self) -> int:
        """`left_ms` in samples."""
        return self.left_ms * _SAMPLES_PER_MS

    @property
    def right_samples(self) -> int:
        """`right_ms` in samples."""
        return self.right_ms * _SAMPLES_PER_MS
