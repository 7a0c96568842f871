import json
import random
import struct

import pytest

from pipeline.errors import WorkerError
from pipeline.host.framing import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, FrameDecoder, encode_frame

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("cut_bytes", [1, 3, 7, 8, 9, 64, 100_000])
def test_frames_survive_any_cutting_of_the_stream(cut_bytes: int) -> None:
    rng = random.Random(cut_bytes)
    sent = [({"number": number, "text": "ü" * number}, rng.randbytes(rng.randrange(200))) for number in range(40)]
    stream = b"".join(encode_frame(header, payload) for header, payload in sent)
    decoder = FrameDecoder()
    received = []
    for first in range(0, len(stream), cut_bytes):
        received += decoder.feed(stream[first : first + cut_bytes])
    assert received == sent


def test_a_frame_is_handed_out_with_its_last_byte_and_not_before() -> None:
    frame = encode_frame({"a": 1}, b"xyz")
    decoder = FrameDecoder()
    assert decoder.feed(frame[:-1]) == []
    assert decoder.feed(frame[-1:]) == [({"a": 1}, b"xyz")]


def test_nan_is_refused_because_json_has_none() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_frame({"value": float("nan")})


def test_lengths_over_the_limits_are_refused_before_anything_is_kept() -> None:
    with pytest.raises(WorkerError, match=f"header has {MAX_HEADER_BYTES + 1} bytes"):
        FrameDecoder().feed(struct.pack(">II", MAX_HEADER_BYTES + 1, 0))
    with pytest.raises(WorkerError, match=f"payload has {MAX_PAYLOAD_BYTES + 1} bytes"):
        FrameDecoder().feed(struct.pack(">II", 2, MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(WorkerError, match="payload has"):
        encode_frame({}, bytes(MAX_PAYLOAD_BYTES + 1))


def test_headers_that_are_no_json_object_are_refused() -> None:
    with pytest.raises(WorkerError, match="no JSON"):
        FrameDecoder().feed(struct.pack(">II", 3, 0) + b"\xff{}")
    listed = json.dumps([1, 2]).encode()
    with pytest.raises(WorkerError, match="is a list, but it has to be an object"):
        FrameDecoder().feed(struct.pack(">II", len(listed), 0) + listed)
