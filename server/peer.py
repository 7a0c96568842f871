"""The peer connection of one viewer: aiortc's edge, where W3C camelCase stops.

aiortc's own audio jitter buffer adds delay for ever with every lost packet, so it is replaced: packets are decoded as
they arrive and placed in media time by the session (timeline.py). Nothing then waits in the received track's unbounded
queue.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import av
import numpy as np
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtpPacket
from numpy.typing import NDArray

from server.config import IceServer, SessionConfig
from server.errors import AnswerTimeout, SignalingError
from server.sdp import check_offer, without_names
from server.sound import NUM_CHANNELS
from server.tracks import AudioTrack, VideoTrack, install_encoder

__all__ = ["OpusIntake", "Peer"]

logger = logging.getLogger(__name__)

# aiortc keeps the jitter buffer of a receiver under this private name; a test watches it.
_RECEIVER_BUFFER = "_RTCRtpReceiver__jitter_buffer"

SoundSink = Callable[[int, NDArray[np.int16]], None]


class OpusIntake:
    """Stands in for the jitter buffer of an audio receiver: decodes at once, keeps nothing, gives nothing back.

    Args:
        sink: Gets the RTP timestamp and the samples (48 kHz, (num_samples, 2)) of every packet.
    """

    def __init__(self, sink: SoundSink) -> None:
        self._sink = sink
        self._decoder = OpusDecoder()
        self.num_damaged = 0
        """Packets that could not be decoded; their place becomes a gap."""

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """Take one packet, in whatever order; an empty one (a probe) is nothing.

        Args:
            packet: With an Opus payload.

        Returns:
            Always (False, None): no key frame to ask for, nothing for aiortc to decode.
        """
        if packet.payload:
            try:
                frames = self._decoder.decode(JitterFrame(data=packet.payload, timestamp=packet.timestamp))
            except av.FFmpegError:
                self.num_damaged += 1
                frames = []
            parts = [frame.to_ndarray() for frame in frames if isinstance(frame, av.AudioFrame)]
            if parts:
                samples = np.concatenate(parts, axis=1).astype(np.int16, copy=False)
                self._sink(packet.timestamp, samples.reshape(-1, NUM_CHANNELS))
        return False, None


class Peer:
    """One peer connection. Made by `accept`.

    Args:
        connection: Not yet negotiated.
        close_timeout_s: How long closing may take; what aiortc still does then is left to itself.
    """

    def __init__(self, connection: RTCPeerConnection, *, close_timeout_s: float) -> None:
        self._connection = connection
        self._close_timeout_s = close_timeout_s
        self._closing: asyncio.Future[None] | None = None
        self.answer_sdp = ""
        """The answer, with all candidates."""
        self.connected = asyncio.Event()
        """Set once media can flow."""
        self.closed = asyncio.Event()
        """Set when the connection failed or was closed by either side."""
        connection.on("connectionstatechange", self._note_state)

    @classmethod
    async def accept(
        cls,
        offer_sdp: str,
        *,
        ice_servers: Sequence[IceServer],
        config: SessionConfig,
        video: VideoTrack,
        audio: AudioTrack,
        sink: SoundSink,
    ) -> "Peer":
        """Answer an offer. Cancellation closes what was opened.

        Args:
            offer_sdp: The viewer's offer, untrusted.
            ice_servers: STUN and TURN servers to use; none means none.
            config: Bitrates and deadlines.
            video: Track to send.
            audio: Track to send.
            sink: Gets the received sound.

        Returns:
            The peer, with its answer; it connects by itself.

        Raises:
            SignalingError: The offer makes no sense.
            AnswerTimeout: There was no answer in time.
            UnsupportedMedia: It does not offer what a session needs.
        """
        sdp = check_offer(offer_sdp)

        async def answer(sdp: str) -> "Peer":
            peer = cls(RTCPeerConnection(_configuration(ice_servers)), close_timeout_s=config.close_timeout_s)
            try:
                await peer._negotiate(sdp, config, video, audio, sink)
            except BaseException:
                # aiortc may stumble over what it has half set up; the first error is the one that counts.
                with contextlib.suppress(Exception):
                    await peer.aclose()
                raise
            return peer

        try:
            async with asyncio.timeout(config.offer_timeout_s):
                try:
                    return await answer(sdp)
                except OSError as exc:
                    # A program that keeps the port of mDNS to itself: the viewer's own checks tell its address then.
                    logger.info("an offer is answered without its mDNS names: %s", exc.strerror)
                    return await answer(without_names(sdp))
        except TimeoutError as exc:
            raise AnswerTimeout(config.offer_timeout_s) from exc

    async def _negotiate(
        self, sdp: str, config: SessionConfig, video: VideoTrack, audio: AudioTrack, sink: SoundSink
    ) -> None:
        connection = self._connection
        connection.addTrack(audio)
        connection.addTrack(video)
        for transceiver in connection.getTransceivers():
            capabilities = RTCRtpSender.getCapabilities(transceiver.kind).codecs
            wanted = ("audio/opus",) if transceiver.kind == "audio" else ("video/VP8", "video/H264", "video/rtx")
            transceiver.setCodecPreferences(
                [codec for mime_type in wanted for codec in capabilities if codec.mimeType == mime_type]
            )
        await self._apply_offer(sdp)
        for transceiver in connection.getTransceivers():
            if transceiver.kind == "audio":
                _install_intake(transceiver.receiver, sink)
            else:
                transceiver.direction = "sendonly"
                mime_type = transceiver._codecs[0].mimeType
                install_encoder(
                    transceiver.sender, mime_type, min_bps=config.video_min_bps, max_bps=config.video_max_bps
                )
        await _finished(connection.setLocalDescription(await connection.createAnswer()))
        self.answer_sdp = connection.localDescription.sdp

    async def _apply_offer(self, sdp: str) -> None:
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="offer"))
        except OSError:
            # The network of this machine, and no fault of the offer.
            raise
        except Exception as exc:
            # aiortc reports nonsense in an offer by whatever its code runs into: assertions, lookups, type errors.
            logger.info("an offer could not be negotiated", exc_info=exc)
            raise SignalingError(str(exc) or type(exc).__name__) from exc

    async def num_received(self) -> int:
        """Packets of any kind received so far."""
        reports = (await self._connection.getStats()).values()
        return sum(report.packetsReceived for report in reports if report.type == "transport")

    async def aclose(self) -> None:
        """Close the connection; a second call does nothing."""
        # Not cancelled when it takes too long: aiortc could not be closed a second time.
        self._closing = asyncio.ensure_future(self._connection.close())
        try:
            done, _ = await asyncio.wait([self._closing], timeout=self._close_timeout_s)
            if not done:
                logger.warning("a peer connection did not close within %g s", self._close_timeout_s)
            for closing in done:
                closing.result()
        finally:
            self.closed.set()

    def _note_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self.connected.set()
        elif state in ("failed", "closed"):
            self.closed.set()


async def _finished(gathering: Coroutine[Any, Any, None]) -> None:
    """Gather candidates to the end, for which ICE gives itself 5 s: an allocation at a TURN server that is given up on
    the way would be renewed for ever.
    """
    task = asyncio.ensure_future(gathering)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _configuration(ice_servers: Sequence[IceServer]) -> RTCConfiguration:
    # An empty list, not None: with None aiortc would ask a public STUN server.
    servers = [
        RTCIceServer(
            urls=list(server.urls),
            username=server.username,
            credential=None if server.credential is None else server.credential.get_secret_value(),
        )
        for server in ice_servers
    ]
    return RTCConfiguration(iceServers=servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)


def _install_intake(receiver: RTCRtpReceiver, sink: SoundSink) -> None:
    if not hasattr(receiver, _RECEIVER_BUFFER):
        raise RuntimeError(f"this aiortc has no {_RECEIVER_BUFFER}; its audio receiver cannot be used")
    setattr(receiver, _RECEIVER_BUFFER, OpusIntake(sink))
