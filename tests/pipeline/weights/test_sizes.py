"""Sizes that only shapes tell; at the published sizes shapes are not asked."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B
from pipeline.models.text_encoder import PUBLISHED_TEXT_ENCODER
from pipeline.models.wan_vae import PUBLISHED_WAN_VAE
from pipeline.weights.headers import TensorHeader
from pipeline.weights.sizes import PUBLISHED_TEXT_ENCODER_SIZES, text_encoder_sizes, vae_config
from pipeline.weights.tables import Shapes, text_encoder_shapes, vae_shapes
from tests.fakes.checkpoint import TINY_DIT, TINY_TEXT_ENCODER_SIZES, TINY_VAE

pytestmark = pytest.mark.unit


def headers(shapes: Shapes) -> dict[str, TensorHeader]:
    return {name: TensorHeader(shape, "float32") for name, shape in shapes.items()}


def test_the_sizes_of_a_small_model_are_found() -> None:
    text_encoder = headers(text_encoder_shapes(**TINY_TEXT_ENCODER_SIZES))
    assert text_encoder_sizes(text_encoder, TINY_DIT) == TINY_TEXT_ENCODER_SIZES
    assert vae_config(headers(vae_shapes(TINY_VAE)), TINY_DIT) == TINY_VAE


def test_at_the_published_sizes_shapes_are_not_asked() -> None:
    text_encoder = headers(text_encoder_shapes(**TINY_TEXT_ENCODER_SIZES))
    assert text_encoder_sizes(text_encoder, PUBLISHED_14B) == PUBLISHED_TEXT_ENCODER_SIZES
    assert vae_config(headers(vae_shapes(TINY_VAE)), PUBLISHED_14B) == PUBLISHED_WAN_VAE


@pytest.mark.parametrize("dit", [TINY_DIT, PUBLISHED_14B])
def test_a_file_without_the_telling_tensors_is_taken_for_the_published_one(dit: DiTConfig) -> None:
    """The check will then name what is missing."""
    assert vae_config({}, dit) == PUBLISHED_WAN_VAE
    sizes = text_encoder_sizes({"token_embedding.weight": TensorHeader((), "float32")}, dit)
    assert sizes["vocabulary_tokens"] == 256_384


def test_the_sizes_are_fields_of_the_text_encoder_s_configuration() -> None:
    config = dataclasses.asdict(PUBLISHED_TEXT_ENCODER)
    assert {name: config[name] for name in PUBLISHED_TEXT_ENCODER_SIZES} == PUBLISHED_TEXT_ENCODER_SIZES
    assert set(config) - set(PUBLISHED_TEXT_ENCODER_SIZES) == {"max_distance_tokens", "max_prompt_tokens"}
