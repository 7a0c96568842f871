"""People that no training has seen; the drawing is skipped where no EGL driver is installed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tools.bench.heldout import CHUNK_FRAMES, draw_portrait, draw_speaking, open_renderer, sample_sitter
from tools.train.head.renderer import Renderer
from tools.train.speech.visemes import VISEMES

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = open_renderer(64, 96)
    if made is None:
        pytest.skip("no EGL driver for the head generator")
    yield made
    made.close()


def test_a_number_always_names_the_same_person_and_others_are_others() -> None:
    one, again, other = sample_sitter(0), sample_sitter(0), sample_sitter(1)
    np.testing.assert_array_equal(one.pose, again.pose)
    assert np.abs(one.pose - other.pose).max() > 0
    assert np.abs(one.pose).max() < 0.3


def test_a_portrait_is_drawn_the_same_again(renderer: Renderer) -> None:
    first, second = (draw_portrait(renderer, sample_sitter(0)) for _ in range(2))
    assert first.shape == (96, 64, 3)
    np.testing.assert_array_equal(first, second)
    assert (draw_portrait(renderer, sample_sitter(1)) != first).any()


def test_a_speaking_person_opens_the_mouth_where_the_labels_do(renderer: Renderer) -> None:
    """The second half says a long ah; the clip is longer than one part."""
    count = CHUNK_FRAMES + 12
    visemes = np.zeros((count, len(VISEMES)), np.float32)
    visemes[: count // 2, VISEMES.index("PP")] = 1
    visemes[count // 2 :, VISEMES.index("aa")] = 1
    parts = list(draw_speaking(renderer, sample_sitter(0), visemes, np.ones(count, np.float32)))
    assert [len(part.frames) for part in parts] == [CHUNK_FRAMES, 12]
    landmarks = np.concatenate([part.landmarks for part in parts])
    gap_px = landmarks[:, 3, 1] - landmarks[:, 2, 1]
    assert gap_px[count // 2 :].min() > gap_px[: count // 2].max() + 2
