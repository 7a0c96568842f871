import pytest

from pipeline.api import EngineInfo, StreamParams, WindowLedger
from pipeline.errors import WorkerError
from pipeline.host import messages as m
from pipeline.host.framing import encode_frame

pytestmark = pytest.mark.unit

INFO = EngineInfo(
    name="pattern",
    height_px=384,
    width_px=256,
    num_steps=4,
    right_context_s=0.08,
    warm_window_s=0.0,
    warm_start_s=0.0,
    max_streams=2,
    accepts_prompt=False,
    accepts_portrait=True,
    notes=("one", "two"),
)
LEDGER = WindowLedger(window=3, epoch=1, captured_s=1.5, admitted_s=2.0, steps_s=(2.1, 2.2), copied_s=3.0)
PARAMS = StreamParams(liveliness=0.5)
EXAMPLES = [
    m.AttachRing(num_slots=72, slot_bytes=147_456),
    m.AudioDone(stream=1),
    m.CloseStream(stream=1),
    m.Configure(rank=0, config_json="{}", log_level=20),
    m.EndAudio(stream=1),
    m.Failed(error="OSError", text="no", traceback="Traceback ...", is_permanent=True),
    m.FramesMade(stream=1, window=3, epoch=1, first_frame=36, slots=(4, 5, 6), ledger=LEDGER),
    m.FramesMade(stream=1, window=3, epoch=1, first_frame=36, slots=(), ledger=None),
    m.Heartbeat(),
    m.Hello(pid=17, protocol_version=1),
    m.Interrupt(stream=1, epoch=2),
    m.LogRecord(logger="pipeline", level=30, text="Grüße\n"),
    m.OpenStream(
        stream=1, place=0, has_portrait=True, prompt="a", seed=2**62, params=PARAMS, live=True, payload=b"\x00\xff"
    ),
    m.OpenStream(stream=1, place=0, has_portrait=False, prompt=None, seed=0, params=PARAMS, live=False),
    m.PushAudio(stream=1, pts=10**9, captured_s=1.25, payload=b"\x01\x02"),
    m.Ready(info=INFO),
    m.ReleaseSlots(stream=1, num_slots=4),
    m.SetPortrait(stream=1, payload=b"abc"),
    m.Shutdown(),
    m.StreamFailed(stream=1, error="OSError", text="no", traceback=""),
    m.StreamOpened(stream=1),
    m.UpdateParams(stream=1, params=PARAMS),
    m.WindowsSkipped(stream=1, first_window=3, num_windows=2),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_equal(message: m.Message) -> None:
    assert m.MessageDecoder().feed(m.encode_message(message)) == [message]


def test_the_examples_cover_every_message_class() -> None:
    classes = {name for name in m.__all__ if isinstance(getattr(m, name), type)}
    assert {type(message).__name__ for message in EXAMPLES} == classes - {"Message", "MessageDecoder"}


def test_messages_that_arrive_together_keep_their_order() -> None:
    stream = b"".join(m.encode_message(message) for message in EXAMPLES)
    assert m.MessageDecoder().feed(stream) == EXAMPLES


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"type": "Bogus"}, "message type is 'Bogus', but no such message exists"),
        ({"type": ["a"]}, "message type is"),
        ({}, "message type is None"),
        ({"type": "Hello", "pid": 1}, "Hello is incomplete"),
        ({"type": "Hello", "pid": "1", "protocol_version": 1}, "Hello.pid is a str"),
        ({"type": "Hello", "pid": True, "protocol_version": 1}, "Hello.pid is a bool"),
        ({"type": "Hello", "pid": 1, "protocol_version": 1, "extra": 0}, r"Hello has the unknown fields \['extra'\]"),
        (
            {"type": "UpdateParams", "stream": 1, "params": 3},
            "UpdateParams.params is a int, but it has to be an object",
        ),
        (
            {"type": "FramesMade", "stream": 1, "window": 0, "epoch": 0, "first_frame": 0, "slots": 3, "ledger": None},
            "FramesMade.slots is a int",
        ),
    ],
)
def test_nonsense_is_refused_with_the_place_of_the_mistake(header: dict[str, object], text: str) -> None:
    with pytest.raises(WorkerError, match=text):
        m.MessageDecoder().feed(encode_frame(header))


def test_whole_numbers_are_taken_for_floats() -> None:
    header = {"type": "PushAudio", "stream": 1, "pts": 0, "captured_s": 3}
    (message,) = m.MessageDecoder().feed(encode_frame(header, b"xy"))
    assert message == m.PushAudio(stream=1, pts=0, captured_s=3.0, payload=b"xy")
