"""Tests of server/tracks.py: hand-offs, time stamps, steady bitrates."""

import asyncio

import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.mediastreams import MediaStreamError

from server.tracks import PICTURES_WAITING, AudioTrack, HandOff, SteadyBitrate, VideoTrack, install_encoder

pytestmark = pytest.mark.unit

PICTURE = np.full((24, 16), 7, np.uint8)


async def test_a_full_hand_off_drops_the_oldest_and_says_so() -> None:
    drops: list[int] = []
    hand_off: HandOff[int] = HandOff(2, lambda: drops.append(1))
    for item in range(5):
        hand_off.put(item)
    assert [await hand_off.get(), await hand_off.get()] == [3, 4]
    assert len(drops) == 3


async def test_a_closed_hand_off_releases_who_waits_and_forgets_what_comes() -> None:
    hand_off: HandOff[int] = HandOff(2, lambda: None)
    waiting = asyncio.create_task(hand_off.get())
    await asyncio.sleep(0)
    hand_off.close()
    hand_off.put(1)
    assert await waiting is None
    assert await hand_off.get() is None


async def test_a_cancelled_wait_loses_nothing() -> None:
    hand_off: HandOff[int] = HandOff(2, lambda: None)
    waiting = asyncio.create_task(hand_off.get())
    await asyncio.sleep(0)
    waiting.cancel()
    hand_off.put(1)
    assert await hand_off.get() == 1


async def test_a_picture_carries_its_media_time_however_many_were_skipped() -> None:
    track = VideoTrack(lambda: None)
    track.put(0, PICTURE)
    first = await track.recv()
    track.put(250, PICTURE)
    second = await track.recv()
    assert first.pts == 0
    assert second.pts == 900_000
    assert second.time_base is not None
    assert float(second.pts * second.time_base) == 10.0
    assert track.sent_s == 10.0
    np.testing.assert_array_equal(second.to_ndarray(), PICTURE)


async def test_a_picture_that_the_encoder_had_no_time_for_is_counted() -> None:
    drops: list[int] = []
    track = VideoTrack(lambda: drops.append(1))
    for frame in range(PICTURES_WAITING + 1):
        track.put(frame, PICTURE)
    assert len(drops) == 1
    assert (await track.recv()).pts == 3600


async def test_sound_carries_its_media_time() -> None:
    track = AudioTrack(lambda: None)
    samples = np.arange(1920, dtype=np.int16).reshape(960, 2)
    track.put(48_000, samples)
    frame = await track.recv()
    assert isinstance(frame, av.AudioFrame)
    assert (frame.pts, frame.sample_rate, frame.samples) == (48_000, 48_000, 960)
    np.testing.assert_array_equal(frame.to_ndarray().reshape(960, 2), samples)
    assert track.sent_s == 1.0


@pytest.mark.parametrize("kind", [VideoTrack, AudioTrack])
async def test_a_stopped_track_ends_its_sender(kind: type[VideoTrack] | type[AudioTrack]) -> None:
    track = kind(lambda: None)
    track.stop()
    with pytest.raises(MediaStreamError):
        await track.recv()


def test_the_bitrate_begins_at_its_highest_step() -> None:
    assert SteadyBitrate(400_000, 2_000_000).bps == 2_000_000


def test_small_moves_of_the_estimate_change_nothing() -> None:
    bitrate = SteadyBitrate(400_000, 2_000_000)
    for estimate in (1_850_000, 5_000_000, 1_900_000):
        bitrate.update(estimate)
        assert bitrate.bps == 2_000_000


def test_the_bitrate_follows_a_slow_network_down_and_a_better_one_up_step_by_step() -> None:
    bitrate = SteadyBitrate(400_000, 2_000_000)
    bitrate.update(900_000)
    assert bitrate.bps == 888_888
    bitrate.update(100)
    assert bitrate.bps == 400_000
    bitrate.update(600_000)
    assert bitrate.bps == 400_000
    steps = []
    for _ in range(5):
        bitrate.update(3_000_000)
        steps.append(bitrate.bps)
    assert steps == [592_592, 888_888, 1_333_333, 2_000_000, 2_000_000]


@pytest.mark.parametrize(("mime_type", "kind"), [("video/VP8", Vp8Encoder), ("video/H264", H264Encoder)])
async def test_aiortc_still_keeps_its_encoder_where_it_is_replaced(
    mime_type: str, kind: type[Vp8Encoder] | type[H264Encoder]
) -> None:
    connection = RTCPeerConnection()
    sender = connection.addTrack(VideoTrack(lambda: None))
    name = "_RTCRtpSender__encoder"
    assert getattr(sender, name) is None
    install_encoder(sender, mime_type, min_bps=400_000, max_bps=2_000_000)
    encoder = getattr(sender, name)
    assert isinstance(encoder, kind)
    assert encoder.target_bitrate == 2_000_000
    encoder.target_bitrate = 900_000
    assert encoder.target_bitrate == 888_888
    await connection.close()


@pytest.mark.parametrize("mime_type", ["video/VP8", "video/H264"])
async def test_the_encoders_make_key_frames_when_asked(mime_type: str) -> None:
    connection = RTCPeerConnection()
    track = VideoTrack(lambda: None)
    sender = connection.addTrack(track)
    install_encoder(sender, mime_type, min_bps=400_000, max_bps=2_000_000)
    encoder = getattr(sender, "_RTCRtpSender__encoder")  # noqa: B009
    noise = np.random.default_rng(0).integers(0, 255, (384 * 3 // 2, 256), dtype=np.uint8)
    lengths = []
    for frame in range(6):
        track.put(frame, noise)
        payloads, timestamp = encoder.encode(await track.recv(), frame == 5)
        assert timestamp == frame * 3600
        lengths.append(sum(map(len, payloads)))
    assert lengths[5] > 3 * lengths[4]
    await connection.close()
