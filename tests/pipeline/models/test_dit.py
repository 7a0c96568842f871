"""The transformer: streaming equals the whole clip, streams do not mix, and what does not fit is refused."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models.cache import KVCache
from pipeline.models.dit import DiT
from pipeline.models.dit_config import DiTConfig
from pipeline.portrait import Crop
from pipeline.speakers import draw_masks, to_tokens

pytestmark = pytest.mark.numerics

TIMESTEP = 602.15
HEIGHT, WIDTH = 8, 8
ROUNDING = 1e-3
"""Relative length of a difference between two orders of computing; the published text norm makes bfloat16 steps of it.

Up to 2.5e-5 is seen, with instruction sets from SSE to AMX; a ring that is a block too long makes 1.3e-2.
"""

Draw = Callable[[str, tuple[int, ...]], Tensor]
RelativeError = Callable[[Tensor, Tensor], float]


@dataclasses.dataclass
class Clip:
    """Inputs of a whole clip."""

    latents: Tensor
    reference: Tensor
    columns: Tensor
    motion_signal: Tensor | None
    motion: Tensor | None
    text_rows: Tensor | None

    def part(self, rows: slice) -> "Clip":
        """Some of the batch."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Clip(**{name: None if part is None else part[rows] for name, part in parts.items()})


def make_clip(config: DiTConfig, draw: Draw, *, num_blocks: int, batch: int = 1, name: str = "clip") -> Clip:
    frames, channels = 3 * num_blocks, config.latent_channels
    return Clip(
        latents=draw(f"{name}.latents", (batch, channels, frames, HEIGHT, WIDTH)),
        reference=draw(f"{name}.reference", (batch, channels, HEIGHT, WIDTH)),
        columns=draw(f"{name}.columns", (batch, config.num_audio_layers, config.audio_dim, 4 * frames)),
        motion_signal=draw(f"{name}.signal", (batch, frames, 28)) if config.motion_signal_dim else None,
        motion=draw(f"{name}.motion", (batch, channels, 19, HEIGHT, WIDTH)) if config.has_motion_packer else None,
        text_rows=draw(f"{name}.text", (batch, 5, config.text_dim)) if config.text_dim else None,
    )


def forward_clip(dit: DiT, clip: Clip, timestep: float = TIMESTEP, **options: Any) -> Tensor:
    text = None if clip.text_rows is None else dit.encode_text(clip.text_rows)
    timesteps = torch.full((len(clip.latents),), timestep)
    return dit.forward_clip(
        clip.latents,
        clip.reference,
        timesteps,
        clip.columns,
        clip.motion_signal,
        motion_BCTHW=clip.motion,
        text=text,
        **options,
    )


class Streamer:
    """Runs a clip block by block at one noise level."""

    def __init__(self, dit: DiT, clip: Clip, *, start: int = 0) -> None:
        self.dit, self.clip, self.start, self.block = dit, clip, start, 0
        self.cache: KVCache = dit.new_cache(
            latent_height=HEIGHT, latent_width=WIDTH, num_steps=1, batch=len(clip.latents)
        )
        self.prefill(clip.reference)

    def prefill(self, reference: Tensor) -> None:
        rows = self.clip.text_rows
        text = None if rows is None else self.dit.encode_text(rows)
        self.dit.prefill(reference.to(self.dit.dtype), self.cache, motion_BCTHW=self.clip.motion, text=text)

    def next(self, pose: Tensor | None = None) -> Tensor:
        clip, dit = self.clip, self.dit
        span = slice(3 * self.block, 3 * self.block + 3)
        signal = None if clip.motion_signal is None else clip.motion_signal[:, span]
        conditioning = dit.condition(
            dit.encode_audio(clip.columns[..., 12 * self.block : 12 * self.block + 12]),
            dit.modulate([TIMESTEP], signal),
            self.start + 3 * self.block,
            pose_BCTHW=pose,
        )
        self.block += 1
        return dit.denoise(clip.latents[:, :, span].to(dit.dtype), 0, conditioning, self.cache)

    def all(self) -> Tensor:
        return torch.cat([self.next() for _ in range(self.clip.latents.shape[2] // 3)], dim=2)


@pytest.fixture(params=["published", "embedded"])
def dit(request: pytest.FixtureRequest, tiny_published: DiT, tiny_embedded: DiT) -> DiT:
    """Both architectures in turn."""
    return {"published": tiny_published, "embedded": tiny_embedded}[request.param]


def test_streaming_across_the_wrap_of_the_ring_equals_the_whole_clip(
    dit: DiT, draw: Draw, relative_error: RelativeError
) -> None:
    """Seven blocks: rings of three and four blocks wrap twice and once."""
    clip = make_clip(dit.config, draw, num_blocks=7, batch=2)
    assert relative_error(Streamer(dit, clip).all(), forward_clip(dit, clip)) < ROUNDING


def test_a_clip_shorter_than_the_ring_equals_streaming(dit: DiT, draw: Draw, relative_error: RelativeError) -> None:
    clip = make_clip(dit.config, draw, num_blocks=1)
    assert relative_error(Streamer(dit, clip).all(), forward_clip(dit, clip)) < ROUNDING


def test_no_block_sees_the_future(dit: DiT, draw: Draw) -> None:
    clip = make_clip(dit.config, draw, num_blocks=4)
    changed = make_clip(dit.config, draw, num_blocks=4, name="other")
    for name in ("latents", "motion_signal"):
        part = getattr(clip, name)
        if part is not None:
            axis = 2 if name == "latents" else 1
            kept, new = part.split([6, 6], dim=axis)[0], getattr(changed, name).split([6, 6], dim=axis)[1]
            setattr(changed, name, torch.cat([kept, new], dim=axis))
    changed.columns[..., :24] = clip.columns[..., :24]
    changed = dataclasses.replace(changed, reference=clip.reference, motion=clip.motion, text_rows=clip.text_rows)
    before, after = forward_clip(dit, clip), forward_clip(dit, changed)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert not torch.allclose(before[:, :, 6:], after[:, :, 6:], atol=0.1)


def test_every_input_matters(dit: DiT, draw: Draw) -> None:
    """An input that the network ignored would pass the tests above."""
    clip = make_clip(dit.config, draw, num_blocks=2)
    other = make_clip(dit.config, draw, num_blocks=2, name="other")
    before = forward_clip(dit, clip)
    for field in dataclasses.fields(Clip):
        if getattr(clip, field.name) is not None:
            changed = dataclasses.replace(clip, **{field.name: getattr(other, field.name)})
            assert (forward_clip(dit, changed) - before).abs().max() > 1e-2, field.name
    assert (forward_clip(dit, clip, timestep=900.0) - before).abs().max() > 1e-2


def test_a_stream_goes_on_at_position_one_million(
    tiny_embedded: DiT, draw: Draw, relative_error: RelativeError
) -> None:
    """Only distances count, so far away the result is the same up to the rounding of the factors to float16."""
    clip = make_clip(tiny_embedded.config, draw, num_blocks=4)
    far = Streamer(tiny_embedded, clip, start=1_000_008).all()
    assert relative_error(far, Streamer(tiny_embedded, clip).all()) < 5e-3


def test_the_same_input_gives_the_same_output_bit_for_bit(dit: DiT, draw: Draw) -> None:
    clip = make_clip(dit.config, draw, num_blocks=2)
    assert torch.equal(Streamer(dit, clip).all(), Streamer(dit, clip).all())


def test_interleaved_streams_do_not_mix(dit: DiT, draw: Draw) -> None:
    clips = [make_clip(dit.config, draw, num_blocks=5, name=name) for name in ("one", "two")]
    alone = [Streamer(dit, clip).all() for clip in clips]
    streamers = [Streamer(dit, clip) for clip in clips]
    turns = [[streamer.next() for streamer in streamers] for _ in range(5)]
    for stream, expected in enumerate(alone):
        assert torch.equal(torch.cat([turn[stream] for turn in turns], dim=2), expected)


def test_a_batch_of_two_equals_two_batches_of_one(dit: DiT, draw: Draw, relative_error: RelativeError) -> None:
    clip = make_clip(dit.config, draw, num_blocks=5, batch=2)
    streamed, whole = Streamer(dit, clip).all(), forward_clip(dit, clip)
    for row in range(2):
        alone = clip.part(slice(row, row + 1))
        assert relative_error(streamed[row : row + 1], Streamer(dit, alone).all()) < ROUNDING
        assert relative_error(whole[row : row + 1], forward_clip(dit, alone)) < ROUNDING


def test_every_clip_of_a_batch_has_its_own_noise_level(
    tiny_embedded: DiT, draw: Draw, relative_error: RelativeError
) -> None:
    clip = make_clip(tiny_embedded.config, draw, num_blocks=2, batch=2)
    together = tiny_embedded.forward_clip(
        clip.latents, clip.reference, torch.tensor([100.0, 900.0]), clip.columns, clip.motion_signal
    )
    for row, timestep in enumerate([100.0, 900.0]):
        alone = forward_clip(tiny_embedded, clip.part(slice(row, row + 1)), timestep)
        assert relative_error(together[row : row + 1], alone) < 1e-4


def test_the_reference_of_a_clip_can_be_placed_by_number_or_by_tensor(tiny_embedded: DiT, draw: Draw) -> None:
    """Without a placement it goes ahead of every block, as in streaming."""
    clip = make_clip(tiny_embedded.config, draw, num_blocks=2)
    as_streamed = forward_clip(tiny_embedded, clip)
    placed = forward_clip(tiny_embedded, clip, reference_position=torch.tensor([30, 33]))
    assert torch.allclose(placed, as_streamed, atol=1e-5)
    by_number = forward_clip(tiny_embedded, clip, reference_position=40)
    assert torch.allclose(forward_clip(tiny_embedded, clip, reference_position=torch.tensor(40)), by_number, atol=1e-5)
    assert not torch.allclose(by_number, as_streamed, atol=1e-3)


def test_encoded_audio_may_be_handed_over_instead_of_columns(tiny_embedded: DiT, draw: Draw) -> None:
    clip = make_clip(tiny_embedded.config, draw, num_blocks=2)
    tokens = tiny_embedded.encode_audio(clip.columns)
    timestep = torch.tensor([TIMESTEP])
    given = tiny_embedded.forward_clip(clip.latents, clip.reference, timestep, tokens, clip.motion_signal)
    assert torch.equal(given, forward_clip(tiny_embedded, clip))


def test_a_new_reference_keeps_the_ring_and_an_equal_one_changes_nothing(dit: DiT, draw: Draw) -> None:
    clip = make_clip(dit.config, draw, num_blocks=3)
    undisturbed, same, other = (Streamer(dit, clip) for _ in range(3))
    for streamer in (undisturbed, same, other):
        streamer.next()
    same.prefill(clip.reference)
    other.prefill(draw("another.reference", tuple(clip.reference.shape)))
    expected = undisturbed.next()
    assert torch.equal(same.next(), expected)
    assert not torch.allclose(other.next(), expected, atol=1e-3)


def test_a_pose_of_zeros_is_no_pose(tiny_published: DiT, draw: Draw, relative_error: RelativeError) -> None:
    clip = make_clip(tiny_published.config, draw, num_blocks=1)
    without = Streamer(tiny_published, clip).next()
    zeros = torch.zeros_like(clip.latents)
    assert relative_error(Streamer(tiny_published, clip).next(pose=zeros), without) < 1e-5
    assert relative_error(Streamer(tiny_published, clip).next(pose=zeros + 1), without) > 1e-2


def test_bfloat16_weights_come_close_to_float32(
    dit: DiT, build: Callable[[DiTConfig], DiT], draw: Draw, relative_error: RelativeError
) -> None:
    clip = make_clip(dit.config, draw, num_blocks=3)
    expected = Streamer(dit, clip).all()
    rounded = build(dit.config).to(torch.bfloat16)
    actual = Streamer(rounded, clip).all()
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual.float(), expected) < 0.05


def test_training_reaches_every_parameter_under_autocast(
    dit: DiT, build: Callable[[DiTConfig], DiT], draw: Draw, relative_error: RelativeError
) -> None:
    """The pose encoder's weight, which a clip without pose does not use, is the one exception."""
    clip = make_clip(dit.config, draw, num_blocks=5, batch=2)
    trained = build(dit.config).requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = forward_clip(trained, clip)
    assert relative_error(velocity.detach().float(), forward_clip(dit, clip)) < 0.05
    velocity.float().square().mean().backward()
    still = {name for name, p in trained.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert still <= {"cond_encoder.weight"}


def test_the_halves_of_a_block_compile_as_one_graph(tiny_embedded: DiT, draw: Draw) -> None:
    block = tiny_embedded.blocks[0]
    x = draw("x", (1, 12, tiny_embedded.config.dim))
    rows = [draw(f"row{i}", (1, 3, 1, tiny_embedded.config.dim)) for i in range(6)]
    queries, (keys, values) = torch.compile(block.project, backend="eager", fullgraph=True)(x, rows)
    expected_queries, expected = block.project(x, rows)
    for actual, wanted in [(queries, expected_queries), (keys, expected[0]), (values, expected[1])]:
        assert torch.allclose(actual, wanted, atol=1e-5)
    finished = torch.compile(block.finish, backend="eager", fullgraph=True)(x, values, rows, None)
    assert torch.allclose(finished, block.finish(x, values, rows, None), atol=1e-5)


def test_the_text_is_asked_with_queries_rounded_to_bfloat16(tiny_published: DiT, draw: Draw) -> None:
    """Rounding before and after the norm belongs to the published model, in float32 too."""
    block, clip = tiny_published.blocks[0], make_clip(tiny_published.config, draw, num_blocks=1)
    asked: list[Tensor] = []
    hook = block.cross_attn.q.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    forward_clip(tiny_published, clip)
    hook.remove()
    assert asked
    for normed in asked:
        assert normed.dtype == torch.float32
        assert torch.equal(normed, normed.bfloat16().float())


def test_a_fresh_network_predicts_no_velocity(tiny_embedded: DiT, draw: Draw) -> None:
    clip = make_clip(tiny_embedded.config, draw, num_blocks=1)
    assert forward_clip(DiT(tiny_embedded.config).requires_grad_(False), clip).abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion_signal": None}, "0 numbers per latent frame, but the model takes 28"),
        ({"motion": torch.zeros(1, 8, 19, HEIGHT, WIDTH)}, "motion latents given: True, motion packer: False"),
        ({"latents": torch.zeros(1, 8, 4, HEIGHT, WIDTH)}, "4 latent frames are no multiple of 3"),
        ({"reference": torch.zeros(1, 8, 3, WIDTH)}, "3x8, but both have to be multiples of 2"),
        ({"text_rows": torch.zeros(1, 5, 48)}, "this model knows no text"),
    ],
)
def test_what_the_embedded_model_does_not_take_is_refused(
    tiny_embedded: DiT, draw: Draw, change: dict[str, Tensor | None], message: str
) -> None:
    clip = dataclasses.replace(make_clip(tiny_embedded.config, draw, num_blocks=1), **change)
    with pytest.raises(ValueError, match=message):
        forward_clip(tiny_embedded, clip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion_signal": torch.zeros(1, 3, 28)}, "28 numbers per latent frame, but the model takes 0"),
        ({"motion": None}, "motion latents given: False, motion packer: True"),
        ({"text_rows": None}, "text given: False, model knows text: True"),
        ({"text_rows": torch.zeros(1, 33, 48)}, "33 rows, but the model takes at most 32"),
        ({"reference": torch.zeros(1, 16, 12, 8)}, "12x8, but both have to be multiples of 8"),
    ],
)
def test_what_the_published_model_does_not_take_is_refused(
    tiny_published: DiT, draw: Draw, change: dict[str, Tensor | None], message: str
) -> None:
    clip = dataclasses.replace(make_clip(tiny_published.config, draw, num_blocks=1), **change)
    with pytest.raises(ValueError, match=message):
        forward_clip(tiny_published, clip)


def test_a_model_without_pose_encoder_refuses_a_pose(tiny_embedded: DiT, draw: Draw) -> None:
    clip = make_clip(tiny_embedded.config, draw, num_blocks=1)
    with pytest.raises(ValueError, match="no pose encoder"):
        Streamer(tiny_embedded, clip).next(pose=clip.latents)


def test_each_speaker_of_a_picture_has_a_part_of_it(
    tiny_published: DiT, draw: Draw, relative_error: RelativeError
) -> None:
    """A speaker who is nowhere is not heard; one who shares the picture changes it; their order does not matter.

    Products of other sizes round differently, and the text's norm makes bfloat16 steps of that.
    """
    dit, clip = tiny_published, make_clip(tiny_published.config, draw, num_blocks=1)
    columns = torch.cat([clip.columns, draw("reply", tuple(clip.columns.shape))])
    whole = Crop(x_px=0, y_px=0, width_px=64, height_px=64)
    regions = draw_masks([(0, 0, 32, 64), (32, 0, 64, 64)], height_px=64, width_px=64)
    regions_VN = torch.from_numpy(to_tokens(regions, whole, token_rows=4, token_columns=4)).flatten(1)

    def made(columns: Tensor, masks: Tensor | None) -> Tensor:
        streamer, audio = Streamer(dit, clip), dit.encode_audio(columns)
        conditioning = dit.condition(audio, dit.modulate([TIMESTEP]), 0, masks_VN=masks)
        return dit.denoise(clip.latents, 0, conditioning, streamer.cache)

    alone = made(columns[:1], None)
    assert relative_error(made(columns, torch.stack([torch.ones(16), torch.zeros(16)])), alone) < 5e-3
    assert regions_VN.tolist() == [4 * [True, False, False, False], 4 * [False, False, False, True]]
    shared = made(columns, regions_VN)
    assert relative_error(shared, alone) > 5e-2
    assert relative_error(made(columns.flip(0), regions_VN.flip(0)), shared) < 5e-3


def test_masks_and_speakers_have_to_be_as_many(tiny_published: DiT, draw: Draw) -> None:
    audio = tiny_published.encode_audio(draw("columns", (2, 25, 16, 12)))
    with pytest.raises(ValueError, match="3 masks were given for 2 speakers"):
        tiny_published.condition(audio, tiny_published.modulate([TIMESTEP]), 0, masks_VN=torch.ones(3, 16))
