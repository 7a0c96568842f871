"""The VAE interface: the embedded VAE has its methods."""

import inspect

import pytest

from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.models.vae import VideoVAE

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("method", ["encode_portrait", "new_state", "decode"])
def test_the_embedded_vae_offers_what_the_engine_asks_for(method: str) -> None:
    asked, offered = (inspect.signature(getattr(cls, method)).parameters for cls in (VideoVAE, EmbeddedVAE))
    assert len(asked) == len(offered)
