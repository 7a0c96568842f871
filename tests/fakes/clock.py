"""A clock that only moves when a test moves it."""

import asyncio


class VirtualClock:
    """Implements `server.clock.Clock`; waiting tasks run as the test lets time pass."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_s = now_s
        self._waits: list[tuple[float, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    async def sleep_until_s(self, deadline_s: float) -> None:
        if deadline_s <= self._now_s:
            await asyncio.sleep(0)
            return
        wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (deadline_s, wait)
        self._waits.append(entry)
        try:
            await wait
        finally:
            self._waits.remove(entry)

    async def wait_until_s(self, event: asyncio.Event, deadline_s: float) -> bool:
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.sleep_until_s(deadline_s))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        return event.is_set()

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking every sleeper in its moment and letting it work before time goes on."""
        end_s = self._now_s + seconds
        await self._settle()
        while due := [entry for entry in self._waits if entry[0] <= end_s and not entry[1].done()]:
            deadline_s, wait = min(due, key=lambda entry: entry[0])
            self._now_s = max(self._now_s, deadline_s)
            wait.set_result(None)
            await self._settle()
        self._now_s = end_s
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
