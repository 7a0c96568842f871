"""Movies of what was measured."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tools.bench.movies import recorded

pytestmark = pytest.mark.unit


def pictures(count: int) -> list[np.ndarray]:
    """Grey pictures that grow lighter."""
    return [np.full((64, 64, 3), 40 + 8 * index, np.uint8) for index in range(count)]


def test_frames_pass_unchanged_and_are_written_with_their_sound(tmp_path: Path) -> None:
    path = tmp_path / "new" / "movie.mp4"
    given = pictures(10)
    passed = list(recorded(given, np.zeros(6400, np.int16), path))
    assert all(a is b for a, b in zip(given, passed, strict=True))
    with av.open(str(path)) as movie:
        decoded = [frame.to_ndarray(format="rgb24") for frame in movie.decode(video=0)]
        assert len(movie.streams.audio) == 1
    assert len(decoded) == 10
    assert [int(frame.mean()) for frame in decoded] == pytest.approx([int(p.mean()) for p in given], abs=3)


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    assert len(list(recorded(pictures(3), np.zeros(1920, np.int16), None))) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_movie_that_is_given_up_leaves_no_file(tmp_path: Path) -> None:
    frames = recorded(pictures(5), np.zeros(3200, np.int16), tmp_path / "movie.mp4")
    next(frames)
    frames.close()
    assert list(tmp_path.iterdir()) == []
