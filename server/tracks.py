"""The sending edge to aiortc: two tracks that wait for what the pacing releases, and encoders that hold their bitrate.

W3C camelCase stops here and in peer.py. Everything runs on the loop, except `encode`, which aiortc calls on the loop's
default executor.
"""

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Generic, TypeVar

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCRtpSender
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from pipeline.geometry import FPS
from server.sound import SOUND_RATE_HZ

__all__ = ["AudioTrack", "HandOff", "SteadyBitrate", "VideoTrack", "install_encoder"]

T = TypeVar("T")
F = TypeVar("F", av.VideoFrame, av.AudioFrame)

VIDEO_CLOCK_HZ = 90_000
PICTURES_WAITING = 2
PACKETS_WAITING = 50
# aiortc keeps the encoder of a sender, and libvpx's buffer length, under these private names; a test watches them.
_SENDER_ENCODER = "_RTCRtpSender__encoder"
_VP8_BUFFER_BPS = "_Vp8Encoder__target_bitrate"


class HandOff(Generic[T]):
    """A bounded queue between the pacing and one sender. When it is full the oldest item goes and is counted.

    Args:
        capacity: How many items can wait.
        on_drop: Called for every item that goes unsent.
    """

    def __init__(self, capacity: int, on_drop: Callable[[], None]) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._on_drop = on_drop
        self._has_items = asyncio.Event()
        self._is_closed = False

    def put(self, item: T) -> None:
        """Leave an item; after `close` it is forgotten."""
        if self._is_closed:
            return
        if len(self._items) == self._capacity:
            self._items.popleft()
            self._on_drop()
        self._items.append(item)
        self._has_items.set()

    async def get(self) -> T | None:
        """Wait for the oldest item; None once the hand-off is closed. Cancellation loses nothing."""
        while not self._items and not self._is_closed:
            self._has_items.clear()
            await self._has_items.wait()
        return None if self._is_closed else self._items.popleft()

    def close(self) -> None:
        """Drop what waits and let every `get` return; a second call does nothing."""
        self._is_closed = True
        self._items.clear()
        self._has_items.set()


class _PacedTrack(MediaStreamTrack, Generic[F]):
    """Waits for what the pacing releases and sends it with the time stamp of its media time.

    Args:
        capacity: How many items can wait for the encoder.
        rate_hz: Units of the time stamps per second.
        on_drop: Called when the encoder was too slow for an item.
    """

    def __init__(self, capacity: int, rate_hz: int, on_drop: Callable[[], None]) -> None:
        super().__init__()
        self._items: HandOff[tuple[int, NDArray[Any]]] = HandOff(capacity, on_drop)
        self._rate_hz = rate_hz
        self.sent_s: float | None = None
        """Media time of what the sender took last."""
        self.stopped = asyncio.Event()
        """Set once nothing of it is sent any more: at the end, or because its encoder failed."""

    async def recv(self) -> F:
        """Wait for the next item; raises MediaStreamError once the track is stopped."""
        item = await self._items.get()
        if item is None:
            raise MediaStreamError
        pts, data = item
        self.sent_s = pts / self._rate_hz
        frame = self._frame(np.ascontiguousarray(data))
        frame.pts = pts
        frame.time_base = Fraction(1, self._rate_hz)
        return frame

    def stop(self) -> None:
        """End the track; a second call does nothing."""
        super().stop()
        self._items.close()
        self.stopped.set()

    @abstractmethod
    def _frame(self, data: NDArray[Any]) -> F: ...


class VideoTrack(_PacedTrack[av.VideoFrame]):
    """Sends pictures.

    Args:
        on_drop: Called when the encoder was too slow for a picture.
    """

    kind = "video"

    def __init__(self, on_drop: Callable[[], None]) -> None:
        super().__init__(PICTURES_WAITING, VIDEO_CLOCK_HZ, on_drop)

    def put(self, frame: int, picture: NDArray[np.uint8]) -> None:
        """Hand over a picture.

        Args:
            frame: Its index in media time.
            picture: I420, (height_px * 3 // 2, width_px); not changed afterwards.
        """
        self._items.put((frame * (VIDEO_CLOCK_HZ // FPS), picture))

    def _frame(self, data: NDArray[Any]) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(data, format="yuv420p")


class AudioTrack(_PacedTrack[av.AudioFrame]):
    """Sends sound.

    Args:
        on_drop: Called when the encoder was too slow for a packet.
    """

    kind = "audio"

    def __init__(self, on_drop: Callable[[], None]) -> None:
        super().__init__(PACKETS_WAITING, SOUND_RATE_HZ, on_drop)

    def put(self, position: int, samples: NDArray[np.int16]) -> None:
        """Hand over 20 ms of sound.

        Args:
            position: Media position of its first sample.
            samples: 48 kHz, (960, 2).
        """
        self._items.put((position, samples))

    def _frame(self, data: NDArray[Any]) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(data.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = SOUND_RATE_HZ
        return frame


class SteadyBitrate:
    """Turns the receiver's restless estimate into few, clear steps: every step costs a key frame.

    The steps are the highest bitrate divided by powers of 1.5. It goes down as soon as the estimate falls a tenth below
    the current step, and up when the estimate clears the next step by a tenth.

    Args:
        min_bps: Lowest bitrate.
        max_bps: Highest bitrate, and the first.
    """

    def __init__(self, min_bps: int, max_bps: int) -> None:
        self._steps = [max_bps]
        while self._steps[-1] / 1.5 > min_bps:
            self._steps.append(int(self._steps[-1] / 1.5))
        if self._steps[-1] > min_bps:
            self._steps.append(min_bps)
        self.bps = max_bps
        """The current step."""

    def update(self, estimate_bps: int) -> None:
        """Take note of a new estimate of what the network carries."""
        index = self._steps.index(self.bps)
        if estimate_bps < 0.9 * self.bps:
            self.bps = next((step for step in self._steps if step <= estimate_bps), self._steps[-1])
        elif index > 0 and estimate_bps >= 1.1 * self._steps[index - 1]:
            self.bps = self._steps[index - 1]


class _SteadyVp8Encoder(Vp8Encoder):
    def __init__(self, bitrate: SteadyBitrate) -> None:
        self._bitrate = bitrate
        super().__init__()
        setattr(self, _VP8_BUFFER_BPS, bitrate.bps)

    @property
    def target_bitrate(self) -> int:
        return self._bitrate.bps

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._bitrate.update(bitrate)
        setattr(self, _VP8_BUFFER_BPS, self._bitrate.bps)


class _SteadyH264Encoder(H264Encoder):
    def __init__(self, bitrate: SteadyBitrate) -> None:
        self._bitrate = bitrate
        super().__init__()

    @property
    def target_bitrate(self) -> int:
        return self._bitrate.bps

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._bitrate.update(bitrate)


def install_encoder(sender: RTCRtpSender, mime_type: str, *, min_bps: int, max_bps: int) -> None:
    """Give a video sender its encoder before it makes its own, whose bitrate bounds are fixed for the process.

    Args:
        sender: A sender that has not sent yet.
        mime_type: The negotiated codec, video/VP8 or video/H264.
        min_bps: Lowest bitrate.
        max_bps: Highest bitrate, and the first.
    """
    bitrate = SteadyBitrate(min_bps, max_bps)
    is_vp8 = mime_type.lower() == "video/vp8"
    setattr(sender, _SENDER_ENCODER, _SteadyVp8Encoder(bitrate) if is_vp8 else _SteadyH264Encoder(bitrate))
