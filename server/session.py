"""One viewer: sound in, engine, paced pictures and sound out, and a control channel.

The tasks of a session live in one TaskGroup and all state changes on the loop. An engine that dies takes nothing down:
the session rests, keeps the sound going, and opens a new stream when the engine is back. Media time begins when the
peer is connected, so the face is there and idles before the first word. The engine hears silence during the first
window of each stream, so that there always is a block to rest on.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NoReturn, Protocol

from pipeline.api import EngineInfo, FrameBatch, Stream, StreamParams, StreamRequest, WindowLedger
from pipeline.errors import AvatarError, StreamLimitReached, WorkerError
from pipeline.geometry import FPS, FRAMES_PER_BLOCK, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from server.clock import Clock
from server.config import SessionConfig
from server.control import Params, ledger_message, problem_message, state_message, stats_message
from server.engine import WatchedEngine
from server.errors import EngineNotReady, reply_for
from server.events import wait_for_one
from server.ledger import report
from server.lifecycle import Event, State, next_state
from server.logs import SessionLog
from server.metrics import Metrics
from server.microphone import PACKET_SAMPLES, Chunk, Microphone
from server.onset import Onset
from server.pacing import TICKS_PER_FRAME, Picture, Schedule
from server.playout import Playout
from server.portraits import PortraitCut
from server.tally import Tally
from server.tracks import AudioTrack, VideoTrack

__all__ = ["ControlSink", "PeerLink", "Session"]

_LOGGER = logging.getLogger(__name__)
_REOPEN_DELAY_S = 0.5
_MAX_FAILURES = 20
_PASSING = (WorkerError, StreamLimitReached, EngineNotReady)
_STATS_PERIOD_S = 1.0


class PeerLink(Protocol):
    """The connection, as far as a session cares."""

    connected: asyncio.Event
    closed: asyncio.Event

    async def num_received(self) -> int:
        """Packets received so far."""

    async def aclose(self) -> None:
        """Close it; a second call does nothing."""


class ControlSink(Protocol):
    """Where messages for the viewer go."""

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; never waits."""

    def close(self) -> None:
        """No more messages will come."""


class _Ended(Exception):
    """Ends the TaskGroup of a session; the reason is for the log."""


class Session:
    """One viewer from the offer to the end. Made by `Sessions`.

    Args:
        session_id: Its name on the wire.
        engine: Where streams come from.
        config: Deadlines and limits.
        clock: The clock that media time follows.
        metrics: Where it is counted.
        playout_delay_s: Constant for the whole session.
        seed: Seed of its streams.
        params: First parameters.
        portrait: First portrait; None when there is none at all.
        shows_portrait: Whether the engine shows it, so that it can stand in before the first frame.
        load_portrait: Cuts a portrait by id for the engine as it is now.
    """

    def __init__(
        self,
        *,
        session_id: str,
        engine: WatchedEngine,
        config: SessionConfig,
        clock: Clock,
        metrics: Metrics,
        playout_delay_s: float,
        seed: int,
        params: StreamParams,
        portrait: PortraitCut | None,
        shows_portrait: bool,
        load_portrait: Callable[[str], Awaitable[PortraitCut]],
    ) -> None:
        self.id = session_id
        self.playout_delay_s = playout_delay_s
        self.state = State.CONNECTING
        self.epoch = 0
        self.video = VideoTrack(lambda: self.frames_dropped(1, "encoder"))
        self.audio = AudioTrack(lambda: metrics.dropped.labels("sound").inc())
        self.microphone = Microphone(
            clock,
            jitter_s=config.jitter_s,
            tolerance_s=config.drift_tolerance_s,
            quiet_dbfs=config.quiet_dbfs,
        )
        self.tally = Tally(metrics)
        self._engine = engine
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._seed = seed
        self._params = params
        self._portrait = portrait
        self._shows_portrait = shows_portrait
        self._load_portrait = load_portrait
        self._log = SessionLog(_LOGGER, session_id)
        self._stream: Stream | None = None
        self._stream_start = 0
        self._base_epoch = 0
        self._base_window = 0
        self._last_window = -1
        self._num_failures = 0
        self._onset = Onset(config.quiet_dbfs)
        self._playout: Playout | None = None
        self._control: ControlSink | None = None
        self._closing = asyncio.Event()
        self._engine_changed = asyncio.Event()

    async def open(self) -> None:
        """Open the first stream.

        Raises:
            AvatarError: As `Engine.open`.
        """
        self._stream = await self._engine.open(self._request())

    async def run(self, peer: PeerLink) -> None:
        """Live until the peer is gone or `close` is called. Cancellation ends the session as well.

        Args:
            peer: The connection; it is closed at the end.
        """
        unwatch = self._engine.watch(self._note_engine)
        try:
            await self._wait_connected(peer)
            self._start_media()
            async with asyncio.TaskGroup() as group:
                for name, task in (
                    ("watch", self._watch(peer)),
                    ("feed", self._feed()),
                    ("engine", self._run_engine()),
                    ("playout", self._require_playout().run(self._clock)),
                    ("stats", self._report_stats(peer)),
                ):
                    group.create_task(task, name=f"{self.id}-{name}")
        except* _Ended as ended:
            self._log.info("session ends: %s", ended.exceptions[0])
        finally:
            unwatch()
            await self._clean_up(peer)

    @property
    def portrait_id(self) -> str | None:
        """Id of the portrait that is shown; None when there is none at all."""
        return None if self._portrait is None else self._portrait.id

    def close(self) -> None:
        """End the session soon; a second call does nothing."""
        self._closing.set()

    def attach_control(self, control: ControlSink) -> None:
        """Send messages here from now on, beginning with the state; an earlier channel is closed."""
        self._close_control()
        self._control = control
        self._send_state()

    def detach_control(self, control: ControlSink) -> None:
        """Stop sending there; does nothing when another channel took its place."""
        if self._control is control:
            self._control = None

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()

    async def interrupt(self) -> None:
        """Drop what is under way: sound not yet played and frames not yet shown."""
        stream, epoch = self._stream, 0
        if stream is not None:
            try:
                told = await stream.interrupt()
                # Another stream may have taken over meanwhile: it counts from 0.
                epoch = told if self._stream is stream else 0
            except WorkerError as exc:
                # The stream is over, and with it everything that was under way in the engine.
                self._log.debug("nothing to interrupt: %s", exc)
        self.epoch += 1
        self._base_epoch = self.epoch - epoch
        if self._playout is not None:
            self._playout.begin_epoch(epoch, now_tick=self.microphone.position() // PACKET_SAMPLES)
        self._send_state()

    async def set_portrait(self, portrait: PortraitCut) -> None:
        """Show another portrait from the next block edge on."""
        self._portrait = portrait
        if self._stream is not None:
            await self._tell(self._stream.set_portrait(portrait.rgb))
        if self._playout is not None and self._shows_portrait:
            # The window that is being captured is the last that the old portrait can reach.
            captured = self.microphone.position() // (PACKET_SAMPLES * TICKS_PER_FRAME)
            self._playout.change_still(portrait.still, first_frame=captured + FRAMES_PER_BLOCK)
        self._send_state()

    async def update(self, params: Params) -> None:
        """Change parameters from the next block edge on."""
        self._params = params.apply_to(self._params)
        if self._stream is not None:
            await self._tell(self._stream.update(self._params))

    async def _tell(self, telling: Awaitable[None]) -> None:
        """Tell the stream of a change; one that is over needs none, because the next one begins with it."""
        try:
            await telling
        except WorkerError as exc:
            self._log.debug("the stream is over: %s", exc)

    # What the playout reports.

    def picture_left(self, picture: Picture, frame: int) -> None:
        """Follow the pictures: fresh ones make the session live, rest frames make it rest."""
        is_before_first = self.state is State.WARMING and picture is not Picture.FRESH
        self.tally.picture("still" if is_before_first else picture.value)
        if picture is Picture.REST and not is_before_first:
            self._enter(Event.REST_FRAME)
        elif picture is Picture.FRESH:
            self._enter(Event.FRESH_FRAME)
            ttff_s = self._onset.show(frame, self._clock.now_s())
            if ttff_s is not None:
                self.tally.first_frame(ttff_s)

    def underrun(self) -> None:
        """Count an underrun."""
        self.tally.underrun()

    def frames_dropped(self, num_frames: int, reason: str) -> None:
        """Count frames that nobody sees."""
        self.tally.dropped(num_frames, reason)
        if reason == "late" and self.tally.counters.dropped_frames >= FRAMES_PER_BLOCK:
            self._enter(Event.LATE_WINDOW)

    def window_done(self, ledger: WindowLedger, first_frame: int, paced_s: float, lead_s: float) -> None:
        """Publish the ledger of a window."""
        numbered = replace(ledger, window=self._base_window + ledger.window, epoch=self._base_epoch + ledger.epoch)
        window = report(
            numbered,
            paced_s=paced_s,
            lead_s=lead_s,
            level_dbfs=self.microphone.window_level_dbfs(first_frame),
            budget_s=self._config.budget_s,
        )
        if window is None:
            return
        self._last_window = window.window
        self.tally.window(window)
        if self.video.sent_s is not None and self.audio.sent_s is not None:
            self._metrics.drift.observe(self.video.sent_s - self.audio.sent_s)
        self._send(ledger_message(window))

    # The tasks.

    async def _wait_connected(self, peer: PeerLink) -> None:
        """Return once the peer is connected; raise _Ended when it will not be."""
        await wait_for_one(peer.connected, peer.closed, self._closing, timeout_s=self._config.connect_timeout_s)
        if not peer.connected.is_set() or self._closing.is_set():
            raise _Ended("the peer never connected")

    def _start_media(self) -> None:
        anchor_s = self._clock.now_s()
        self._playout = Playout(
            schedule=Schedule(anchor_s=anchor_s, playout_delay_s=self.playout_delay_s),
            video=self.video,
            audio=self.audio,
            sound=self.microphone.sound,
            packet_samples=PACKET_SAMPLES,
            events=self,
            still=self._portrait.still if self._portrait is not None and self._shows_portrait else None,
        )
        self.microphone.start(anchor_s)
        self._log.info("session connected, playout delay %.0f ms", self.playout_delay_s * 1000.0)
        self._enter(Event.CONNECTED)

    def _require_playout(self) -> Playout:
        assert self._playout is not None
        return self._playout

    async def _watch(self, peer: PeerLink) -> None:
        """End the group when the session is closed, the peer is gone, or a track is sent no more."""
        reasons = {
            self._closing: "it was closed",
            peer.closed: "the peer is gone",
            self.video.stopped: "the peer left, or its pictures could not be encoded",
            self.audio.stopped: "the peer left, or its sound could not be encoded",
        }
        await wait_for_one(*reasons)
        raise _Ended(next(reason for event, reason in reasons.items() if event.is_set()))

    async def _feed(self) -> None:
        """Give the engine the sound that has become final."""
        while True:
            await self.microphone.wait()
            chunk = self.microphone.take()
            if chunk is None:
                continue
            self._onset.hear(chunk, self._clock.now_s())
            if self._stream is not None:
                await self._push(self._stream, chunk)

    async def _push(self, stream: Stream, chunk: Chunk) -> None:
        pts = chunk.position - self._stream_start * SAMPLES_PER_FRAME
        pcm = chunk.pcm[max(0, -pts) :]
        pts = max(0, pts)
        if not len(pcm):
            return
        if pts < WINDOW_SAMPLES:
            pcm = pcm.copy()
            pcm[: WINDOW_SAMPLES - pts] = 0
        try:
            await stream.push_audio(pcm, pts)
        except AvatarError as exc:
            # The reader of the stream learns of it too, and deals with it.
            self._log.debug("the engine did not take sound: %s", exc)

    async def _run_engine(self) -> None:
        """Take frames from the engine, over as many streams as its failures make necessary."""
        while True:
            stream = self._stream or await self._reopen()
            try:
                async for batch in stream:
                    self._take(batch)
            except AvatarError as exc:
                self._log.warning("the stream of the engine broke: %s", exc)
                self._note_failure(exc)
            finally:
                self._stream = None
                self.tally.late_windows(stream.counters)
                await stream.aclose()
            self._log.info("waiting for the engine")

    def _take(self, batch: FrameBatch) -> None:
        self._num_failures = 0
        start = self._stream_start + batch.window * FRAMES_PER_BLOCK
        # The mouth may open a little ahead of the sound, so the silence has to last a little longer than the block.
        is_quiet = batch.ledger is not None and (
            batch.window == 0 or self.microphone.was_quiet(start, FRAMES_PER_BLOCK + 3)
        )
        self._require_playout().add(
            batch, stream_start=self._stream_start, is_quiet=is_quiet, now_s=self._clock.now_s()
        )

    async def _reopen(self) -> Stream:
        """Wait for the engine and open a new stream."""
        while True:
            self._engine_changed.clear()
            info = self._engine.info
            if info is None:
                if self._engine.state == "failed":
                    self._give_up(EngineNotReady("failed"))
                await self._engine_changed.wait()
                continue
            try:
                await self._fit_portrait(info)
                request = self._request()
                stream = await self._engine.open(request)
            except AvatarError as exc:
                self._log.warning("the engine opened no stream: %s", exc)
                self._note_failure(exc)
                await self._clock.wait_until_s(self._engine_changed, self._clock.now_s() + _REOPEN_DELAY_S)
                continue
            self._begin_stream(stream)
            await self._catch_up(stream, request)
            return stream

    def _note_failure(self, exc: AvatarError) -> None:
        """Count a failure in a row; where another stream would not help any more, say so and end the session."""
        self._num_failures += 1
        if self._num_failures == _MAX_FAILURES or not isinstance(exc, _PASSING):
            self._give_up(exc)

    def _give_up(self, exc: AvatarError) -> NoReturn:
        self._send(problem_message(reply_for(exc, retry_after_s=math.ceil(_REOPEN_DELAY_S))))
        raise _Ended("the engine makes nothing for it any more") from exc

    async def _fit_portrait(self, info: EngineInfo) -> None:
        """Cut the portrait again where the engine came back with another frame size; an upload may be gone by now."""
        portrait = self._portrait
        if portrait is None or portrait.rgb.shape[:2] == (info.height_px, info.width_px):
            return
        cut = await self._load_portrait(portrait.id)
        if self._portrait is portrait:
            self._portrait = cut

    async def _catch_up(self, stream: Stream, request: StreamRequest) -> None:
        """Tell a new stream what the viewer changed while it was being opened."""
        if self._portrait is not None and self._portrait.rgb is not request.portrait:
            await self._tell(stream.set_portrait(self._portrait.rgb))
        if self._params != request.params:
            await self._tell(stream.update(self._params))

    def _begin_stream(self, stream: Stream) -> None:
        """Sample 0 of the new stream is the next frame edge of media time."""
        self._stream_start = math.ceil(self.microphone.taken / SAMPLES_PER_FRAME)
        self._base_epoch = self.epoch
        self._base_window = self._last_window + 1
        self._require_playout().begin_stream()
        self.tally.begin_stream()
        self._stream = stream
        self._log.info("a new stream begins at %.2f s of media time", self._stream_start / FPS)

    async def _report_stats(self, peer: PeerLink) -> None:
        """Send the figures once per second; end the group when the peer sends nothing any more."""
        next_s = self._clock.now_s()
        num_received, heard_s = 0, next_s
        while True:
            next_s += _STATS_PERIOD_S
            await self._clock.sleep_until_s(next_s)
            if self._stream is not None:
                self.tally.late_windows(self._stream.counters)
            tally, heard = self.tally, self.microphone
            self._send(stats_message(tally.history, tally.counters, gap_ms=heard.gap_ms, silence_ms=heard.silence_ms))
            num_before, num_received = num_received, await peer.num_received()
            if num_received != num_before:
                heard_s = self._clock.now_s()
            elif self._clock.now_s() - heard_s > self._config.peer_silence_s:
                raise _Ended(f"the peer has been silent for {self._config.peer_silence_s:g} s")

    async def _clean_up(self, peer: PeerLink) -> None:
        """Give everything back, in any state, each step with a deadline."""
        self._enter(Event.CLOSED)
        self.video.stop()
        self.audio.stop()
        stream, self._stream = self._stream, None
        # Whatever one step raises, the others are taken; then `Sessions` logs it.
        async with AsyncExitStack() as steps:
            # Of whichever channel is there in the end: one may still come while the connection closes.
            steps.callback(self._close_control)
            steps.push_async_callback(self._close_in_time, peer.aclose)
            if stream is not None:
                steps.push_async_callback(self._close_in_time, stream.aclose)

    async def _close_in_time(self, close: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self._config.close_timeout_s):
                await close()
        except (AvatarError, TimeoutError, ConnectionError) as exc:
            self._log.warning("could not close in order: %s", str(exc) or "it took too long")

    def _request(self) -> StreamRequest:
        portrait = None if self._portrait is None else self._portrait.rgb
        return StreamRequest(portrait=portrait, seed=self._seed, params=self._params)

    def _note_engine(self) -> None:
        self._engine_changed.set()
        self._send_state()

    def _enter(self, event: Event) -> None:
        state = next_state(self.state, event)
        if state is not self.state:
            self.state = state
            self._log.info("session is %s", state.value)
            self._send_state()

    def _send_state(self) -> None:
        self._send(
            state_message(
                session_id=self.id,
                state=self.state,
                epoch=self.epoch,
                portrait=self.portrait_id,
                playout_delay_ms=round(self.playout_delay_s * 1000.0),
                engine=self._engine.state,
            )
        )

    def _send(self, message: dict[str, Any]) -> None:
        if self._control is not None:
            self._control.send(message)
