"""Tests of server/session.py: a whole session in virtual time, on an engine in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pipeline.api import StreamParams
from pipeline.errors import WorkerError
from server.config import SessionConfig
from server.control import Params
from server.errors import NotFound
from server.lifecycle import State
from server.metrics import Metrics
from server.microphone import PACKET_SAMPLES
from server.portraits import PortraitCut
from server.session import Session
from tests.fakes.clock import VirtualClock
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.unit

DELAY_S = 0.76


def portrait(name: str) -> PortraitCut:
    return PortraitCut(id=name, rgb=np.full((16, 16, 3), 9, np.uint8), still=np.full((24, 16), 250, np.uint8))


@dataclass
class FakePeer:
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    num_packets: int = 0
    is_alive: bool = True
    num_closes: int = 0
    close_error: Exception | None = None
    on_close: Callable[[], None] = lambda: None

    async def num_received(self) -> int:
        if self.is_alive:
            self.num_packets += 1
        return self.num_packets

    async def aclose(self) -> None:
        self.num_closes += 1
        self.closed.set()
        self.on_close()
        if self.close_error is not None:
            raise self.close_error


@dataclass
class Control:
    messages: list[dict[str, Any]] = field(default_factory=list)
    is_closed: bool = False

    def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def close(self) -> None:
        self.is_closed = True

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    @property
    def states(self) -> list[str]:
        states = [message["state"] for message in self.of("state")]
        return [state for i, state in enumerate(states) if i == 0 or states[i - 1] != state]


class Room:
    """A session with everything around it."""

    def __init__(
        self, *, config: SessionConfig, engine: FakeEngine, clock: VirtualClock, delay_s: float = DELAY_S
    ) -> None:
        self.clock = clock
        self.engine = engine
        self.peer = FakePeer()
        self.control = Control()
        self.metrics = Metrics()
        self.pictures: list[tuple[int, int]] = []
        self.num_packets_said = 0

        async def load_portrait(name: str) -> PortraitCut:
            if name == "gone":
                raise NotFound("portrait", name)
            return portrait(name)

        self.session = Session(
            session_id="s-1",
            engine=engine,
            config=config,
            clock=clock,
            metrics=self.metrics,
            playout_delay_s=delay_s,
            seed=5,
            params=StreamParams(),
            portrait=portrait("ada"),
            shows_portrait=True,
            load_portrait=load_portrait,
        )

    async def watch(self) -> None:
        while True:
            frame = await self.session.video.recv()
            assert frame.pts is not None
            self.pictures.append((frame.pts // 3600, int(frame.to_ndarray()[0, 0])))

    async def speak(self, seconds: float, *, value: int = 3000) -> None:
        """Send sound in real time."""
        for _ in range(round(seconds * 50)):
            await self.clock.advance(0.02)
            packet = np.full((PACKET_SAMPLES, 2), value, np.int16)
            self.session.microphone.receive(self.num_packets_said * PACKET_SAMPLES, packet)
            self.num_packets_said += 1


@asynccontextmanager
async def room(
    *,
    config: SessionConfig | None = None,
    skipped_windows: frozenset[int] = frozenset(),
    is_connected: bool = True,
    delay_s: float = DELAY_S,
) -> AsyncIterator[Room]:
    clock = VirtualClock()
    made = Room(
        config=config or SessionConfig(),
        engine=FakeEngine(clock, skipped_windows=skipped_windows),
        clock=clock,
        delay_s=delay_s,
    )
    await made.session.open()
    made.session.attach_control(made.control)
    run = asyncio.create_task(made.session.run(made.peer))
    watch = asyncio.create_task(made.watch())
    if is_connected:
        made.peer.connected.set()
    await clock.advance(0.0)
    try:
        yield made
    finally:
        made.session.close()
        await asyncio.wait_for(run, 5)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        assert made.peer.num_closes == 1
        assert made.engine.num_open == 0
        assert made.control.is_closed


async def test_a_session_goes_from_connecting_through_warming_to_live() -> None:
    async with room() as r:
        assert r.control.states == ["connecting", "warming"]
        await r.speak(2.0)
        assert r.control.states == ["connecting", "warming", "live"]


async def test_an_engine_that_is_always_late_rests_the_face_instead_of_waking_it_for_ever() -> None:
    async with room(delay_s=0.05) as r:
        await r.speak(3.0)
        assert r.control.states == ["connecting", "warming", "resting"]
        assert r.pictures[-1][1] < 12, "the rest block is the silence of the first window"


async def test_the_portrait_is_there_at_once_and_the_face_idles_before_the_first_word() -> None:
    async with room() as r:
        await r.clock.advance(DELAY_S + 0.2)
        assert r.pictures[0] == (0, 0)
        await r.clock.advance(2.0)
        assert [frame for frame, _ in r.pictures] == list(range(len(r.pictures)))
        assert [value for _, value in r.pictures] == [frame % 200 for frame, _ in r.pictures]
        assert r.session.tally.counters.underruns == 0


async def test_every_frame_shows_its_own_media_time() -> None:
    async with room() as r:
        await r.speak(10.0)
        assert len(r.pictures) > 220
        assert all(value == frame % 200 for frame, value in r.pictures)
        counters = r.session.tally.counters
        assert (counters.underruns, counters.held_frames, counters.rest_frames, counters.dropped_frames) == (0, 0, 0, 0)


async def test_the_engine_hears_silence_in_its_first_window_and_everything_after_it_once() -> None:
    async with room() as r:
        await r.speak(2.0)
        pushed = r.engine.streams[0].pushed
        pcm = np.concatenate([part for _, part in pushed])
        assert pushed[0][0] == 0
        assert not pcm[:7680].any()
        assert abs(int(pcm[8000:].mean()) - 3000) < 30


async def test_the_viewer_hears_the_original_from_the_first_word_on() -> None:
    async with room() as r:
        speaking = asyncio.create_task(r.session.audio.recv())
        await r.speak(1.0)
        frame = await speaking
        assert frame.pts == 0
        samples = [frame.to_ndarray().reshape(-1, 2)]
        for _ in range(5):
            samples.append((await r.session.audio.recv()).to_ndarray().reshape(-1, 2))
        assert (np.concatenate(samples) == 3000).all()


async def test_each_window_is_reported_with_its_latency_on_control_channel_and_metrics() -> None:
    async with room() as r:
        await r.speak(4.0)
        ledgers = r.control.of("ledger")
        assert [ledger["window"] for ledger in ledgers] == list(range(len(ledgers)))
        assert len(ledgers) >= 5
        for ledger in ledgers[1:]:
            assert ledger["latency_ms"] == pytest.approx((DELAY_S - 0.04) * 1000, abs=21)
            assert ledger["missed"] is None
            assert ledger["level_dbfs"] == pytest.approx(-20.8, abs=0.2)
        count = r.metrics.registry.get_sample_value("window_latency_seconds_count")
        assert count == len(ledgers)


async def test_the_time_from_the_first_sound_of_an_utterance_to_its_frame_is_measured() -> None:
    async with room() as r:
        await r.speak(2.0, value=0)
        await r.speak(2.0)
        registry = r.metrics.registry
        assert registry.get_sample_value("ttff_seconds_count") == 1.0
        assert registry.get_sample_value("ttff_seconds_sum") == pytest.approx(DELAY_S, abs=0.041)


async def test_the_figures_come_once_per_second() -> None:
    async with room() as r:
        await r.speak(5.1)
        stats = r.control.of("stats")
        assert len(stats) == 5
        assert 8 <= stats[-1]["windows"] <= len(r.control.of("ledger"))
        assert stats[-1]["audio_gap_ms"] == 0.0


async def test_a_window_that_never_comes_is_an_underrun_then_a_rest_and_the_session_is_live_again() -> None:
    async with room(skipped_windows=frozenset({4, 5, 6})) as r:
        await r.speak(6.0)
        assert r.control.states == ["connecting", "warming", "live", "resting", "live"]
        counters = r.session.tally.counters
        assert (counters.underruns, counters.held_frames, counters.rest_frames) == (1, 12, 24)
        rested = [value for frame, value in r.pictures if 60 <= frame < 84]
        assert set(rested) <= set(range(12))


async def test_windows_that_the_late_policy_left_out_are_told_over_all_streams_of_a_session() -> None:
    async with room(skipped_windows=frozenset({4, 6})) as r:
        await r.speak(4.1)
        assert r.control.of("stats")[-1]["skipped_windows"] == 2
        r.engine.streams[0].counters.reduced_windows = 3
        r.engine.become("restarting")
        r.engine.become("ready")
        await r.speak(3.1)
        last = r.control.of("stats")[-1]
        assert (last["skipped_windows"], last["reduced_windows"]) == (3, 3)
        assert r.metrics.registry.get_sample_value("windows_skipped_total") == 3.0
        assert r.metrics.registry.get_sample_value("windows_reduced_total") == 3.0


async def test_a_crash_of_the_engine_rests_the_face_and_a_new_stream_takes_over() -> None:
    async with room() as r:
        await r.speak(3.0)
        r.engine.become("restarting")
        await r.speak(3.0)
        assert r.session.state is State.RESTING
        assert r.control.of("state")[-1]["engine"] == "restarting"
        num_before = len(r.pictures)
        r.engine.become("ready")
        await r.speak(4.0)
        assert r.session.state is State.LIVE
        assert len(r.engine.streams) == 2
        assert not r.peer.closed.is_set()
        frames = [frame for frame, _ in r.pictures]
        assert frames == list(range(len(frames)))
        windows = [ledger["window"] for ledger in r.control.of("ledger")]
        assert windows == list(range(len(windows)))
        first_frame, first_value = r.pictures[-1]
        start = r.session._stream_start
        assert first_value == (first_frame - start) % 200
        assert num_before < len(frames)


async def test_the_new_stream_knows_the_portrait_and_the_parameters_of_now() -> None:
    async with room() as r:
        await r.speak(1.0)
        await r.session.update(Params(liveliness=0.25))
        await r.session.set_portrait(portrait("bea"))
        r.engine.become("restarting")
        await r.clock.advance(1.0)
        await r.session.update(Params(look_at_camera=0.5))
        r.engine.become("ready")
        await r.clock.advance(1.0)
        assert r.engine.streams[0].params == [StreamParams(liveliness=0.25)]
        assert len(r.engine.streams[0].portraits) == 1
        assert r.engine.streams[1].request.params == StreamParams(liveliness=0.25, look_at_camera=0.5)
        assert r.engine.streams[1].request.seed == 5
        assert r.control.of("state")[-1]["portrait"] == "bea"


async def test_an_engine_that_refuses_a_new_stream_is_asked_again() -> None:
    async with room() as r:
        await r.speak(1.0)
        r.engine.refusals = [WorkerError("not yet"), WorkerError("not yet")]
        r.engine.become("restarting")
        r.engine.become("ready")
        await r.clock.advance(3.0)
        assert len(r.engine.streams) == 2


async def test_an_engine_that_refuses_for_ever_is_not_asked_for_ever_and_the_viewer_is_told() -> None:
    async with room() as r:
        await r.speak(1.0)
        r.engine.refusals = [WorkerError("this model is broken") for _ in range(1000)]
        r.engine.become("restarting")
        r.engine.become("ready")
        await r.clock.advance(30.0)
        assert len(r.engine.refusals) > 900
        assert r.control.states[-1] == "closed"
        assert [(message["code"], message["message"]) for message in r.control.of("error")] == [
            ("engine_not_ready", "this model is broken")
        ]


async def test_a_session_does_not_wait_for_an_engine_that_has_given_up() -> None:
    async with room() as r:
        await r.speak(2.0)
        r.engine.become("restarting")
        await r.clock.advance(1.0)
        r.engine.become("failed")
        await r.clock.advance(0.1)
        assert r.control.states[-1] == "closed"
        assert [message["message"] for message in r.control.of("error")] == [
            "the engine is failed, but a session needs it to be ready"
        ]


async def test_streams_that_break_before_their_first_frame_are_not_opened_for_ever() -> None:
    async with room() as r:
        await r.speak(1.0)
        for _ in range(30):
            r.engine.streams[-1].crash()
            await r.clock.advance(0.1)
        assert 10 < len(r.engine.streams) < 30
        assert r.control.states[-1] == "closed"
        assert len(r.control.of("error")) == 1


async def test_streams_that_break_now_and_then_are_replaced_for_as_long_as_there_are_frames() -> None:
    async with room() as r:
        for _ in range(30):
            await r.speak(1.0)
            r.engine.streams[-1].crash()
        await r.clock.advance(0.1)
        assert len(r.engine.streams) == 31
        assert r.control.of("error") == []


async def test_an_interrupt_begins_an_epoch_and_mutes_what_was_said_before() -> None:
    async with room() as r:
        await r.speak(3.0)
        await r.session.interrupt()
        assert r.session.epoch == 1
        assert r.control.of("state")[-1]["epoch"] == 1
        await r.clock.advance(0.04)
        assert r.session.state is State.RESTING
        for _ in range(50):
            await r.session.audio.recv()
        await r.speak(0.96)
        heard = [await r.session.audio.recv() for _ in range(48)]
        loud = {frame.pts for frame in heard if frame.to_ndarray().any()}
        assert loud == {frame.pts for frame in heard if frame.pts >= 3.0 * 48_000}


async def test_epochs_go_on_counting_after_a_restart_of_the_engine() -> None:
    async with room() as r:
        await r.speak(1.0)
        await r.session.interrupt()
        r.engine.become("restarting")
        await r.session.interrupt()
        r.engine.become("ready")
        await r.clock.advance(1.0)
        await r.session.interrupt()
        assert r.session.epoch == 3


async def test_a_peer_that_never_connects_is_given_up() -> None:
    clock = VirtualClock()
    r = Room(config=SessionConfig(connect_timeout_s=0.05), engine=FakeEngine(clock), clock=clock)
    await r.session.open()
    await asyncio.wait_for(r.session.run(r.peer), 5)
    assert r.session.state is State.CLOSED
    assert r.engine.num_open == 0
    assert r.peer.num_closes == 1


async def test_a_peer_that_closes_ends_the_session() -> None:
    async with room() as r:
        await r.speak(0.5)
        r.peer.closed.set()
        await r.clock.advance(0.0)
        assert r.control.states[-1] == "closed"


@pytest.mark.parametrize("kind", ["video", "audio"])
async def test_a_track_that_is_sent_no_more_ends_the_session(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with room() as r:
        await r.speak(2.0)
        getattr(r.session, kind).stop()
        await r.clock.advance(0.0)
        assert r.control.states[-1] == "closed"
        assert r.peer.closed.is_set()
    assert "could not be encoded" in caplog.text


async def test_a_peer_that_sends_nothing_at_all_any_more_is_gone() -> None:
    async with room() as r:
        await r.speak(2.0)
        r.peer.is_alive = False
        await r.clock.advance(9.0)
        assert r.session.state is State.LIVE
        await r.clock.advance(3.0)
        assert r.session.state is State.CLOSED


async def test_a_second_control_channel_replaces_the_first() -> None:
    async with room() as r:
        first, second = r.control, Control()
        r.session.attach_control(second)
        assert first.is_closed
        assert second.messages[0]["type"] == "state"
        r.session.detach_control(first)
        await r.speak(2.0)
        assert second.of("ledger")
        assert not first.of("ledger")
        r.control = second


async def test_a_control_channel_that_comes_while_the_session_closes_is_closed_too() -> None:
    async with room() as r:
        late = Control()
        r.peer.on_close = lambda: r.session.attach_control(late)
        r.session.close()
        await r.clock.advance(0.1)
        assert late.states == ["closed"]
        assert late.is_closed
        r.control = late


async def test_a_session_without_a_control_channel_lives_too() -> None:
    async with room() as r:
        r.session.detach_control(r.control)
        await r.speak(2.0)
        assert r.session.state is State.LIVE
        r.session.attach_control(r.control)


async def test_what_is_changed_while_a_new_stream_is_being_opened_reaches_it() -> None:
    async with room() as r:
        await r.speak(1.0)
        r.engine.open_gate.clear()
        r.engine.become("restarting")
        r.engine.become("ready")
        await r.clock.advance(1.0)
        await r.session.set_portrait(portrait("bea"))
        await r.session.update(Params(liveliness=0.25))
        r.engine.open_gate.set()
        await r.clock.advance(1.0)
        assert len(r.engine.streams[1].portraits) == 1
        assert r.engine.streams[1].params == [StreamParams(liveliness=0.25)]
        assert r.control.of("state")[-1]["portrait"] == "bea"


async def test_a_restart_needs_no_upload_that_is_gone_by_now() -> None:
    async with room() as r:
        await r.session.set_portrait(portrait("gone"))
        r.engine.become("restarting")
        r.engine.become("ready")
        await r.clock.advance(3.0)
        assert len(r.engine.streams) == 2
        assert r.control.of("state")[-1]["portrait"] == "gone"


async def test_a_portrait_is_cut_again_for_the_frame_that_the_engine_comes_back_with() -> None:
    async with room() as r:
        r.engine.become("restarting")
        r.engine.resize(height_px=32, width_px=16)
        r.engine.become("ready")
        await r.clock.advance(3.0)
        before, after = (stream.request.portrait for stream in r.engine.streams)
        assert after is not before
        assert r.engine.streams[1].portraits == [], "the new stream begins with it"
        assert r.control.of("error") == []


async def test_where_the_frame_has_changed_and_the_upload_is_gone_the_viewer_is_told_and_the_session_ends() -> None:
    async with room() as r:
        await r.session.set_portrait(portrait("gone"))
        r.engine.become("restarting")
        r.engine.resize(height_px=32, width_px=16)
        r.engine.become("ready")
        await r.clock.advance(3.0)
        assert r.control.states[-1] == "closed"
        assert [(message["code"], message["message"]) for message in r.control.of("error")] == [
            ("not_found", "portrait 'gone' does not exist")
        ]
        assert len(r.engine.streams) == 1


async def test_an_interrupt_that_outlives_its_stream_does_not_silence_the_next_one() -> None:
    async with room() as r:
        await r.speak(1.0)
        await r.session.interrupt()
        r.engine.streams[0].interrupt_gate.clear()
        late = asyncio.create_task(r.session.interrupt())
        await r.clock.advance(0.1)
        r.engine.become("restarting")
        r.engine.become("ready")
        await r.clock.advance(1.0)
        r.engine.streams[0].interrupt_gate.set()
        await late
        await r.speak(3.0)
        assert r.session.state is State.LIVE


async def test_a_connection_that_fails_to_close_does_not_keep_the_place_in_the_engine() -> None:
    clock = VirtualClock()
    r = Room(config=SessionConfig(connect_timeout_s=0.05), engine=FakeEngine(clock), clock=clock)
    r.peer.close_error = RuntimeError("not in this state")
    await r.session.open()
    r.session.attach_control(r.control)
    with pytest.raises(RuntimeError, match="not in this state"):
        await asyncio.wait_for(r.session.run(r.peer), 5)
    assert r.engine.num_open == 0
    assert r.control.is_closed
