"""Tests of server/microphone.py: received sound in media time, in virtual time."""

import asyncio

import numpy as np
import pytest

from server.microphone import PACKET_SAMPLES, Microphone
from tests.fakes.clock import VirtualClock

pytestmark = pytest.mark.unit


def make(clock: VirtualClock) -> Microphone:
    return Microphone(clock, jitter_s=0.06, tolerance_s=0.01, quiet_dbfs=-50.0)


def packet(value: int) -> np.ndarray:
    return np.full((PACKET_SAMPLES, 2), value, np.int16)


async def test_sound_before_the_start_is_forgotten() -> None:
    microphone = make(VirtualClock())
    microphone.receive(0, packet(1))
    assert microphone.take() is None
    assert microphone.position() == 0


async def test_sound_is_taken_once_in_order_and_stays_for_the_playout() -> None:
    clock = VirtualClock()
    microphone = make(clock)
    microphone.start(clock.now_s())
    positions = []
    for i in range(5):
        await clock.advance(0.02)
        microphone.receive(i * PACKET_SAMPLES, packet(1000 + i))
        chunk = microphone.take()
        assert chunk is not None
        positions.append((chunk.position, len(chunk.pcm)))
        assert microphone.take() is None
    assert positions == [(i * 320, 320) for i in range(5)]
    assert microphone.taken == 1600
    np.testing.assert_array_equal(microphone.sound(2 * PACKET_SAMPLES, PACKET_SAMPLES), packet(1002))


async def test_a_microphone_that_sends_nothing_gives_silence_by_the_clock() -> None:
    clock = VirtualClock()
    microphone = make(clock)
    microphone.start(clock.now_s())
    await clock.advance(1.0)
    chunk = microphone.take()
    assert chunk is not None
    assert len(chunk.pcm) == 15_040
    assert not chunk.pcm.any()
    assert microphone.silence_ms == pytest.approx(940.0)
    assert microphone.gap_ms == 0.0


async def test_lost_sound_is_counted() -> None:
    clock = VirtualClock()
    microphone = make(clock)
    microphone.start(clock.now_s())
    for i in range(10):
        await clock.advance(0.02)
        if i != 4:
            microphone.receive(i * PACKET_SAMPLES, packet(1000))
            microphone.take()
    assert microphone.gap_ms == pytest.approx(20.0)
    assert microphone.taken == 3200


async def test_waiting_ends_with_a_packet_or_after_20_ms() -> None:
    clock = VirtualClock()
    microphone = make(clock)
    microphone.start(clock.now_s())
    waiting = asyncio.create_task(microphone.wait())
    await clock.advance(0.019)
    assert not waiting.done()
    await clock.advance(0.001)
    assert waiting.done()
    waiting = asyncio.create_task(microphone.wait())
    await clock.advance(0.001)
    microphone.receive(0, packet(1))
    await clock.advance(0.0)
    assert waiting.done()


async def test_after_a_long_sleep_the_engine_gets_every_sample_as_silence() -> None:
    clock = VirtualClock()
    microphone = make(clock)
    microphone.start(clock.now_s())
    await clock.advance(100.0)
    chunk = microphone.take()
    assert chunk is not None
    assert len(chunk.pcm) == round(99.94 * 16_000)


async def test_the_level_of_a_window_is_that_of_its_own_sound() -> None:
    clock = VirtualClock()
    microphone = make(clock)
    microphone.start(clock.now_s())
    for i in range(48):
        await clock.advance(0.02)
        microphone.receive(i * PACKET_SAMPLES, packet(3277 if i >= 24 else 0))
    assert microphone.window_level_dbfs(0) == -100.0
    assert microphone.window_level_dbfs(12) == pytest.approx(-20.0, abs=0.1)
    assert microphone.window_level_dbfs(0, 15) > -40.0


async def test_sound_that_is_no_longer_known_does_not_count_as_silence() -> None:
    clock = VirtualClock()
    microphone = make(clock)
    microphone.start(clock.now_s())
    for i in range(50):
        await clock.advance(0.02)
        microphone.receive(i * PACKET_SAMPLES, packet(3277 if i >= 24 else 0))
    assert microphone.was_quiet(0, 12)
    assert not microphone.was_quiet(12, 12)
    await clock.advance(5.5)
    assert not microphone.was_quiet(0, 12)
    assert microphone.was_quiet(50, 12)
