"""The pose of a stream: what the published code encodes clip by clip, here block by block."""

from __future__ import annotations

import dataclasses
import threading
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import ConfigError, MediaError
from pipeline.geometry import Placement, place_cover, place_exact
from pipeline.media import VideoFile
from pipeline.models.pose import PoseStream
from pipeline.models.wan_vae import PUBLISHED_WAN_VAE, WanVAE
from pipeline.portrait import PortraitSource
from tests.fakes.film import damage_film, write_film

pytestmark = pytest.mark.numerics

HEIGHT, WIDTH = 32, 16


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    """A tiny network, random."""
    torch.manual_seed(0)
    return WanVAE(dataclasses.replace(PUBLISHED_WAN_VAE, width=8))


def greys(num_pictures: int) -> list[int]:
    return np.random.default_rng(num_pictures).integers(0, 256, num_pictures).tolist()


def pictures(path: Path, *, is_exact: bool = False) -> Tensor:
    """All pictures of a film in the frame, (F, 3, H, W) in [-1, 1]."""
    place = place_exact if is_exact else place_cover
    placement = place(48, 64, height_px=HEIGHT, width_px=WIDTH)
    with VideoFile(path) as file:
        sources = [PortraitSource(Image.fromarray(each), width_px=64, height_px=48) for each in file.pictures()]
    fitted = np.stack([source.place(placement) for source in sources])
    return torch.from_numpy(fitted).movedim(-1, 1).float() / 255 * 2 - 1


def published(vae: WanVAE, film_FCHW: Tensor, num_clips: int) -> Tensor:
    """Written out: black to whole clips of 48 frames, each encoded behind its first frame, which is dropped."""
    missing = 48 * num_clips - len(film_FCHW)
    padded = torch.cat([film_FCHW, -torch.ones(missing, *film_FCHW.shape[1:])])
    latents = []
    for clip in padded.split(48):
        latents.append(vae.encode(torch.cat([clip[:1], clip])[None])[:, :, 1:])
    return torch.cat(latents, 2)


def streamed(stream: PoseStream, num_blocks: int) -> Tensor:
    blocks = [stream.next_block() for _ in range(num_blocks)]
    assert {tuple(block.shape) for block in blocks} == {(1, 16, 3, HEIGHT // 8, WIDTH // 8)}
    return torch.cat(blocks, 2)


@pytest.mark.parametrize("num_pictures", [5, 48, 61, 96])
@pytest.mark.parametrize("is_exact", [False, True])
def test_blocks_are_those_of_the_published_clips(
    vae: WanVAE, tmp_path: Path, num_pictures: int, is_exact: bool
) -> None:
    """Across the end of the film, and two clips behind it, where nothing is encoded any more."""
    path = write_film(tmp_path / "pose.mp4", greys(num_pictures))
    expected = published(vae, pictures(path, is_exact=is_exact), 4)
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH, is_exact=is_exact) as stream:
        actual = streamed(stream, 16)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert torch.equal(actual[:, :, -12:], actual[:, :, -24:-12])
    assert not torch.allclose(actual[:, :, :12], actual[:, :, -12:], atol=0.1)


def test_a_film_of_another_rate_keeps_its_speed(vae: WanVAE, tmp_path: Path) -> None:
    slow = write_film(tmp_path / "slow.mp4", [grey for grey in greys(24) for _ in range(2)])
    fast = write_film(tmp_path / "fast.mp4", [grey for grey in greys(24) for _ in range(4)], rate=Fraction(50))
    with (
        PoseStream(vae, slow, height_px=HEIGHT, width_px=WIDTH) as first,
        PoseStream(vae, fast, height_px=HEIGHT, width_px=WIDTH) as second,
    ):
        torch.testing.assert_close(streamed(first, 4), streamed(second, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rate", "interval"), [(30, 1), (24, 1), (50, 2), (60, 2), (10, 1)])
def test_with_exact_fit_pictures_are_counted_as_the_published_code_counts_them(
    vae: WanVAE, tmp_path: Path, rate: int, interval: int
) -> None:
    greys_of_film = greys(60)
    film = write_film(tmp_path / "film.mp4", greys_of_film, rate=Fraction(rate))
    counted = write_film(tmp_path / "counted.mp4", greys_of_film[::interval])
    expected = published(vae, pictures(counted, is_exact=True), 2)
    with PoseStream(vae, film, height_px=HEIGHT, width_px=WIDTH, is_exact=True) as stream:
        torch.testing.assert_close(streamed(stream, 8), expected, atol=1e-5, rtol=0)


def test_a_film_may_begin_again(vae: WanVAE, tmp_path: Path) -> None:
    path = write_film(tmp_path / "pose.mp4", greys(29))
    film = pictures(path)
    expected = published(vae, torch.cat([film] * 4)[:96], 2)
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH, loops=True) as stream:
        torch.testing.assert_close(streamed(stream, 8), expected, atol=1e-5, rtol=0)


def test_a_long_film_takes_no_more_memory_than_a_short_one(vae: WanVAE, tmp_path: Path) -> None:
    """Counted are the pictures; a block has 12 of 48x64 px and as many of the frame's size."""
    path = write_film(tmp_path / "pose.mp4", greys(800))
    tracemalloc.start()
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream:
        streamed(stream, 4)
        _, early_bytes = tracemalloc.get_traced_memory()
        streamed(stream, 60)
        _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < early_bytes + 12 * 48 * 64 * 3


def test_what_is_no_film_is_refused_at_once(vae: WanVAE, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"video file .*none.mp4 is unreadable"):
        PoseStream(vae, tmp_path / "none.mp4", height_px=HEIGHT, width_px=WIDTH)


def test_a_film_that_is_damaged_further_on_is_refused_there(vae: WanVAE, tmp_path: Path) -> None:
    path = write_film(tmp_path / "pose.mp4", greys(100))
    damage_film(path)
    with (
        PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream,
        pytest.raises(MediaError, match=r"video file .*pose.mp4 is damaged after"),
    ):
        streamed(stream, 9)


def test_frames_have_to_fit_the_network(vae: WanVAE, tmp_path: Path) -> None:
    path = write_film(tmp_path / "pose.mp4", greys(5))
    with (
        PoseStream(vae, path, height_px=HEIGHT, width_px=20) as stream,
        pytest.raises(ConfigError, match="H and W multiples of 8"),
    ):
        stream.next_block()


def test_skipped_blocks_go_by_and_what_follows_begins_as_a_clip_does(vae: WanVAE, tmp_path: Path) -> None:
    """Within a clip and over its edge; the next clip is as if nothing had been skipped."""
    path = write_film(tmp_path / "pose.mp4", greys(8 * 12))
    film = pictures(path)
    whole = published(vae, film, 2)

    def encoded(clip: Tensor) -> Tensor:
        return vae.encode(torch.cat([clip[:1], clip])[None])[:, :, 1:]

    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream:
        torch.testing.assert_close(stream.next_block(), whole[:, :, :3], atol=1e-5, rtol=0)
        stream.skip_block()
        torch.testing.assert_close(streamed(stream, 2), encoded(film[24:48]), atol=1e-5, rtol=0)
        torch.testing.assert_close(streamed(stream, 2), whole[:, :, 12:18], atol=1e-5, rtol=0)
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream:
        for _ in range(5):
            stream.skip_block()
        torch.testing.assert_close(streamed(stream, 3), encoded(film[60:96]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_before", [4, 5, 6, 7, 10])
def test_a_skipped_block_leaves_the_black_behind_the_film_as_it_is(
    vae: WanVAE, tmp_path: Path, num_before: int
) -> None:
    """Wherever in a black clip it comes: when its blocks are being kept, or when they are there."""
    path = write_film(tmp_path / "pose.mp4", greys(5))
    expected = published(vae, pictures(path), 4)
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream:
        streamed(stream, num_before)
        stream.skip_block()
        later = streamed(stream, 15 - num_before)
    torch.testing.assert_close(later[:, :, -12:], expected[:, :, -12:], atol=1e-5, rtol=0)


def test_a_film_that_is_damaged_where_blocks_are_skipped_is_refused_at_the_next(vae: WanVAE, tmp_path: Path) -> None:
    path = write_film(tmp_path / "pose.mp4", greys(100))
    damage_film(path)
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream:
        for _ in range(9):
            stream.skip_block()
        with pytest.raises(MediaError, match=r"video file .*pose.mp4 is damaged after"):
            stream.next_block()


def test_a_stream_that_is_closed_does_not_read_what_was_skipped(vae: WanVAE, tmp_path: Path) -> None:
    """The thread that reads is kept busy until the reading of the last block is called off."""
    path = write_film(tmp_path / "pose.mp4", greys(8 * 12))
    may_read = threading.Event()
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream:
        stream._reader.submit(may_read.wait, 20)
        for _ in range(3):
            stream.skip_block()
        stream._pictures.add_done_callback(lambda _: may_read.set())
    assert stream._pictures.cancelled()


def test_the_pictures_of_skipped_blocks_are_not_fitted(
    vae: WanVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block was read ahead, and so may be the one behind the last."""
    path = write_film(tmp_path / "pose.mp4", greys(8 * 12))
    num_fitted, place = [0], PortraitSource.place

    def count(source: PortraitSource, placement: Placement) -> np.ndarray:
        num_fitted[0] += 1
        return place(source, placement)

    monkeypatch.setattr(PortraitSource, "place", count)
    may_read = threading.Event()
    with PoseStream(vae, path, height_px=HEIGHT, width_px=WIDTH) as stream:
        stream._reader.submit(may_read.wait, 20)
        for _ in range(5):
            stream.skip_block()
        may_read.set()
        stream.next_block()
    assert num_fitted[0] in (2 * 12, 3 * 12)
