"""The packed transformer: the same stream as the plain one, and no less exact in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.packed_dit import pack_dit
from pipeline.models.precision import cast_bulk
from pipeline.models.sampler import sample_block
from pipeline.schedule import make_schedule

pytestmark = pytest.mark.numerics

Draw = Callable[[str, tuple[int, ...]], Tensor]
RelativeError = Callable[[Tensor, Tensor], float]
SCHEDULE = make_schedule(3)


def packed(dit: DiT, dtype: torch.dtype = torch.float32) -> DiT:
    """A packed copy."""
    network = copy.deepcopy(dit)
    cast_bulk(network, dtype)
    pack_dit(network)
    return network


def stream(dit: DiT, draw: Draw, *, num_blocks: int = 5, batch: int = 1) -> Tensor:
    """Latents of a stream longer than the ring, float32."""
    config = dit.config
    channels = config.latent_channels
    cache = dit.new_cache(latent_height=8, latent_width=8, num_steps=SCHEDULE.num_steps, batch=batch)
    motion = draw("motion", (batch, channels, 19, 8, 8)).to(dit.dtype) if config.has_motion_packer else None
    text = dit.encode_text(draw("text", (batch, 5, config.text_dim))) if config.text_dim else None
    dit.prefill(draw("reference", (batch, channels, 8, 8)).to(dit.dtype), cache, motion_BCTHW=motion, text=text)
    made = []
    for block in range(num_blocks):
        signal = draw(f"signal{block}", (batch, 3, 28)) if config.motion_signal_dim else None
        audio = dit.encode_audio(draw(f"columns{block}", (batch, config.num_audio_layers, config.audio_dim, 12)))
        conditioning = dit.condition(audio, dit.modulate(SCHEDULE.timesteps, signal), 3 * block)
        noise = draw(f"noise{block}", (batch, channels, 3, 8, 8))
        made.append(sample_block(dit, noise, SCHEDULE, conditioning, cache).float())
    return torch.cat(made, 2)


@pytest.mark.parametrize("has_onednn", [True, False])
def test_a_packed_stream_is_the_plain_one(
    tiny_embedded: DiT,
    draw: Draw,
    relative_error: RelativeError,
    monkeypatch: pytest.MonkeyPatch,
    has_onednn: bool,
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", has_onednn)
    assert relative_error(stream(packed(tiny_embedded), draw), stream(tiny_embedded, draw)) < 1e-5


def test_streams_in_step_are_packed_as_well(tiny_embedded: DiT, draw: Draw, relative_error: RelativeError) -> None:
    plain = stream(tiny_embedded, draw, num_blocks=2, batch=2)
    assert relative_error(stream(packed(tiny_embedded), draw, num_blocks=2, batch=2), plain) < 1e-5


def test_the_published_architecture_can_be_packed_too(
    tiny_published: DiT, draw: Draw, relative_error: RelativeError
) -> None:
    """Its way of reading the text rounds to bfloat16 inside, so tiny differences become that large now and then."""
    assert relative_error(stream(packed(tiny_published), draw), stream(tiny_published, draw)) < 5e-3


def test_in_bfloat16_packing_loses_nothing(tiny_embedded: DiT, draw: Draw, relative_error: RelativeError) -> None:
    """It wins: what `cast_bulk` leaves in float32 brings the error to two thirds of the plain one."""
    exact = stream(tiny_embedded, draw)
    plain = copy.deepcopy(tiny_embedded).to(torch.bfloat16)
    plain_error = relative_error(stream(plain, draw), exact)
    assert relative_error(stream(packed(tiny_embedded, torch.bfloat16), draw), exact) < 1.05 * plain_error < 0.1


def test_several_speakers_can_be_packed_too(tiny_embedded: DiT, draw: Draw, relative_error: RelativeError) -> None:
    audio = tiny_embedded.encode_audio(draw("columns", (2, 1, 16, 12)))
    masks, x = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]), draw("x", (1, 12, 128))
    plain, fast = (
        dit.audio_injector(x, 1, dit.audio_injector.condition(audio, dit.dtype, masks)[1])
        for dit in (tiny_embedded, packed(tiny_embedded))
    )
    assert relative_error(fast, plain) < 1e-5
    assert torch.equal(fast[:, 3::4], x[:, 3::4])


def test_packing_keeps_the_compute_dtype(tiny_embedded: DiT) -> None:
    assert packed(tiny_embedded, torch.bfloat16).dtype == torch.bfloat16
