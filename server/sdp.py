"""What an offer has to look like before aiortc sees it: pure.

aiortc's parser was written for well-meant descriptions, so everything that a session relies on is checked here, and the
answer to nonsense is a sentence and never a traceback.
"""

import ipaddress
import re

from aiortc.rtcdtlstransport import RTCDtlsFingerprint
from aiortc.sdp import MediaDescription, SessionDescription

from server.errors import SignalingError, UnsupportedMedia

__all__ = ["check_offer", "without_names"]

MAX_SDP_CHARS = 128 * 1024
MAX_SDP_LINES = 1000
MAX_CANDIDATES = 64
# aiortc's parser goes through all codecs for every line about feedback: seconds for an offer made of nothing else.
_MAX_LINES_OF = {"a=rtpmap:": 128, "a=rtcp-fb:": 256}
_CODECS = {"audio": ("audio/opus",), "video": ("video/vp8", "video/h264")}
_DIGESTS = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
_DIRECTIONS = {"audio": ("sendrecv",), "video": ("recvonly", "sendrecv")}


def check_offer(sdp: str) -> str:
    """Check an offer and take out the candidates that are no addresses, and the word that there will be no more.

    Args:
        sdp: The offer of a viewer, untrusted.

    Returns:
        The offer as it can be given to aiortc.

    Raises:
        SignalingError: It cannot be parsed, or lacks what every WebRTC offer has.
        UnsupportedMedia: It has not exactly one sound section to send and receive and one picture section to receive,
            with a codec that the server knows.
    """
    if len(sdp) > MAX_SDP_CHARS:
        raise SignalingError(f"it is {len(sdp)} characters long, but at most {MAX_SDP_CHARS} are allowed")
    if "\x00" in sdp or not sdp.startswith("v=0"):
        raise SignalingError("it has to start with v=0")
    lines = sdp.splitlines()
    _check_lines(lines)
    text = "\r\n".join(line for line in lines if _is_kept(line)) + "\r\n"
    try:
        description = SessionDescription.parse(text)
    except Exception as exc:
        # The parser asserts, looks up and converts without checks: any error of it means a malformed offer.
        raise SignalingError(f"its SDP is malformed ({type(exc).__name__}: {str(exc)[:120]})") from exc
    _check_sections(description.media)
    _check_bundle(description)
    for media in description.media:
        _check_media(media)
    return text


def without_names(sdp: str) -> str:
    """Take out the candidates that are mDNS names.

    Args:
        sdp: An offer that was checked.

    Returns:
        The offer with addresses only, perhaps with none at all.
    """
    return "".join(line for line in sdp.splitlines(keepends=True) if not _is_name(line))


def _check_lines(lines: list[str]) -> None:
    """Refuse what would keep the parser, and so the event loop, busy for long."""
    if len(lines) > MAX_SDP_LINES:
        raise SignalingError(f"it has {len(lines)} lines, but at most {MAX_SDP_LINES} are allowed")
    for start, limit in _MAX_LINES_OF.items():
        num = sum(line.startswith(start) for line in lines)
        if num > limit:
            raise SignalingError(f"it has {num} lines {start[:-1]}, but at most {limit} are allowed")


def _is_kept(line: str) -> bool:
    """Leave out candidates that name neither an IP address nor an mDNS name: resolving them would block.

    The end of the candidates is left out too. After it aioice gives up as soon as the candidates that it has lead
    nowhere, and has none where mDNS names cannot be resolved (no multicast, as in containers), although the viewer's
    own checks are on their way and would tell the address (RFC 8445 section 7.3.1.3). A session bounds the wait.
    """
    if line.strip() == "a=end-of-candidates":
        return False
    fields = line.split()
    if not line.startswith("a=candidate:") or len(fields) < 8 or _is_name(line):
        return True
    try:
        ipaddress.ip_address(fields[4])
    except ValueError:
        return False
    return True


def _is_name(line: str) -> bool:
    """Whether a line is a candidate with an mDNS name, as aioice knows them."""
    fields = line.split()
    return line.startswith("a=candidate:") and len(fields) >= 8 and fields[4].lower().endswith(".local")


def _check_sections(sections: list[MediaDescription]) -> None:
    if not sections:
        raise SignalingError("it has no media sections")
    for kind in ("audio", "video"):
        num = sum(media.kind == kind for media in sections)
        if num != 1:
            raise UnsupportedMedia(f"number of {kind} sections of the offer", str(num), "there has to be one")
    for media in sections:
        if media.kind not in _CODECS:
            raise UnsupportedMedia("section of the offer", media.kind[:40], "only audio and video are taken")


def _check_bundle(description: SessionDescription) -> None:
    mids = [media.rtp.muxId for media in description.media]
    if not all(mids) or len(set(mids)) != len(mids):
        raise SignalingError("every section needs a mid of its own")
    bundles = [group.items for group in description.group if group.semantic == "BUNDLE"]
    if len(bundles) != 1 or sorted(map(str, bundles[0])) != sorted(mids):
        raise SignalingError("all sections, and nothing else, have to be in one BUNDLE group")


def _check_media(media: MediaDescription) -> None:
    name = f"the {media.kind} section"
    direction = media.direction or "sendrecv"
    if direction not in _DIRECTIONS[media.kind]:
        rule = f"it has to be {' or '.join(_DIRECTIONS[media.kind])}"
        raise UnsupportedMedia(f"direction of {name} of the offer", direction, rule)
    if media.direction is None:
        raise SignalingError(f"{name} has no direction")
    if media.port == 0:
        raise SignalingError(f"{name} is rejected by its port 0")
    _check_codecs(media, name)
    if media.dtls is None or not any(_is_usable(fingerprint) for fingerprint in media.dtls.fingerprints):
        raise SignalingError(f"{name} has no setup or no DTLS fingerprint of {', '.join(_DIGESTS)}")
    if media.ice is None or not media.ice.usernameFragment or not media.ice.password:
        raise SignalingError(f"{name} has no ICE credentials")
    if not media.rtcp_mux:
        raise SignalingError(f"{name} does not multiplex RTCP")
    if len(media.ice_candidates) > MAX_CANDIDATES:
        raise SignalingError(
            f"{name} has {len(media.ice_candidates)} candidates, but at most {MAX_CANDIDATES} are allowed"
        )


def _check_codecs(media: MediaDescription, name: str) -> None:
    if not any(codec.mimeType.lower() in _CODECS[media.kind] for codec in media.rtp.codecs):
        offered = ", ".join(sorted({codec.name for codec in media.rtp.codecs}))[:200] or "none"
        known = " or ".join(mime_type.partition("/")[2] for mime_type in _CODECS[media.kind])
        raise UnsupportedMedia(f"codecs of {name} of the offer", offered, f"one of them has to be {known}")


def _is_usable(fingerprint: RTCDtlsFingerprint) -> bool:
    num_bytes = _DIGESTS.get(fingerprint.algorithm.lower())
    return (
        num_bytes is not None
        and re.fullmatch(rf"[0-9A-Fa-f]{{2}}(:[0-9A-Fa-f]{{2}}){{{num_bytes - 1}}}", fingerprint.value) is not None
    )
