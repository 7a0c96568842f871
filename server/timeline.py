"""Where received sound lies in media time: pure, in samples, without growing delay.

Media time is anchored to the clock, the sender counts by its own. A packet is placed by its RTP timestamp plus an
offset that makes the earliest of recent packets arrive exactly when its last sample is captured. So a lost packet
leaves a gap of its own length and nothing more, reordered packets fall into their place, and a sender whose clock runs
at a slightly different rate, or whose first packets were late, is brought back by moving the offset, in a quiet moment
if one comes in time.

Sound becomes final as soon as it joins what is already final, or when it is `jitter_samples` late: then silence takes
its place. What comes later still is dropped. All positions are sample indices at the rate of the RTP clock (48 kHz).
"""

from dataclasses import dataclass

__all__ = ["Placed", "Timeline"]

_UINT32 = 1 << 32
MAX_PENDING = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What to write of a packet."""

    position: int
    """Media position of the first sample to write."""
    skip: int
    """How many samples at the start of the packet are not written, because what lies there is final."""


class Timeline:
    """Places packets in media time and says what is final. One per session, on the loop.

    Args:
        jitter_samples: How late a packet may be.
        tolerance_samples: How far the earliest packet may be off before the offset is moved, in a quiet moment; at
            three times that it is moved even in speech.
        resync_samples: A packet further off than this belongs to a new run of timestamps.
        first_check: Number of packets after which the offset is checked for the first time.
        check_every: Number of packets between later checks.
    """

    def __init__(
        self,
        *,
        jitter_samples: int,
        tolerance_samples: int,
        resync_samples: int,
        first_check: int = 25,
        check_every: int = 200,
    ) -> None:
        self._jitter_samples = jitter_samples
        self._tolerance_samples = tolerance_samples
        self._resync_samples = resync_samples
        self._check_every = check_every
        self._num_until_check = first_check
        self._last_timestamp: int | None = None
        self._last_lateness = 0
        self._unwrapped = 0
        self._offset = 0
        self._earliest = 0
        self._error = 0
        self._num_seen = 0
        self._is_running = False
        self._pending: list[tuple[int, int]] = []
        self.final = 0
        """Everything before this position is final."""
        self.late_samples = 0
        """Samples that came after their place had become final."""
        self.gap_samples = 0
        """Samples replaced by silence within a run of packets: lost or late."""
        self.silence_samples = 0
        """Samples replaced by silence because nothing was being received."""

    def place(self, timestamp: int, num_samples: int, *, clock_position: int, is_quiet: bool) -> Placed | None:
        """Find the place of a packet.

        Args:
            timestamp: RTP timestamp of its first sample, modulo 2^32.
            num_samples: Its length.
            clock_position: Media position of the moment it arrived.
            is_quiet: Whether the offset can be moved at this packet without being heard.

        Returns:
            What to write and where, or None when there is no place for the packet.
        """
        is_first = self._last_timestamp is None
        unwrapped = self._unwrap(timestamp)
        lateness = clock_position - (unwrapped + self._offset + num_samples)
        # After a stall of the network the packets come in a burst, each less late than the one before; a new run of
        # timestamps is off by the same amount every time.
        is_steady = abs(self._last_lateness - lateness) < num_samples // 2
        is_far = abs(lateness) > self._resync_samples
        self._last_lateness = lateness
        if is_first or (is_far and is_steady):
            self._move_offset(lateness)
            self._num_seen = 0
            self._is_running = False
        elif is_far:
            self.late_samples += num_samples
            return None
        else:
            self._adapt(lateness, is_quiet=is_quiet)
        return self._reserve(unwrapped + self._offset, num_samples)

    def advance(self, clock_position: int) -> int:
        """Make final what has joined up and what has waited long enough.

        Args:
            clock_position: Media position of now.

        Returns:
            The new end of what is final; it never goes back.
        """
        deadline = clock_position - self._jitter_samples
        while self._pending:
            start, end = self._pending[0]
            missing = self._fill(min(start, deadline))
            if self._is_running:
                self.gap_samples += missing
            else:
                self.silence_samples += missing
            if start > self.final:
                return self.final
            self.final = max(self.final, end)
            self._is_running = True
            del self._pending[0]
        missing = self._fill(deadline)
        self.silence_samples += missing
        if missing > self._jitter_samples:
            self._is_running = False
        return self.final

    def _fill(self, position: int) -> int:
        missing = max(0, position - self.final)
        self.final += missing
        return missing

    def _unwrap(self, timestamp: int) -> int:
        if self._last_timestamp is not None:
            step = (timestamp - self._last_timestamp) % _UINT32
            self._unwrapped += step - _UINT32 if step >= _UINT32 // 2 else step
        self._last_timestamp = timestamp
        return self._unwrapped

    def _adapt(self, lateness: int, *, is_quiet: bool) -> None:
        """Measure the error over some packets; move the offset at the next quiet one, or now if the error is large."""
        self._earliest = min(self._earliest, lateness) if self._num_seen else lateness
        self._num_seen += 1
        if self._num_seen >= self._num_until_check:
            self._error = self._earliest
            self._begin_check()
        size = abs(self._error)
        if size > 3 * self._tolerance_samples or (is_quiet and size > self._tolerance_samples):
            self._move_offset(self._error)
            self._begin_check()

    def _begin_check(self) -> None:
        self._num_until_check = self._check_every
        self._num_seen = 0

    def _move_offset(self, by_samples: int) -> None:
        self._offset += by_samples
        self._last_lateness -= by_samples
        self._error = 0

    def _reserve(self, start: int, num_samples: int) -> Placed | None:
        end = start + num_samples
        skip = min(num_samples, max(0, self.final - start))
        self.late_samples += skip
        if skip == num_samples:
            return None
        self._pending.append((start + skip, end))
        self._pending.sort()
        if len(self._pending) > MAX_PENDING:
            # Nobody has asked for long what is final; the oldest becomes a gap.
            del self._pending[0]
        return Placed(position=start + skip, skip=skip)
