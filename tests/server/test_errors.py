"""Tests of server/errors.py: the drawing of the tree, and what crosses the wire."""

import re

import pytest

import server.errors as module
from pipeline.errors import (
    AvatarError,
    ConfigError,
    MediaError,
    StreamLimitReached,
    WeightsError,
    WorkerCrashed,
)
from server.errors import (
    AddressTaken,
    AnswerTimeout,
    EngineNotReady,
    NotFound,
    RequestError,
    SessionError,
    SessionLimitReached,
    SignalingError,
    TooLarge,
    UnknownHost,
    UnsupportedMedia,
    reply_for,
)

pytestmark = pytest.mark.unit

ERRORS: list[tuple[AvatarError, int, str, str]] = [
    (NotFound("portrait", "x"), 404, "not_found", "portrait 'x' does not exist"),
    (UnknownHost("x"), 421, "unknown_host", "host 'x' is no name of this server"),
    (TooLarge("portrait", 10), 413, "too_large", "the portrait is larger than 10 bytes"),
    (UnsupportedMedia("Content-Type", "'a'", "it has to be b"), 415, "unsupported_media", "but it has to be b"),
    (MediaError("portrait", "1x1 px", "it has to be larger"), 422, "bad_portrait", "portrait is 1x1 px"),
    (SessionLimitReached(1), 503, "session_limit_reached", "all 1 sessions are taken"),
    (StreamLimitReached(1), 503, "session_limit_reached", "all 1 streams"),
    (EngineNotReady("starting"), 503, "engine_not_ready", "the engine is starting"),
    (WorkerCrashed(0, -9), 503, "engine_not_ready", "worker 0 ended"),
    (AnswerTimeout(8.0), 503, "answer_timeout", "no answer within 8 s"),
    (SignalingError("no mid"), 400, "bad_sdp", "no mid"),
    (RequestError("seed: too small"), 400, "bad_request", "seed: too small"),
    (ConfigError("prompt", "x", "there is none"), 400, "bad_request", "prompt is 'x'"),
    (WeightsError("w.bin", "gone"), 500, "internal", "its log says why"),
]


@pytest.mark.parametrize(("error", "status", "code", "message"), ERRORS, ids=lambda value: type(value).__name__)
def test_each_error_has_its_status_code_and_sentence(error: AvatarError, status: int, code: str, message: str) -> None:
    reply = reply_for(error, retry_after_s=7)
    assert (reply.status, reply.code) == (status, code)
    assert message in reply.message
    assert reply.retry_after_s == (7 if status == 503 else None)
    assert ("retry_after_s" in str(reply.body)) == (status == 503)


def test_the_drawing_shows_every_error_of_the_branch() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", module.__doc__ or ""))
    branches = [AddressTaken, SessionError, *SessionError.__subclasses__()]
    assert drawn == {cls.__name__ for cls in branches}


def test_sentences_are_lower_case_without_full_stop_and_do_not_echo_floods() -> None:
    for error, *_ in ERRORS:
        assert str(error)[0].islower() or str(error).startswith("Content-Type")
        assert not str(error).endswith(".")
    assert len(str(NotFound("portrait", "x" * 10_000))) < 200
