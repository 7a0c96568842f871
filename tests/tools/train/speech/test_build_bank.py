"""Making the banks: labels move with the sound, sounds that are no speech rest."""

from __future__ import annotations

import numpy as np
import pytest

from tools.train.speech.build_bank import JOBS, Job, label_utterance, make_quiet
from tools.train.speech.sources import SOURCES, Utterance
from tools.train.speech.visemes import VISEMES, Phone

pytestmark = pytest.mark.unit

AA = VISEMES.index("aa")


def _beep() -> Utterance:
    """A second of near-silence with a loud "aa" from 0.4 to 0.6 s."""
    sound = np.random.default_rng(0).normal(0, 1e-4, 16_000).astype(np.float32)
    sound[6_400:9_600] = np.sin(np.arange(3_200) * 0.3)
    phones = [Phone(0.0, 0.4, "sil"), Phone(0.4, 0.6, "aa"), Phone(0.6, 1.0, "sil")]
    return Utterance(sound=sound, phones=phones, voice="test/beep", is_held_out=False)


@pytest.mark.parametrize("seed", range(6))
def test_labels_stay_on_their_sound_whatever_speed_and_pauses_are_drawn(seed: int) -> None:
    part = label_utterance(_beep(), np.random.default_rng(seed))
    num_frames = len(part.classes)
    assert part.mel_codes.shape == (4 * num_frames, 80)
    loud = np.flatnonzero(part.loudness > 0.5 * part.loudness.max())
    named = np.flatnonzero(part.classes == AA)
    assert abs(loud.mean() - named.mean()) < 0.8
    assert part.visemes[named, AA].max() > 200


def test_speech_is_brought_to_the_usual_level_give_or_take_three_db() -> None:
    loudest = [label_utterance(_beep(), np.random.default_rng(seed)).loudness.max() / 85 for seed in range(20)]
    assert 0.65 < min(loudest) < max(loudest) < 1.8
    assert max(loudest) > 1.2 * min(loudest)


def test_sounds_that_are_no_speech_have_a_resting_mouth() -> None:
    source = make_quiet(Job(bank="x", source="quiet", minutes=0.3, seed=0))
    assert source.num_frames >= 0.3 * 60 * 25
    assert (source.visemes[:, 0] == 255).all()
    assert not source.visemes[:, 1:].any()
    assert not source.classes.any()
    assert source.runs(held_out=True)
    assert source.runs(held_out=False)


def test_no_two_jobs_hear_the_same_speech() -> None:
    assert {job.source for job in JOBS} == {*SOURCES, "quiet"}
    assert len({(job.source, job.seed, job.skip) for job in JOBS}) == len(JOBS)
    for job in JOBS:
        twins = [other for other in JOBS if (other.source, other.seed) == (job.source, job.seed) and other is not job]
        assert all(twin.skip != job.skip for twin in twins)
