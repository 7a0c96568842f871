"""The transformer's configuration: contradictions are refused by name."""

import dataclasses

import pytest

from pipeline.errors import ConfigError
from pipeline.models.published import PUBLISHED_14B

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"dim": 5130}, "dim"),
        ({"dim": 40}, "dim"),
        ({"ring_latent_frames": 10}, "ring_latent_frames"),
        ({"ring_latent_frames": 0}, "ring_latent_frames"),
        ({"audio_inject_layers": (4, 0)}, "audio_inject_layers"),
        ({"audio_inject_layers": (0, 0)}, "audio_inject_layers"),
        ({"audio_inject_layers": (40,)}, "audio_inject_layers"),
        ({"text_dim": None}, "text_len"),
        ({"text_len": 0}, "text_len"),
    ],
)
def test_contradictions_are_refused_by_name(change: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(PUBLISHED_14B, **change)  # type: ignore[arg-type]
    assert caught.value.key == key


def test_sizes_that_follow_from_others() -> None:
    assert PUBLISHED_14B.head_dim == 128
    assert PUBLISHED_14B.columns_per_block == 12


def test_the_sink_is_the_reference_and_packed_motion_if_there_is_a_packer() -> None:
    assert PUBLISHED_14B.sink_tokens(8, 12) == 240
    assert dataclasses.replace(PUBLISHED_14B, has_motion_packer=False).sink_tokens(8, 12) == 96
