"""The sink of a stream: when it is made, and of what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.attention import KeysValues
from pipeline.models.cache import KVCache
from pipeline.models.dit import DiT
from pipeline.models.sampler import sample_block
from pipeline.models.sink import StreamSink
from pipeline.models.wan_vae import DecoderState, StillPortrait
from pipeline.schedule import make_schedule

pytestmark = pytest.mark.numerics

SCHEDULE = make_schedule(3)
SHAPE = (1, 16, 3, 8, 8)

Draw = Callable[[str, tuple[int, ...]], Tensor]


class Video:
    """Blocks of one stream, made by hand: the sink is somebody else's business."""

    def __init__(self, dit: DiT, draw: Draw) -> None:
        self._dit, self._draw, self._block = dit, draw, 0
        self._modulation = dit.modulate(SCHEDULE.timesteps)
        self.cache = dit.new_cache(latent_height=8, latent_width=8, num_steps=SCHEDULE.num_steps)

    def next(self) -> Tensor:
        """Make a block."""
        config, block = self._dit.config, self._block
        columns = self._draw(f"columns{block}", (1, config.num_audio_layers, config.audio_dim, 12))
        conditioning = self._dit.condition(self._dit.encode_audio(columns), self._modulation, 3 * block)
        self._block += 1
        return sample_block(self._dit, self._draw(f"noise{block}", SHAPE), SCHEDULE, conditioning, self.cache)


def still(draw: Draw, name: str) -> StillPortrait:
    """A portrait of noise; no decoder is needed here."""
    latents = draw(name, (1, 16, 20, 8, 8))
    return StillPortrait(latents[:, :, :1], latents[:, :, 1:], DecoderState([]))


def text(dit: DiT, draw: Draw, name: str) -> list[KeysValues]:
    return dit.encode_text(draw(name, (1, 5, dit.config.text_dim or 0)))


def prefill(
    dit: DiT, cache: KVCache, portrait: StillPortrait, text: list[KeysValues], own: Tensor | None = None
) -> None:
    """Fill the sink as the published pipeline does; `own` takes the portrait's place."""
    reference = portrait.reference_BCThw[:, :, 0] if own is None else own
    dit.prefill(reference, cache, motion_BCTHW=portrait.motion_BCThw, text=text)


@pytest.fixture
def portrait(draw: Draw) -> StillPortrait:
    """A portrait."""
    return still(draw, "portrait")


@pytest.fixture
def prompt(tiny_published: DiT, draw: Draw) -> list[KeysValues]:
    """An encoded prompt."""
    return text(tiny_published, draw, "prompt")


def run(video: Video, sink: StreamSink, num_blocks: int) -> tuple[list[Tensor], list[bool]]:
    """Make blocks; tell for each whether the sink was computed before it."""
    made, computed = [], []
    for _ in range(num_blocks):
        computed.append(sink.before_block())
        made.append(video.next())
        sink.after_block(made[-1])
    return made, computed


def test_after_a_clip_the_first_latent_frame_of_the_stream_becomes_the_reference(
    tiny_published: DiT, draw: Draw, portrait: StillPortrait, prompt: list[KeysValues]
) -> None:
    """Once: before the first and before the fifth block, with the same past."""
    dit = tiny_published
    expected_video = Video(dit, draw)
    prefill(dit, expected_video.cache, portrait, prompt)
    expected = [expected_video.next() for _ in range(4)]
    prefill(dit, expected_video.cache, portrait, prompt, own=expected[0][:, :, 0])
    expected += [expected_video.next() for _ in range(6)]
    video = Video(dit, draw)
    made, computed = run(video, StreamSink(dit, video.cache, portrait=portrait, text=prompt), 10)
    assert computed == [True, False, False, False, True, False, False, False, False, False]
    torch.testing.assert_close(torch.cat(made, 2), torch.cat(expected, 2), atol=0, rtol=0)


def test_a_stream_may_keep_its_portrait(
    tiny_published: DiT, draw: Draw, portrait: StillPortrait, prompt: list[KeysValues]
) -> None:
    dit = tiny_published
    videos = [Video(dit, draw), Video(dit, draw)]
    keeps, refreshes = (
        run(video, StreamSink(dit, video.cache, portrait=portrait, text=prompt, refreshes=is_last), 5)
        for video, is_last in zip(videos, (False, True), strict=True)
    )
    assert keeps[1] == [True, False, False, False, False]
    assert torch.equal(torch.cat(keeps[0][:4], 2), torch.cat(refreshes[0][:4], 2))
    assert not torch.allclose(keeps[0][4], refreshes[0][4], atol=1e-2)


def test_the_kept_latent_frame_does_not_hold_the_block_nor_follow_its_changes(
    tiny_published: DiT, draw: Draw, portrait: StillPortrait, prompt: list[KeysValues]
) -> None:
    dit = tiny_published
    results = []
    for spoils in (False, True):
        video = Video(dit, draw)
        sink = StreamSink(dit, video.cache, portrait=portrait, text=prompt)
        made, _ = run(video, sink, 4)
        if spoils:
            made[0].zero_()
        results += run(video, sink, 1)[0]
    assert torch.equal(*results)


def test_changes_take_effect_together_at_the_next_block(
    tiny_published: DiT, draw: Draw, portrait: StillPortrait, prompt: list[KeysValues]
) -> None:
    """A changed portrait is the reference from then on: the stream's first latent frame shows another one."""
    dit, other, reply = tiny_published, still(draw, "other"), text(tiny_published, draw, "reply")
    expected_video = Video(dit, draw)
    prefill(dit, expected_video.cache, portrait, prompt)
    expected = [expected_video.next() for _ in range(2)]
    prefill(dit, expected_video.cache, other, reply)
    expected += [expected_video.next() for _ in range(4)]
    video = Video(dit, draw)
    sink = StreamSink(dit, video.cache, portrait=portrait, text=prompt)
    made, _ = run(video, sink, 2)
    sink.set_portrait(other)
    sink.set_text(reply)
    more, computed = run(video, sink, 4)
    assert computed == [True, False, False, False]
    torch.testing.assert_close(torch.cat(made + more, 2), torch.cat(expected, 2), atol=0, rtol=0)


def test_a_new_text_leaves_the_refreshed_reference(
    tiny_published: DiT, draw: Draw, portrait: StillPortrait, prompt: list[KeysValues]
) -> None:
    dit, reply = tiny_published, text(tiny_published, draw, "reply")
    video = Video(dit, draw)
    sink = StreamSink(dit, video.cache, portrait=portrait, text=prompt)
    made, _ = run(video, sink, 5)
    sink.set_text(reply)
    (block,), (is_computed,) = run(video, sink, 1)
    expected_video = Video(dit, draw)
    prefill(dit, expected_video.cache, portrait, prompt)
    for _ in range(4):
        expected_video.next()
    for words in (prompt, reply):
        prefill(dit, expected_video.cache, portrait, words, own=made[0][:, :, 0])
        expected = expected_video.next()
    assert is_computed
    assert torch.equal(block, expected)
