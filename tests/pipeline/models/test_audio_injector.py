"""The audio injector: every latent frame hears its own tokens, through an adaptive norm."""

import copy
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
RelativeError = Callable[[Tensor, Tensor], float]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_hears_the_voices_whose_masks_it_is_under(
    injector: AudioInjector, draw: Draw, relative_error: RelativeError, dtype: torch.dtype
) -> None:
    """One voice after the other, alone; tokens under both masks hear both, tokens under none nothing."""
    injector = copy.deepcopy(injector).to(dtype)
    x, audio = draw("x", (1, 12, 128)).to(dtype), tokens(draw)
    masks = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]])
    voices = [AudioTokens(*(part[voice : voice + 1] for part in audio)) for voice in range(2)]
    injections = [injector.condition(voice, dtype)[ORDINAL] for voice in voices]
    alone = [injector(x, ORDINAL, injection).float() - x.float() for injection in injections]
    expected = x.float().clone()
    for heard, mask in zip(alone, masks.tolist(), strict=True):
        for token in range(12):
            expected[:, token] += mask[token % 4] * heard[:, token]
    both = injector(x, ORDINAL, injector.condition(audio, dtype, masks)[ORDINAL])
    assert both.dtype == dtype
    assert relative_error(both, expected) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert torch.equal(both[:, 3::4], x[:, 3::4])


def test_a_voice_that_is_heard_everywhere_is_the_only_one_there_is(injector: AudioInjector, draw: Draw) -> None:
    """To the last bit: a mask of ones is no mask."""
    x = draw("x", (1, 12, 128))
    voice = AudioTokens(*(part[:1] for part in tokens(draw)))
    masked = injector(x, ORDINAL, injector.condition(voice, torch.float32, torch.ones(1, 4))[ORDINAL])
    assert torch.equal(masked, inject(injector, x, voice))


def test_voices_belong_to_one_stream(injector: AudioInjector, draw: Draw) -> None:
    injection = injector.condition(tokens(draw), torch.float32, torch.ones(2, 4))[ORDINAL]
    with pytest.raises(AssertionError, match="several speakers belong to one stream"):
        injector(draw("x", (2, 12, 128)), ORDINAL, injection)
