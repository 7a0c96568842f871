"""Tests of server/playout.py: what leaves when, in virtual time."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.api import FrameBatch, WindowLedger
from pipeline.geometry import FRAMES_PER_BLOCK
from server.pacing import Picture, Schedule
from server.playout import MAX_WAITING_FRAMES, Playout
from tests.fakes.clock import VirtualClock

pytestmark = pytest.mark.unit

PACKET = 960
DELAY_S = 0.7
STILL = np.full((24, 16), 255, np.uint8)


@dataclass
class Events:
    left: list[tuple[str, int]] = field(default_factory=list)
    underruns: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    done: list[tuple[int, int, float, float]] = field(default_factory=list)

    def picture_left(self, picture: Picture, frame: int) -> None:
        self.left.append((picture.value, frame))

    def underrun(self) -> None:
        self.underruns += 1

    def frames_dropped(self, num_frames: int, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + num_frames

    def window_done(self, ledger: WindowLedger, first_frame: int, paced_s: float, lead_s: float) -> None:
        self.done.append((ledger.window, first_frame, round(paced_s, 3), round(lead_s, 3)))


@dataclass
class Sink:
    clock: VirtualClock
    items: list[tuple[float, int, NDArray[np.generic]]] = field(default_factory=list)

    def put(self, index: int, item: NDArray[np.generic]) -> None:
        self.items.append((round(self.clock.now_s() - 1000.0, 3), index, item))


class Bench:
    """A playout with its surroundings; media time 0 is second 1000 of the clock."""

    def __init__(self, *, still: NDArray[np.uint8] | None = STILL) -> None:
        self.clock = VirtualClock()
        self.events = Events()
        self.video = Sink(self.clock)
        self.audio = Sink(self.clock)
        self.playout = Playout(
            schedule=Schedule(anchor_s=1000.0, playout_delay_s=DELAY_S),
            video=self.video,
            audio=self.audio,
            sound=lambda position, num: np.full((num, 2), position // PACKET % 1000 + 1, np.int16),
            packet_samples=PACKET,
            events=self.events,
            still=still,
        )

    async def __aenter__(self) -> "Bench":
        self.task = asyncio.create_task(self.playout.run(self.clock))
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def add(
        self,
        window: int,
        *,
        offset: int = 0,
        num_frames: int = FRAMES_PER_BLOCK,
        epoch: int = 0,
        start: int = 0,
        is_quiet: bool = False,
    ) -> None:
        """Add frames whose pixels are their media index modulo 200."""
        first = window * FRAMES_PER_BLOCK + offset
        frames = np.stack([np.full((24, 16), (start + first + i) % 200, np.uint8) for i in range(num_frames)])
        is_last = offset + num_frames == FRAMES_PER_BLOCK
        ledger = WindowLedger(window=window, epoch=epoch, captured_s=self.clock.now_s()) if is_last else None
        batch = FrameBatch(window=window, epoch=epoch, first_frame=first, frames=frames, ledger=ledger)
        self.playout.add(batch, stream_start=start, is_quiet=is_quiet, now_s=self.clock.now_s())

    @property
    def pictures(self) -> list[int]:
        return [int(picture[0, 0]) for _, _, picture in self.video.items]


async def test_frame_and_first_half_of_its_sound_leave_together_the_second_half_20_ms_later() -> None:
    async with Bench() as bench:
        bench.add(0)
        await bench.clock.advance(DELAY_S + 0.09)
        assert [(at_s, frame) for at_s, frame, _ in bench.video.items] == [(0.7, 0), (0.74, 1), (0.78, 2)]
        assert [(at_s, position) for at_s, position, _ in bench.audio.items] == [
            (round(0.7 + 0.02 * i, 3), i * PACKET) for i in range(5)
        ]
        assert [int(samples[0, 0]) for _, _, samples in bench.audio.items] == [1, 2, 3, 4, 5]


async def test_before_the_first_frame_the_still_is_shown_and_the_sound_goes_on() -> None:
    async with Bench() as bench:
        await bench.clock.advance(DELAY_S + 0.105)
        assert bench.pictures == [255, 255, 255]
        assert len(bench.audio.items) == 6
        assert bench.events.underruns == 0


async def test_without_a_still_nothing_is_shown_before_the_first_frame() -> None:
    async with Bench(still=None) as bench:
        await bench.clock.advance(DELAY_S + 0.105)
        assert bench.pictures == []
        assert bench.events.left == []


async def test_frames_leave_in_their_moment_for_a_minute_without_drift() -> None:
    async with Bench() as bench:
        for window in range(125):
            bench.add(window)
            await bench.clock.advance(0.48)
        at_s, frame, _ = bench.video.items[-1]
        assert at_s == pytest.approx(DELAY_S + frame * 0.04)
        assert {kind for kind, _ in bench.events.left} == {"fresh"}
        assert bench.events.dropped == {}


async def test_a_missing_window_holds_one_block_then_rests_back_and_forth_while_the_sound_goes_on() -> None:
    async with Bench() as bench:
        bench.add(0, is_quiet=True)
        bench.add(1)
        await bench.clock.advance(DELAY_S + 50 * 0.04 - 0.01)
        assert bench.pictures[:24] == list(range(24))
        assert bench.pictures[24:36] == [23] * 12
        assert bench.pictures[36:50] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 10, 9]
        assert bench.events.underruns == 1
        assert len(bench.audio.items) == 100


async def test_only_a_silent_block_becomes_the_rest_block_and_the_most_recent_one_counts() -> None:
    async with Bench() as bench:
        bench.add(0, is_quiet=True)
        bench.add(1, is_quiet=True)
        bench.add(2, is_quiet=False)
        await bench.clock.advance(DELAY_S + 49 * 0.04 - 0.01)
        assert bench.pictures[-1] == 12


async def test_a_block_in_several_batches_becomes_the_rest_block_too() -> None:
    async with Bench() as bench:
        bench.add(0, num_frames=4)
        bench.add(0, offset=4, num_frames=8, is_quiet=True)
        await bench.clock.advance(DELAY_S + 26 * 0.04 - 0.01)
        assert bench.pictures[-2:] == [0, 1]


async def test_after_a_rest_fresh_frames_are_shown_at_once() -> None:
    async with Bench() as bench:
        bench.add(0, is_quiet=True)
        await bench.clock.advance(DELAY_S + 36 * 0.04 - 0.01)
        bench.add(3)
        await bench.clock.advance(0.02)
        assert bench.pictures[-1] == 36
        assert bench.events.left[-1] == ("fresh", 36)


async def test_late_frames_are_dropped_counted_and_their_window_is_reported_without_lead() -> None:
    async with Bench() as bench:
        bench.add(0)
        await bench.clock.advance(DELAY_S + 30 * 0.04)
        bench.add(1)
        assert bench.events.dropped == {"late": 12}
        assert bench.events.done[-1] == (1, 12, round(bench.clock.now_s(), 3), 0.0)


async def test_a_window_is_reported_when_its_last_frame_leaves_with_the_lead_of_its_first() -> None:
    async with Bench() as bench:
        bench.add(0)
        await bench.clock.advance(DELAY_S + 11 * 0.04 - 0.01)
        assert bench.events.done == []
        await bench.clock.advance(0.02)
        assert bench.events.done == [(0, 0, 1001.14, 0.44)]


async def test_a_window_whose_first_frames_left_before_its_last_were_made_has_the_lead_of_then() -> None:
    async with Bench() as bench:
        bench.add(0, num_frames=4)
        await bench.clock.advance(DELAY_S + 0.01)
        bench.add(0, offset=4, num_frames=8)
        await bench.clock.advance(0.48)
        assert bench.events.done == [(0, 0, 1001.14, 0.12)]


async def test_an_interrupt_drops_what_waits_and_rests_without_holding_or_counting_an_underrun() -> None:
    async with Bench() as bench:
        bench.add(0, is_quiet=True)
        bench.add(1)
        await bench.clock.advance(DELAY_S + 14.5 * 0.04)
        bench.playout.begin_epoch(1, now_tick=60)
        bench.add(2, epoch=0)
        await bench.clock.advance(0.04)
        assert bench.pictures[-1] == 0
        assert bench.events.dropped == {"epoch": 9 + 12}
        assert bench.events.underruns == 0


async def test_sound_from_before_an_interrupt_stays_unheard() -> None:
    async with Bench() as bench:
        await bench.clock.advance(DELAY_S + 0.01)
        bench.playout.begin_epoch(1, now_tick=3)
        await bench.clock.advance(0.1)
        assert [int(samples[0, 0]) for _, _, samples in bench.audio.items] == [1, 0, 0, 4, 5, 6]


async def test_a_new_stream_begins_anywhere_in_media_time_and_its_epochs_begin_anew() -> None:
    async with Bench() as bench:
        bench.playout.begin_epoch(3, now_tick=0)
        bench.playout.begin_stream()
        bench.add(0, start=5)
        await bench.clock.advance(DELAY_S + 0.2 + 0.01)
        assert bench.pictures[-1] == 5


async def test_a_new_portrait_is_rested_on_until_one_of_its_own_blocks_is_silent() -> None:
    async with Bench() as bench:
        bench.add(0, is_quiet=True)
        bench.playout.change_still(np.full((24, 16), 201, np.uint8), first_frame=24)
        bench.add(1, is_quiet=True)
        await bench.clock.advance(DELAY_S + 36 * 0.04 + 0.01)
        assert bench.pictures[-1] == 201
        bench.add(4, is_quiet=True)
        await bench.clock.advance(0.04)
        assert bench.pictures[-1] == 49


async def test_a_loop_that_was_late_sends_all_the_sound_but_only_the_newest_picture() -> None:
    bench = Bench()
    bench.add(0)
    await bench.clock.advance(DELAY_S + 3 * 0.04 + 0.01)
    async with bench:
        await bench.clock.advance(0.0)
        assert bench.pictures == [3]
        assert [position // PACKET for _, position, _ in bench.audio.items] == list(range(7))
        assert bench.events.dropped == {"loop": 3}


async def test_after_a_long_sleep_of_the_machine_the_past_is_not_made_up_for() -> None:
    bench = Bench()
    await bench.clock.advance(3600.0)
    async with bench:
        await bench.clock.advance(0.0)
        assert len(bench.audio.items) == 51


async def test_an_engine_that_runs_far_ahead_cannot_fill_the_memory() -> None:
    async with Bench() as bench:
        for window in range(12):
            bench.add(window)
        assert bench.events.dropped == {"late": 12 * FRAMES_PER_BLOCK - MAX_WAITING_FRAMES}
