"""Tests of server/onset.py: utterances begin after a pause, and each is shown for the first time once."""

import numpy as np
import pytest

from server.microphone import Chunk
from server.onset import Onset

pytestmark = pytest.mark.unit

FRAME = 640


def chunk(frame: int, *, value: int) -> Chunk:
    """The sound of one frame."""
    return Chunk(position=frame * FRAME, pcm=np.full(FRAME, value, np.int16))


def hear(onset: Onset, frames: range, *, value: int) -> None:
    for frame in frames:
        onset.hear(chunk(frame, value=value), now_s=frame / 25)


def test_sound_after_half_a_second_of_silence_is_an_utterance_until_its_first_frame_is_shown() -> None:
    onset = Onset(quiet_dbfs=-50.0)
    hear(onset, range(13), value=10)
    hear(onset, range(13, 20), value=5000)
    assert onset.show(12, now_s=1.2) is None
    assert onset.show(14, now_s=1.32) == pytest.approx(1.32 - 13 / 25)
    assert onset.show(15, now_s=1.36) is None


def test_a_shorter_pause_begins_no_utterance() -> None:
    onset = Onset(quiet_dbfs=-50.0)
    hear(onset, range(12), value=10)
    hear(onset, range(12, 20), value=5000)
    hear(onset, range(20, 32), value=0)
    hear(onset, range(32, 40), value=5000)
    assert onset.show(40, now_s=2.0) is None


def test_a_new_utterance_takes_the_place_of_one_that_was_never_shown() -> None:
    onset = Onset(quiet_dbfs=-50.0)
    hear(onset, range(13), value=0)
    hear(onset, range(13, 14), value=5000)
    hear(onset, range(14, 30), value=0)
    hear(onset, range(30, 31), value=5000)
    assert onset.show(20, now_s=2.0) is None
    assert onset.show(30, now_s=2.0) == pytest.approx(2.0 - 30 / 25)
