"""A viewer without a screen: sends a sound file as its microphone, receives the avatar, and says how well it went.

    python -m tools.loopback --url http://127.0.0.1:8080 --seconds 120 --audio speech.wav [--json]

Against the pattern engine it also measures the skew of sound and picture: the level bar in every received frame is
laid over the received sound, both placed in time by the sender reports of their RTP streams, as a browser does it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import RtcpSrPacket, RtpPacket
from numpy.typing import NDArray
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from pipeline.errors import AvatarError
from pipeline.geometry import FPS
from pipeline.worker.pattern import read_frame_index, read_level
from server.ledger import percentile
from server.peer import OpusIntake

__all__ = ["Report", "SessionLost", "Viewer", "main", "measure", "read_sound", "skew_ms"]

RATE_HZ = 48_000
PACKET_SAMPLES = 960
VIDEO_CLOCK_HZ = 90_000
SETTLED_S = 5.0
# aiortc's private names; tests/server watches them.
_BUFFER = "_RTCRtpReceiver__jitter_buffer"


class SessionLost(AvatarError):
    """A session ended before its viewer wanted it to.

    Args:
        after_s: Seconds since the offer.
    """

    def __init__(self, after_s: float) -> None:
        super().__init__(after_s)
        self.after_s = after_s

    def __str__(self) -> str:
        return f"the session was lost after {self.after_s:.1f} s"


class MicrophoneTrack(MediaStreamTrack):
    """Sends a sound over and over, in real time.

    Args:
        samples: 48 kHz stereo, (num_samples, 2).
    """

    kind = "audio"

    def __init__(self, samples: NDArray[np.int16]) -> None:
        super().__init__()
        self._samples = samples
        self._num_sent = 0
        self._start_s: float | None = None

    async def recv(self) -> av.AudioFrame:
        """Wait until the next 20 ms are due."""
        if self._start_s is None:
            self._start_s = time.monotonic()
        await asyncio.sleep(max(0.0, self._start_s + self._num_sent / RATE_HZ - time.monotonic()))
        indices = np.arange(self._num_sent, self._num_sent + PACKET_SAMPLES) % len(self._samples)
        frame = av.AudioFrame.from_ndarray(self._samples[indices].reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = RATE_HZ
        frame.pts = self._num_sent
        frame.time_base = Fraction(1, RATE_HZ)
        self._num_sent += PACKET_SAMPLES
        return frame


@dataclass(slots=True)
class SenderClock:
    """Relation of an RTP stream's timestamps to the sender's wall clock, from its sender reports."""

    rate_hz: int
    reports: list[tuple[int, int]] = field(default_factory=list)

    def note(self, packet: RtcpSrPacket) -> None:
        """Take a sender report; those before the first packet say nothing."""
        info = packet.sender_info
        if info.packet_count:
            self.reports.append((info.ntp_timestamp, info.rtp_timestamp))

    def wall_s(self, rtp_timestamp: int) -> float:
        """Wall-clock second of a timestamp, by the nearest report."""
        ntp, rtp = min(self.reports, key=lambda report: abs(_signed(rtp_timestamp - report[1])))
        return ntp / 2**32 + _signed(rtp_timestamp - rtp) / self.rate_hz


class TimestampedBuffer(JitterBuffer):
    """A video jitter buffer that remembers the first timestamp, to which aiortc's pts are relative."""

    def __init__(self) -> None:
        super().__init__(capacity=512, is_video=True)
        self.first_timestamp: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """Take one packet."""
        pli, frame = super().add(packet)
        if frame is not None and self.first_timestamp is None:
            self.first_timestamp = frame.timestamp
        return pli, frame


@dataclass(slots=True)
class Report:
    """What a viewer saw."""

    seconds: float = 0.0
    windows: int = 0
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_max_ms: float | None = None
    pace_p50_ms: float | None = None
    ttff_p50_ms: float | None = None
    ttff_p95_ms: float | None = None
    pace_p99_ms: float | None = None
    playout_delay_ms: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    misses_settled: int = 0
    skipped_windows: int = 0
    reduced_windows: int = 0
    underruns: int = 0
    underruns_settled: int = 0
    frames: int = 0
    distinct_frames: int = 0
    frames_per_s: float = 0.0
    sound_s: float = 0.0
    audio_gap_ms: float = 0.0
    first_frame_s: float | None = None
    skew_p50_ms: float | None = None
    skew_max_ms: float | None = None
    states: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


class Viewer:
    """One session with a server.

    Args:
        url: Address of the page.
        sound: What it says, 48 kHz stereo, (num_samples, 2).
        offer: More fields for the offer: portrait, seed, params.
    """

    def __init__(self, url: str, sound: NDArray[np.int16], offer: dict[str, Any] | None = None) -> None:
        self._url = url.rstrip("/")
        self._offer = offer or {}
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._peer.addTrack(MicrophoneTrack(sound))
        self._peer.addTransceiver("video", direction="recvonly")
        self._audio_clock = SenderClock(RATE_HZ)
        self._video_clock = SenderClock(VIDEO_CLOCK_HZ)
        self._video_buffer = TimestampedBuffer()
        self._tasks: list[asyncio.Task[None]] = []
        self._start_s = 0.0
        self.answer: dict[str, Any] = {}
        """The answer to the offer."""
        self.messages: list[tuple[float, dict[str, Any]]] = []
        """Everything the control channel said, with the second it arrived."""
        self.sound: list[tuple[int, NDArray[np.int16]]] = []
        """Received packets: RTP timestamp and samples."""
        self.frames: list[tuple[int, int | None, float]] = []
        """Received frames: RTP timestamp, frame number and level as the pattern engine draws them."""
        self.first_frame_s: float | None = None
        """Second of the first received frame."""
        self.received = asyncio.Event()
        """Set at the first frame."""

    async def open(self) -> None:
        """Connect; raises what the server or the network refuses."""
        await self._peer.setLocalDescription(await self._peer.createOffer())
        body = {"sdp": self._peer.localDescription.sdp, "type": "offer", **self._offer}
        self._start_s = time.monotonic()
        self.answer = await asyncio.to_thread(_post, f"{self._url}/offer", body)
        await self._peer.setRemoteDescription(RTCSessionDescription(sdp=self.answer["sdp"], type="answer"))
        for transceiver in self._peer.getTransceivers():
            receiver = transceiver.receiver
            if transceiver.kind == "audio":
                setattr(receiver, _BUFFER, OpusIntake(lambda timestamp, pcm: self.sound.append((timestamp, pcm))))
                _listen_to_reports(receiver, self._audio_clock)
            else:
                setattr(receiver, _BUFFER, self._video_buffer)
                _listen_to_reports(receiver, self._video_clock)
                self._tasks.append(asyncio.create_task(self._watch(receiver.track), name="viewer-video"))
        self._tasks.append(asyncio.create_task(self._listen(), name="viewer-control"))

    async def stay(self, seconds: float) -> None:
        """Stay in the session.

        Args:
            seconds: For how long.

        Raises:
            SessionLost: The server ended it, or is gone.
        """
        ended, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        if ended:
            raise SessionLost(time.monotonic() - self._start_s)

    async def aclose(self) -> None:
        """End the session."""
        await self._peer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, av.VideoFrame)
            assert frame.pts is not None
            if self.first_frame_s is None:
                self.first_frame_s = time.monotonic() - self._start_s
                self.received.set()
            luma = frame.to_ndarray().astype(np.uint8, copy=False)
            timestamp = frame.pts + (self._video_buffer.first_timestamp or 0)
            number = read_frame_index(luma, frame.height)
            self.frames.append((timestamp, number, read_level(luma, frame.height) if number is not None else 0.0))

    async def _listen(self) -> None:
        address = self._url.replace("http", "ws", 1) + self.answer["control"]
        try:
            async with connect(address) as socket:
                async for message in socket:
                    self.messages.append((time.monotonic() - self._start_s, json.loads(message)))
        except (OSError, WebSocketException):
            return

    def report(self) -> Report:
        """Sum up."""
        ledgers = [(second, message) for second, message in self.messages if message["type"] == "ledger"]
        stats = [(second, message) for second, message in self.messages if message["type"] == "stats"]
        latencies = [message["latency_ms"] for _, message in ledgers]
        last = stats[-1][1] if stats else {}
        settled_s = ledgers[0][0] + SETTLED_S if ledgers else 0.0
        before = [message["underruns"] for second, message in stats if second <= settled_s]
        skews = skew_ms(self.frames, self.sound, self._video_clock, self._audio_clock)
        spans = [_signed(b[0] - a[0]) / VIDEO_CLOCK_HZ for a, b in zip(self.frames, self.frames[1:], strict=False)]
        return Report(
            seconds=time.monotonic() - self._start_s,
            windows=len(ledgers),
            latency_p50_ms=percentile(latencies, 50),
            latency_p99_ms=percentile(latencies, 99),
            latency_max_ms=max(latencies, default=None),
            pace_p50_ms=last.get("pace_ms", {}).get("p50"),
            ttff_p50_ms=last.get("ttff_ms", {}).get("p50"),
            ttff_p95_ms=last.get("ttff_ms", {}).get("p95"),
            pace_p99_ms=last.get("pace_ms", {}).get("p99"),
            playout_delay_ms=self.answer.get("playout_delay_ms", 0),
            misses=last.get("misses", {}),
            misses_settled=sum(m["missed"] is not None for second, m in ledgers if second > settled_s),
            skipped_windows=last.get("skipped_windows", 0),
            reduced_windows=last.get("reduced_windows", 0),
            underruns=last.get("underruns", 0),
            underruns_settled=last.get("underruns", 0) - (before[-1] if before else 0),
            frames=len(self.frames),
            distinct_frames=len({number for _, number, _ in self.frames if number is not None}),
            frames_per_s=len(spans) / sum(spans) if spans and sum(spans) else 0.0,
            sound_s=sum(len(pcm) for _, pcm in self.sound) / RATE_HZ,
            audio_gap_ms=last.get("audio_gap_ms", 0.0),
            first_frame_s=self.first_frame_s,
            skew_p50_ms=statistics.median(skews) if skews else None,
            skew_max_ms=max(skews, key=abs) if skews else None,
            states=[message["state"] for _, message in self.messages if message["type"] == "state"],
        )


def skew_ms(
    frames: list[tuple[int, int | None, float]],
    sound: list[tuple[int, NDArray[np.int16]]],
    video_clock: SenderClock,
    audio_clock: SenderClock,
    *,
    part_s: float = 10.0,
) -> list[float]:
    """How much later the picture is shown than its sound is heard, for every part of a recording.

    Args:
        frames: RTP timestamp, frame number (None where there is none) and drawn level.
        sound: RTP timestamp and samples, 48 kHz.
        video_clock: Places the frames.
        audio_clock: Places the sound.
        part_s: Length of a part.

    Returns:
        One value per part in which there is enough sound to tell; none without sender reports.
    """
    shown = [(ts, level) for ts, number, level in frames if number is not None]
    if not shown or not sound or not video_clock.reports or not audio_clock.reports:
        return []
    first = sound[0][0]
    energy = np.zeros(_signed(sound[-1][0] - first) + len(sound[-1][1]) + 1)
    for timestamp, pcm in sound:
        at = _signed(timestamp - first)
        if at >= 0:
            energy[at : at + len(pcm)] = np.mean(np.square(pcm.astype(np.float64) / 32768.0), axis=1)
    total = np.concatenate([[0.0], np.cumsum(energy)])
    start_s = audio_clock.wall_s(first)
    at_s = np.array([video_clock.wall_s(timestamp) for timestamp, _ in shown]) - start_s
    levels = np.array([level for _, level in shown])
    out = []
    for begin_s in np.arange(at_s[0], at_s[-1] - part_s / 2, part_s):
        part = (at_s >= begin_s) & (at_s < begin_s + part_s)
        if part.sum() >= FPS and levels[part].std() > 0.02:
            out.append(_best_shift_ms(at_s[part], levels[part], total))
    return out


def _best_shift_ms(at_s: NDArray[np.float64], levels: NDArray[np.float64], total: NDArray[np.float64]) -> float:
    """Shift of the sound against the frames at which its level fits the drawn level best."""
    best, best_ms = -2.0, 0.0
    for shift_ms in range(-200, 201, 2):
        start = np.round((at_s - shift_ms / 1000.0) * RATE_HZ).astype(int)
        end = start + RATE_HZ // FPS
        inside = (start >= 0) & (end < len(total))
        if inside.sum() < FPS // 2:
            continue
        mean = (total[end[inside]] - total[start[inside]]) / (RATE_HZ // FPS)
        heard = np.clip(1.0 + 10.0 * np.log10(mean + 1e-12) / 60.0, 0.0, 1.0)
        if heard.std() == 0.0:
            continue
        fit = float(np.corrcoef(heard, levels[inside])[0, 1])
        if fit > best:
            best, best_ms = fit, float(shift_ms)
    return best_ms


def read_sound(path: Path | str) -> NDArray[np.int16]:
    """Decode any sound file.

    Args:
        path: A path or an address.

    Returns:
        48 kHz stereo, (num_samples, 2).
    """
    resampler = av.AudioResampler(format="s16", layout="stereo", rate=RATE_HZ)
    parts: list[NDArray[np.int16]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            parts += [out.to_ndarray().astype(np.int16, copy=False) for out in resampler.resample(frame)]
    parts += [out.to_ndarray().astype(np.int16, copy=False) for out in resampler.resample(None)]
    return np.concatenate(parts, axis=1).reshape(-1, 2)


async def measure(url: str, sound: NDArray[np.int16], seconds: float, offer: dict[str, Any] | None = None) -> Report:
    """Be a viewer for a while.

    Args:
        url: Address of the page.
        sound: What to say, 48 kHz stereo.
        seconds: For how long.
        offer: More fields for the offer.

    Returns:
        What was seen.

    Raises:
        OSError: There was no session.
        SessionLost: There was one, but the server ended it, or is gone.
    """
    viewer = Viewer(url, sound, offer)
    try:
        await viewer.open()
        await viewer.stay(seconds)
        return viewer.report()
    finally:
        await viewer.aclose()


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line.

    Args:
        arguments: In place of those of the process.

    Returns:
        Exit status: 0, or 1 when there was no session, or not until the end.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.loopback", description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="address of the page")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long")
    parser.add_argument("--audio", help="sound file; the server's own sample when left out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        sound = read_sound(options.audio or f"{options.url.rstrip('/')}/api/sample.wav")
        report = asyncio.run(measure(options.url, sound, options.seconds))
    except (OSError, av.FFmpegError) as exc:
        print(f"no session: {exc}", file=sys.stderr)
        return 1
    except SessionLost as exc:
        print(exc, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        for name, value in report.to_json().items():
            print(f"{name:>20}  {round(value, 1) if isinstance(value, float) else value}")
    return 0


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=15) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as exc:
        raise OSError(f"{url} answers {exc.code}: {exc.read().decode(errors='replace')[:300]}") from exc


def _listen_to_reports(receiver: RTCRtpReceiver, clock: SenderClock) -> None:
    """Hear the sender reports of a receiver as well."""
    original = receiver._handle_rtcp_packet

    async def handle(packet: Any) -> None:
        if isinstance(packet, RtcpSrPacket):
            clock.note(packet)
        await original(packet)

    receiver._handle_rtcp_packet = handle  # type: ignore[method-assign]


def _signed(difference: int) -> int:
    """A difference of 32-bit timestamps as a signed number."""
    return (difference + 2**31) % 2**32 - 2**31


if __name__ == "__main__":
    sys.exit(main())
