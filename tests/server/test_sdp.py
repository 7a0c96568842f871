"""Tests of server/sdp.py: what an offer has to look like."""

import pytest

from server.errors import SignalingError, UnsupportedMedia
from server.sdp import check_offer, without_names

pytestmark = pytest.mark.unit

FINGERPRINT = ":".join(["AB"] * 32)
HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=msid-semantic:WMS *\r\n"
COMMON = (
    "c=IN IP4 127.0.0.1\r\na=rtcp:9 IN IP4 0.0.0.0\r\na=rtcp-mux\r\n"
    "a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host\r\n"
    "a=candidate:2 1 udp 2130706431 6f0e.local 50000 typ host\r\n"
    "a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n"
    f"a=fingerprint:sha-256 {FINGERPRINT}\r\na=setup:actpass\r\n"
)
AUDIO = f"m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=sendrecv\r\na=rtpmap:111 opus/48000/2\r\n{COMMON}"
VIDEO = f"m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=recvonly\r\na=rtpmap:96 VP8/90000\r\n{COMMON}"
OFFER = HEAD + AUDIO + VIDEO


def test_a_proper_offer_passes_unchanged() -> None:
    assert check_offer(OFFER) == OFFER


def test_bare_line_feeds_are_understood() -> None:
    assert check_offer(OFFER.replace("\r\n", "\n")) == OFFER


def test_candidates_that_would_have_to_be_looked_up_are_left_out() -> None:
    named = OFFER.replace("192.0.2.1", "evil.example.com")
    assert "evil" not in check_offer(named)
    assert "6f0e.local" in check_offer(named)


def test_names_can_be_left_out_and_addresses_stay() -> None:
    assert without_names(OFFER) == OFFER.replace("a=candidate:2 1 udp 2130706431 6f0e.local 50000 typ host\r\n", "")


def test_the_end_of_the_candidates_is_left_out() -> None:
    assert check_offer(OFFER.replace("a=ice-ufrag", "a=end-of-candidates\r\na=ice-ufrag")) == OFFER


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (OFFER, "", "v=0"),
        (OFFER, "hello", "v=0"),
        (OFFER, "v=0\x00", "v=0"),
        (OFFER, "v=0\r\n", "no media sections"),
        (OFFER, "v=0\r\n" + "a=x:1\r\n" * 20_000, "at most 131072"),
        (OFFER, OFFER + "a=x:1\r\n" * 1_000, "at most 1000"),
        (OFFER, OFFER + "a=rtpmap:97 VP8/90000\r\n" * 128, "130 lines a=rtpmap, but at most 128"),
        (OFFER, OFFER + "a=rtcp-fb:* nack\r\n" * 257, "257 lines a=rtcp-fb, but at most 256"),
        ("m=audio 9 UDP", "m=audio NaN UDP", "malformed"),
        ("opus/48000/2", "opus/NaN", "malformed"),
        ("a=candidate:1 1 udp", "a=candidate:1 x udp", "malformed"),
        ("a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host", "a=candidate:1", "malformed"),
        ("a=setup:actpass", "a=setup:sideways", "malformed"),
        ("SAVPF 111", "SAVPF 99999999999", "malformed"),
        ("a=setup:actpass\r\n", "", "DTLS"),
        (f"a=fingerprint:sha-256 {FINGERPRINT}\r\n", "", "DTLS"),
        ("a=ice-pwd:abcdefghijklmnopqrstuvwx\r\n", "", "ICE credentials"),
        ("a=rtcp-mux\r\n", "", "RTCP"),
        ("a=mid:1", "a=mid:0", "mid of its own"),
        ("a=mid:1\r\n", "", "mid of its own"),
        ("BUNDLE 0 1", "BUNDLE 0", "BUNDLE"),
        ("BUNDLE 0 1", "BUNDLE x 0 1", "BUNDLE"),
        ("a=group:BUNDLE 0 1", "a=group:BUNDLE 0 1\r\na=group:BUNDLE 0 1", "BUNDLE"),
        ("a=recvonly\r\n", "", "no direction"),
        ("m=video 9", "m=video 0", "port 0"),
        (
            "a=ice-ufrag:abcd\r\n",
            "a=ice-ufrag:abcd\r\n" + "a=candidate:1 1 udp 1 192.0.2.1 5000 typ host\r\n" * 70,
            "at most 64",
        ),
    ],
)
def test_nonsense_is_refused_with_its_reason(old: str, new: str, message: str) -> None:
    assert old in OFFER
    with pytest.raises(SignalingError) as caught:
        check_offer(OFFER.replace(old, new))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sdp", "message"),
    [
        (HEAD + VIDEO, "number of audio sections of the offer is 0"),
        (HEAD + AUDIO, "number of video sections of the offer is 0"),
        (OFFER + VIDEO, "number of video sections of the offer is 2"),
        (OFFER + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n", "application"),
        (OFFER.replace("a=sendrecv", "a=recvonly"), "it has to be sendrecv"),
        (OFFER.replace("a=recvonly", "a=sendonly"), "it has to be recvonly or sendrecv"),
        (OFFER.replace("opus/48000/2", "PCMU/8000"), "one of them has to be opus"),
        (OFFER.replace("VP8", "AV1"), "one of them has to be vp8 or h264"),
    ],
)
def test_an_offer_that_a_session_cannot_use_is_refused_with_value_and_rule(sdp: str, message: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        check_offer(sdp)
    assert message in str(caught.value)
