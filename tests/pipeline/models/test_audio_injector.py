"""The audio injector: every latent frame hears its own tokens, through an adaptive norm."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.attention import KeysValues, attend
from pipeline.models.audio_encoder import AudioTokens
from pipeline.models.audio_injector import AudioInjector
from pipeline.models.dit import DiT

pytestmark = pytest.mark.numerics

ORDINAL = 1
Draw = Callable[[str, tuple[int, ...]], Tensor]


@pytest.fixture
def injector(tiny_published: DiT) -> AudioInjector:
    """Three injections of width 128."""
    return tiny_published.audio_injector


def tokens(draw: Draw, name: str = "audio") -> AudioTokens:
    return AudioTokens(draw(f"{name}.local", (2, 3, 5, 128)), draw(f"{name}.global", (2, 3, 1, 128)))


def inject(injector: AudioInjector, x: Tensor, audio: AudioTokens) -> Tensor:
    return injector(x, ORDINAL, injector.condition(audio, torch.float32)[ORDINAL])


def test_each_latent_frame_attends_to_its_own_tokens_through_its_own_norm(injector: AudioInjector, draw: Draw) -> None:
    """Written out frame by frame: shift before scale, SiLU before the linear layer, eps 1e-5 (seen by small inputs)."""
    x, audio = 3e-3 * draw("x", (2, 12, 128)), tokens(draw)
    attention, norm = injector.injector[ORDINAL], injector.injector_adain_layers[ORDINAL]
    expected = x.clone()
    for row in range(2):
        for frame in range(3):
            span = slice(4 * frame, 4 * frame + 4)
            shift, scale = norm.linear(torch.nn.functional.silu(audio.global_BT1C[row, frame])).split(128, dim=-1)
            own = x[row, span]
            normed = (own - own.mean(-1, keepdim=True)) / (own.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
            queries = attention.queries((normed * (1 + scale) + shift)[None])
            source = attention.keys_values(audio.local_BTKC[row, frame][None])
            expected[row, span] += attention.output(attend(queries, KeysValues(*source)))[0]
    assert torch.allclose(inject(injector, x, audio), expected, atol=1e-4)


def test_the_injections_differ(injector: AudioInjector, draw: Draw) -> None:
    x = draw("x", (2, 12, 128))
    injections = injector.condition(tokens(draw), torch.float32)
    assert len(injections) == 3
    results = [injector(x, ordinal, injection) for ordinal, injection in enumerate(injections)]
    assert not torch.allclose(results[0], results[1], atol=1e-2)


def test_the_compute_dtype_is_kept(tiny_published: DiT, draw: Draw) -> None:
    injector = AudioInjector(tiny_published.config).to(torch.bfloat16).requires_grad_(False)
    x = draw("x", (2, 12, 128)).bfloat16()
    result = injector(x, 0, injector.condition(tokens(draw), torch.bfloat16)[0])
    assert result.dtype == torch.bfloat16
