"""Tests of server/peer.py: two peers in one process, and what aiortc keeps where it is replaced."""

import asyncio
import gc
import re
import socket
import warnings
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.codecs.opus import OpusEncoder
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtp import RtpPacket

from server.config import IceServer, SessionConfig
from server.errors import AnswerTimeout, SignalingError
from server.peer import OpusIntake, Peer, SoundSink
from server.tracks import AudioTrack, VideoTrack

pytestmark = pytest.mark.contract

MDNS_PORT = 5353


def opus_packets(num: int) -> list[bytes]:
    """Packets of a tone."""
    encoder = OpusEncoder()
    packets = []
    for i in range(num):
        tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(i * 960, (i + 1) * 960) / 48_000)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(tone, 2).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, i * 960, Fraction(1, 48_000)
        packets += encoder.encode(frame)[0]
    return packets


class Tone(MediaStreamTrack):
    """A microphone in real time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._sent = 0

    async def recv(self) -> av.AudioFrame:
        await asyncio.sleep(0.02)
        phase = 2 * np.pi * 440 * np.arange(self._sent * 960, (self._sent + 1) * 960) / 48_000
        samples = np.repeat((8000 * np.sin(phase)).astype(np.int16), 2).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._sent * 960, Fraction(1, 48_000)
        self._sent += 1
        return frame


def test_every_packet_is_given_on_as_it_arrives_and_nothing_to_aiortc() -> None:
    got: list[tuple[int, int]] = []
    intake = OpusIntake(lambda timestamp, samples: got.append((timestamp, len(samples))))
    for i, payload in enumerate(opus_packets(5)):
        assert intake.add(RtpPacket(timestamp=1000 + i * 960, sequence_number=i, payload=payload)) == (False, None)
    assert [timestamp for timestamp, _ in got] == [1000 + i * 960 for i in range(5)]
    assert {length for _, length in got} == {960}


def test_damaged_and_empty_packets_are_survived() -> None:
    got: list[int] = []
    intake = OpusIntake(lambda timestamp, samples: got.append(timestamp))
    intake.add(RtpPacket(timestamp=0, payload=b""))
    for seed in range(50):
        noise = np.random.default_rng(seed).bytes(60)
        intake.add(RtpPacket(timestamp=seed, payload=noise))
    intake.add(RtpPacket(timestamp=99, payload=opus_packets(1)[0]))
    assert got[-1] == 99
    assert intake.num_damaged + len(got) == 51


async def connect(
    viewer: RTCPeerConnection,
    sdp: str,
    video: VideoTrack,
    audio: AudioTrack,
    sink: SoundSink = lambda timestamp, samples: None,
) -> Peer:
    """Accept a viewer by its offer, and give it the answer."""
    peer = await Peer.accept(sdp, ice_servers=(), config=SessionConfig(), video=video, audio=audio, sink=sink)
    await viewer.setRemoteDescription(RTCSessionDescription(sdp=peer.answer_sdp, type="answer"))
    return peer


async def test_sound_goes_in_and_sound_and_picture_come_out() -> None:
    viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    viewer.addTrack(Tone())
    viewer.addTransceiver("video", direction="recvonly")
    await viewer.setLocalDescription(await viewer.createOffer())
    heard: asyncio.Queue[tuple[int, np.ndarray]] = asyncio.Queue()
    video, audio = VideoTrack(lambda: None), AudioTrack(lambda: None)
    peer = await connect(
        viewer,
        viewer.localDescription.sdp,
        video,
        audio,
        lambda timestamp, samples: heard.put_nowait((timestamp, samples)),
    )
    await asyncio.wait_for(peer.connected.wait(), 10)

    packets = [await asyncio.wait_for(heard.get(), 5) for _ in range(10)]
    steps = {(b[0] - a[0]) % 2**32 for a, b in zip(packets, packets[1:], strict=False)}
    assert steps == {960}
    assert abs(packets[-1][1].astype(float).std() - 8000 / 2**0.5) < 500
    assert await peer.num_received() > 0

    received = {transceiver.kind: transceiver.receiver.track for transceiver in viewer.getTransceivers()}
    for frame in range(40):
        video.put(frame, np.full((96, 64), 100 + frame, np.uint8))
        audio.put(frame * 960, np.full((960, 2), 3000, np.int16))
        await asyncio.sleep(0.01)
    picture = await asyncio.wait_for(received["video"].recv(), 5)
    sound = await asyncio.wait_for(received["audio"].recv(), 5)
    assert isinstance(picture, av.VideoFrame)
    assert (picture.width, picture.height) == (64, 64)
    assert isinstance(sound, av.AudioFrame)

    await viewer.close()
    await asyncio.wait_for(peer.closed.wait(), 5)
    video.stop()
    audio.stop()
    await peer.aclose()
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_track_whose_encoder_fails_says_that_it_is_sent_no_more() -> None:
    viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    viewer.addTrack(Tone())
    viewer.addTransceiver("video", direction="recvonly")
    await viewer.setLocalDescription(await viewer.createOffer())
    video, audio = VideoTrack(lambda: None), AudioTrack(lambda: None)
    peer = await connect(viewer, viewer.localDescription.sdp, video, audio)
    await asyncio.wait_for(peer.connected.wait(), 10)
    video.put(0, np.zeros((96, 64), np.float64))
    await asyncio.wait_for(video.stopped.wait(), 5)
    assert not audio.stopped.is_set()
    await viewer.close()
    await peer.aclose()
    await asyncio.wait_for(audio.stopped.wait(), 5)


async def connects(pattern: str, replacement: str) -> bool:
    """Whether a viewer connects whose candidates are changed before the server sees them."""
    viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    viewer.addTransceiver("audio", direction="sendrecv")
    viewer.addTransceiver("video", direction="recvonly")
    await viewer.setLocalDescription(await viewer.createOffer())
    video, audio = VideoTrack(lambda: None), AudioTrack(lambda: None)
    sdp, num_changed = re.subn(pattern, replacement, viewer.localDescription.sdp)
    assert num_changed
    assert "a=end-of-candidates" in sdp
    peer = await connect(viewer, sdp, video, audio)
    with suppress(TimeoutError):
        await asyncio.wait_for(peer.connected.wait(), 10)
    is_connected = peer.connected.is_set()
    await viewer.close()
    await peer.aclose()
    video.stop()
    audio.stop()
    return is_connected


async def test_a_viewer_whose_addresses_are_not_told_connects_by_its_own_checks() -> None:
    assert await connects(r"a=candidate:.*\r\n", "")


async def test_a_viewer_whose_names_cannot_be_looked_up_connects_all_the_same() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
        try:
            selfish.bind(("", MDNS_PORT))
        except OSError:
            pytest.skip("the port of mDNS is taken on this machine")
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            assert await connects(r"(a=candidate:\S+ \d udp \d+) \S+", r"\1 0c6e1b7f.local")
            gc.collect()  # aioice forgets to close the socket that it could not bind


async def test_a_connection_that_does_not_close_is_left_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    may_end, has_ended = asyncio.Event(), asyncio.Event()

    class Stuck(RTCPeerConnection):
        async def close(self) -> None:
            await may_end.wait()
            has_ended.set()

    peer = Peer(Stuck(RTCConfiguration(iceServers=[])), close_timeout_s=0.01)
    await asyncio.wait_for(peer.aclose(), 5)
    assert peer.closed.is_set()
    assert caplog.messages == ["a peer connection did not close within 0.01 s"]
    may_end.set()
    await asyncio.wait_for(has_ended.wait(), 5)


async def test_candidates_that_are_being_gathered_are_there_before_the_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An allocation at a TURN server that nobody knows of would be renewed for ever."""
    begun, may_end, done = asyncio.Event(), asyncio.Event(), []

    class Slow(RTCPeerConnection):
        async def setLocalDescription(self, sessionDescription: RTCSessionDescription) -> None:  # noqa: N802, N803
            begun.set()
            await may_end.wait()
            done.append("gathered")

        async def close(self) -> None:
            done.append("closed")
            await super().close()

    sdp = await offer()
    monkeypatch.setattr("server.peer.RTCPeerConnection", Slow)
    accepting = asyncio.create_task(refusal(sdp))
    await asyncio.wait_for(begun.wait(), 5)
    accepting.cancel()
    await asyncio.wait([accepting], timeout=0.01)
    may_end.set()
    await asyncio.wait([accepting], timeout=5)
    assert done == ["gathered", "closed"]


async def offer() -> str:
    """What a browser offers."""
    viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    viewer.addTransceiver("audio", direction="sendrecv")
    viewer.addTransceiver("video", direction="recvonly")
    await viewer.setLocalDescription(await viewer.createOffer())
    await viewer.close()
    return viewer.localDescription.sdp


async def refusal(sdp: str, *, ice_servers: tuple[IceServer, ...] = (), offer_timeout_s: float = 8.0) -> Exception:
    """What an offer is refused with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the caller's affair
        await Peer.accept(
            sdp,
            ice_servers=ice_servers,
            config=SessionConfig(offer_timeout_s=offer_timeout_s),
            video=VideoTrack(lambda: None),
            audio=AudioTrack(lambda: None),
            sink=lambda timestamp, samples: None,
        )
    return caught.value


async def test_an_offer_that_passes_the_checks_and_still_makes_no_sense_is_refused_and_cleaned_up() -> None:
    sdp = (await offer()).replace("VP8/90000", "VP8/1").replace("H264/90000", "H264/1")
    assert type(await refusal(sdp)) is SignalingError


async def test_a_server_that_takes_too_long_does_not_blame_the_offer() -> None:
    error = await refusal(await offer(), offer_timeout_s=1e-6)
    assert type(error) is AnswerTimeout


async def test_what_is_wrong_with_the_server_itself_is_not_blamed_on_the_offer() -> None:
    broken = IceServer.model_construct(urls=("nonsense",), username=None, credential=None)
    error = await refusal(await offer(), ice_servers=(broken,))
    assert type(error) is ValueError
