"""Waiting for one of several events."""

import asyncio

__all__ = ["wait_for_one"]


async def wait_for_one(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait until one of some events has come. Cancellation leaves nothing behind.

    Args:
        *events: The events; which of them came is theirs to say.
        timeout_s: How long to wait at most; None waits for as long as it takes.
    """
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
