"""Tests of server/events.py: which event ends the wait, and what the wait leaves behind."""

import asyncio

import pytest

from server.events import wait_for_one

pytestmark = pytest.mark.unit


async def test_any_of_the_events_ends_the_wait_and_no_task_remains() -> None:
    events = [asyncio.Event() for _ in range(3)]
    waiting = asyncio.create_task(wait_for_one(*events))
    await asyncio.sleep(0)
    assert not waiting.done()
    events[1].set()
    await waiting
    assert [event.is_set() for event in events] == [False, True, False]


async def test_an_event_that_has_come_already_ends_the_wait_too() -> None:
    event = asyncio.Event()
    event.set()
    await wait_for_one(asyncio.Event(), event)


async def test_the_wait_ends_in_time_without_any() -> None:
    event = asyncio.Event()
    await wait_for_one(event, timeout_s=0.001)
    assert not event.is_set()


async def test_a_cancelled_wait_leaves_no_task() -> None:
    waiting = asyncio.create_task(wait_for_one(asyncio.Event()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}
