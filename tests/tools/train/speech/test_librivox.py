"""The held-out real speech and its labels; skipped where the Debian data or the aligner is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.geometry import SAMPLES_PER_FRAME
from tools.train.speech.librivox import LIBRIVOX_FOLDER, HeldOutClip, load_librivox
from tools.train.speech.visemes import VISEMES, jaw_opening

pytestmark = pytest.mark.numerics

needs_data = pytest.mark.skipif(
    not LIBRIVOX_FOLDER.is_dir(), reason="the Debian package pocketsphinx-testdata is not installed"
)


@pytest.fixture(scope="module")
def clips() -> list[HeldOutClip]:
    pytest.importorskip("pocketsphinx", reason="pocketsphinx (extra `train`) is not installed")
    return load_librivox()


@needs_data
def test_there_are_five_clips_of_25_s_in_all(clips: list[HeldOutClip]) -> None:
    assert len(clips) == 5
    assert sum(len(clip.pcm) for clip in clips) / 16_000 == pytest.approx(24.8, abs=0.3)


@needs_data
def test_labels_cover_every_frame(clips: list[HeldOutClip]) -> None:
    for clip in clips:
        num_frames = len(clip.pcm) // SAMPLES_PER_FRAME
        assert len(clip.pcm) == num_frames * SAMPLES_PER_FRAME
        assert clip.visemes.shape == (num_frames, len(VISEMES))
        assert clip.loudness.shape == (num_frames,)
        np.testing.assert_allclose(clip.visemes.sum(axis=1), 1.0, atol=1e-5)


@needs_data
def test_there_is_a_closure_for_every_p_b_and_m_of_the_text(clips: list[HeldOutClip]) -> None:
    for clip in clips:
        assert len(clip.closures) == sum(phone.viseme == "PP" for phone in clip.phones)
    # "he was not an ill disposed young man": the p of disposed and the m of man.
    assert len(clips[1].closures) == 2


@needs_data
def test_the_labelled_jaw_follows_the_loudness_of_the_recording(clips: list[HeldOutClip]) -> None:
    loudness = np.concatenate([clip.loudness for clip in clips])
    jaw = np.concatenate([jaw_opening(clip.visemes, np.ones_like(clip.loudness)) for clip in clips])
    aligned = np.corrcoef(loudness, jaw)[0, 1]
    assert aligned > 0.4
    assert aligned > np.corrcoef(loudness, np.roll(jaw, 7))[0, 1] + 0.2


def test_absent_data_is_reported_with_the_package_to_install(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="pocketsphinx-testdata has to be installed"):
        load_librivox(tmp_path)
