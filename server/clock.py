"""Time as the server sees it: one monotonic clock that tests replace by a virtual one."""

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "MonotonicClock"]


class Clock(Protocol):
    """A monotonic clock and the two ways to wait on it."""

    def now_s(self) -> float:
        """Seconds since an arbitrary origin, the same for all processes of the machine."""

    async def sleep_until_s(self, deadline_s: float) -> None:
        """Return at the deadline, or at once when it has passed. Cancellation stops the wait."""

    async def wait_until_s(self, event: asyncio.Event, deadline_s: float) -> bool:
        """Return as soon as the event is set, at the latest at the deadline.

        Args:
            event: What is waited for; it is left as it is.
            deadline_s: When to give up, on this clock.

        Returns:
            Whether the event is set.
        """


class MonotonicClock:
    """The real clock: `time.monotonic` and the running event loop."""

    def now_s(self) -> float:
        """Seconds on the machine-wide monotonic clock."""
        return time.monotonic()

    async def sleep_until_s(self, deadline_s: float) -> None:
        """Sleep; a deadline in the past still lets the other tasks run once."""
        await asyncio.sleep(max(0.0, deadline_s - self.now_s()))

    async def wait_until_s(self, event: asyncio.Event, deadline_s: float) -> bool:
        """Wait for the event or the deadline, whichever comes first."""
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self.now_s())):
                await event.wait()
        except TimeoutError:
            return event.is_set()
        return True
