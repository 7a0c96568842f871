"""The worker's main loop: take messages, make windows, one after another, in one thread.

Between two batches of frames the loop takes the messages that have come, so an interrupt or a shutdown waits for one
batch at most. A stream whose prompt has to be read first is opened when that is done; the others go on meanwhile.
Messages to a stream that is not there are dropped: it has just failed or been closed, and the server hears of it on the
way.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.api import EngineInfo, WindowLedger
from pipeline.config import EngineConfig
from pipeline.geometry import FRAMES_PER_BLOCK, SAMPLE_RATE_HZ
from pipeline.host import messages as m
from pipeline.host.ring import FrameRing, SlotCredit
from pipeline.worker import late
from pipeline.worker.link import WorkerLink
from pipeline.worker.model import AvatarModel, StageMarks, WholeListener
from pipeline.worker.streams import WorkerStream, pick_stream
from pipeline.worker.windows import AudioWindow, WindowAssembler

__all__ = ["WorkerLoop"]

_logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Progress:
    """A window under way."""

    stream: WorkerStream
    window: AudioWindow
    epoch: int
    admitted_s: float
    marks: StageMarks
    num_frames: int = 0


class WorkerLoop:
    """Serves streams until it is told to shut down.

    Args:
        link: The way to the server.
        model: The model, warm.
        info: What the server was told about it.
        config: The engine's configuration.
        ring_fd: File of the frame ring.
        now_s: Monotonic clock.
    """

    def __init__(
        self,
        link: WorkerLink,
        *,
        model: AvatarModel,
        info: EngineInfo,
        config: EngineConfig,
        ring_fd: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._model = model
        self._info = info
        self._config = config
        self._ring_fd = ring_fd
        self._now_s = now_s
        self._ring: FrameRing | None = None
        self._slots_per_stream = 0
        self._streams: dict[int, WorkerStream] = {}
        self._opening: dict[int, m.OpenStream] = {}
        self._is_shut_down = False

    def run(self) -> None:
        """Work until the shutdown message.

        Raises:
            ParentLost: The server is gone.
        """
        try:
            while not self._is_shut_down:
                self._link.beat(self._config.heartbeat_s)
                is_busy = pick_stream(self._streams.values()) is not None
                self._receive(timeout_s=0 if is_busy else self._config.heartbeat_s / 2)
                for message in list(self._opening.values()):
                    self._open_if_ready(message)
                for stream in list(self._streams.values()):
                    self._drop_late_windows(stream)
                for stream in self._streams.values():
                    self._tell_if_done(stream)
                stream_to_run = pick_stream(self._streams.values())
                if stream_to_run is not None and not self._is_shut_down:
                    self._make_window(stream_to_run)
        finally:
            for stream in list(self._streams.values()):
                self._forget(stream)
            if self._ring is not None:
                self._ring.close()

    def _receive(self, *, timeout_s: float) -> None:
        for message in self._link.poll(timeout_s):
            self._handle(message)

    def _handle(self, message: m.Message) -> None:
        match message:
            case m.AttachRing():
                self._attach_ring(message)
            case m.OpenStream():
                self._open_if_ready(message)
            case m.Shutdown():
                self._is_shut_down = True
            case m.CloseStream() if message.stream in self._opening:
                del self._opening[message.stream]
            case _:
                stream = self._streams.get(getattr(message, "stream", -1))
                if stream is not None:
                    self._handle_for_stream(stream, message)

    def _handle_for_stream(self, stream: WorkerStream, message: m.Message) -> None:
        match message:
            case m.PushAudio():
                pcm = np.frombuffer(message.payload, np.int16)
                stream.windows.push(pcm, pts=message.pts, captured_s=message.captured_s)
            case m.EndAudio():
                stream.windows.end()
            case m.Interrupt():
                stream.interrupt(message.epoch)
            case m.UpdateParams():
                stream.pending_params = message.params
            case m.SetPortrait():
                stream.pending_portrait = self._read_portrait(message.payload)
            case m.ReleaseSlots():
                stream.credit.release(message.num_slots)
            case m.CloseStream():
                self._forget(stream)

    def _attach_ring(self, message: m.AttachRing) -> None:
        frame_shape = (self._info.height_px * 3 // 2, self._info.width_px)
        assert message.slot_bytes == frame_shape[0] * frame_shape[1], message
        self._slots_per_stream = message.num_slots // self._info.max_streams
        self._ring = FrameRing(self._ring_fd, num_slots=message.num_slots, frame_shape=frame_shape, is_owner=False)

    def _open_if_ready(self, message: m.OpenStream) -> None:
        """Open a stream, or keep it aside while the model reads its prompt; the server asks for no more than it may."""
        if self._model.is_ready(prompt=message.prompt, params=message.params):
            self._opening.pop(message.stream, None)
            self._open_stream(message)
        else:
            self._opening[message.stream] = message

    def _open_stream(self, message: m.OpenStream) -> None:
        num_portrait_bytes = len(message.payload) - message.num_sound_bytes - message.num_mask_bytes
        portrait, whole = message.payload[:num_portrait_bytes], message.payload[num_portrait_bytes:]
        model_stream = None
        try:
            model_stream = self._model.open_stream(
                portrait=self._read_portrait(portrait) if message.has_portrait else None,
                prompt=message.prompt,
                seed=message.seed,
                params=message.params,
            )
            if message.num_sound_bytes:
                assert isinstance(model_stream, WholeListener), "the server was told that it hears live only"
                sounds = np.frombuffer(whole[: message.num_sound_bytes], np.int16)
                masks = np.frombuffer(whole[message.num_sound_bytes :], np.bool_)
                model_stream.hear_whole(
                    sounds.reshape(message.num_voices, -1),
                    masks.reshape(message.num_voices, -1) if message.num_mask_bytes else None,
                )
        except Exception as exc:  # noqa: BLE001 - a supervised edge: one stream's failure is told, the others go on
            if model_stream is not None:
                model_stream.close()
            self._tell_failed(message.stream, exc)
            return
        self._streams[message.stream] = WorkerStream(
            message.stream,
            model_stream=model_stream,
            windows=WindowAssembler(
                right_context_samples=self._model.right_context_samples,
                capacity_samples=int(self._config.max_ahead_s * SAMPLE_RATE_HZ),
            ),
            credit=SlotCredit(
                first_slot=message.place * self._slots_per_stream,
                num_slots=self._slots_per_stream,
            ),
            num_steps=self._model.num_steps,
            is_live=message.live,
        )
        self._link.send(m.StreamOpened(stream=message.stream))

    def _drop_late_windows(self, stream: WorkerStream) -> None:
        num_complete = stream.windows.num_complete
        if not stream.is_live or num_complete == 0:
            return
        lateness_s = self._now_s() - stream.windows.oldest_complete_s()
        num_windows = late.num_windows_to_skip(lateness_s=lateness_s, num_complete=num_complete)
        if num_windows == 0:
            return
        first_window = stream.windows.next_window
        try:
            for _ in range(num_windows):
                stream.skip_window()
        except Exception as exc:  # noqa: BLE001 - a supervised edge, as where windows are made
            self._fail(stream, exc)
            return
        self._link.send(m.WindowsSkipped(stream=stream.number, first_window=first_window, num_windows=num_windows))

    def _tell_if_done(self, stream: WorkerStream) -> None:
        if stream.windows.is_drained and not stream.is_done_told:
            stream.is_done_told = True
            self._link.send(m.AudioDone(stream=stream.number))

    def _make_window(self, stream: WorkerStream) -> None:
        window = stream.windows.take()
        progress = _Progress(
            stream=stream,
            window=window,
            epoch=stream.epoch,
            admitted_s=self._now_s(),
            marks=StageMarks(
                window=window.index, now_s=self._now_s, on_stage=lambda: self._link.beat(self._config.heartbeat_s)
            ),
        )
        batches = _run_model(progress)
        while (batch := self._next_batch(batches, progress)) is not None:
            self._hand_out(batch, progress)
            self._link.beat(self._config.heartbeat_s)
            self._receive(timeout_s=0)
            if self._is_shut_down or stream.is_closed or stream.epoch != progress.epoch:
                batches.close()
                return
        if stream.is_live and not stream.is_closed:
            self._note_load(progress)

    def _next_batch(
        self, batches: Generator[NDArray[np.uint8], None, None], progress: _Progress
    ) -> NDArray[np.uint8] | None:
        """Let the model make the next frames; None at the end of the window or of the stream."""
        try:
            return next(batches, None)
        except Exception as exc:  # noqa: BLE001 - a supervised edge: what a model raises ends its stream and no other
            self._fail(progress.stream, exc)
            return None

    def _hand_out(self, batch: NDArray[np.uint8], progress: _Progress) -> None:
        assert self._ring is not None, "frames before the ring"
        first_frame = progress.window.index * FRAMES_PER_BLOCK + progress.num_frames
        slots = progress.stream.credit.take(len(batch))
        for slot, frame in zip(slots, batch, strict=True):
            self._ring.write(slot, frame)
        progress.num_frames += len(batch)
        is_last = progress.num_frames == FRAMES_PER_BLOCK
        self._link.send(
            m.FramesMade(
                stream=progress.stream.number,
                window=progress.window.index,
                epoch=progress.epoch,
                first_frame=first_frame,
                slots=slots,
                ledger=self._ledger(progress) if is_last else None,
            )
        )

    def _ledger(self, progress: _Progress) -> WindowLedger:
        return WindowLedger(
            window=progress.window.index,
            epoch=progress.epoch,
            captured_s=progress.window.captured_s,
            admitted_s=progress.admitted_s,
            features_s=progress.marks.features_s,
            steps_s=tuple(progress.marks.steps_s),
            decoded_s=progress.marks.decoded_s,
            copied_s=self._now_s(),
        )

    def _note_load(self, progress: _Progress) -> None:
        stream, marks = progress.stream, progress.marks
        steps_from_s = progress.admitted_s if marks.features_s is None else marks.features_s
        step_s = (marks.steps_s[-1] - steps_from_s) / len(marks.steps_s) if marks.steps_s else 0.0
        load = late.Load(
            window_s=self._now_s() - progress.admitted_s,
            step_s=step_s,
            num_live_streams=sum(other.is_live for other in self._streams.values()),
        )
        before = stream.late_state.max_steps
        stream.late_state = late.after_window(
            stream.late_state,
            lateness_s=progress.admitted_s - progress.window.complete_s,
            load=load,
            num_steps=stream.num_steps,
        )
        if stream.late_state.max_steps != before:
            _logger.info(
                "stream %d goes from %d to %d steps: a window took %.0f ms with %d live streams",
                stream.number,
                before,
                stream.late_state.max_steps,
                load.window_s * 1000,
                load.num_live_streams,
            )

    def _tell_failed(self, number: int, exc: Exception) -> None:
        trace = "".join(traceback.format_exception(exc))
        self._link.send(m.StreamFailed(stream=number, error=type(exc).__name__, text=str(exc), traceback=trace))

    def _fail(self, stream: WorkerStream, exc: Exception) -> None:
        self._tell_failed(stream.number, exc)
        self._forget(stream)

    def _forget(self, stream: WorkerStream) -> None:
        stream.is_closed = True
        del self._streams[stream.number]
        stream.model_stream.close()

    def _read_portrait(self, payload: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(payload, np.uint8).reshape(self._info.height_px, self._info.width_px, 3)


def _run_model(progress: _Progress) -> Generator[NDArray[np.uint8], None, None]:
    """Make one window.

    Args:
        progress: The window.

    Yields:
        The model's batches, checked.

    Raises:
        RuntimeError: The model made more or fewer frames than a window has.
    """
    progress.stream.cross_block_edge()
    num_frames = 0
    for batch in progress.stream.model_stream.generate(progress.window.pcm, progress.marks, progress.stream.max_steps):
        num_frames += len(batch)
        if num_frames > FRAMES_PER_BLOCK:
            break
        yield batch
    if num_frames != FRAMES_PER_BLOCK:
        raise RuntimeError(
            f"the model made {num_frames} frames of window {progress.window.index}, but a window has {FRAMES_PER_BLOCK}"
        )
