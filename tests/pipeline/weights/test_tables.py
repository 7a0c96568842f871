"""The tables of tensors have the published numbers of tensors and parameters."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.models.published import PUBLISHED_14B
from pipeline.models.text_encoder import PUBLISHED_TEXT_ENCODER, translate_names
from pipeline.models.wan_vae import PUBLISHED_WAN_VAE
from pipeline.weights.sizes import PUBLISHED_TEXT_ENCODER_SIZES
from pipeline.weights.tables import Shapes, adapter_targets, dit_shapes, text_encoder_shapes, vae_shapes
from tests.fakes.checkpoint import TINY_DIT

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("shapes", "num_tensors", "num_parameters"),
    [
        (dit_shapes(PUBLISHED_14B), 1260, 16_295_755_609),
        (dit_shapes(TINY_DIT), 180, 1_922_233),
        (vae_shapes(PUBLISHED_WAN_VAE), 194, 126_892_531),
        (text_encoder_shapes(**PUBLISHED_TEXT_ENCODER_SIZES), 242, 5_680_910_336),
    ],
)
def test_the_tables_have_the_published_counts(shapes: Shapes, num_tensors: int, num_parameters: int) -> None:
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (num_tensors, num_parameters)


def test_the_adapter_changes_448_layers_and_has_the_published_size() -> None:
    targets = adapter_targets(dit_shapes(PUBLISHED_14B))
    assert len(targets) == 448
    assert sum(128 * (rows + columns) for rows, columns in targets.values()) == 676_331_520
    assert targets["blocks.39.ffn.2"] == (5120, 13824)
    assert targets["audio_injector.injector.11.o"] == (5120, 5120)


@pytest.mark.parametrize("name", ["head.head", "text_embedding.0", "audio_injector.injector_adain_layers.0.linear"])
def test_the_adapter_leaves_other_layers_alone(name: str) -> None:
    shapes = dit_shapes(TINY_DIT)
    assert f"{name}.weight" in shapes
    assert name not in adapter_targets(shapes)


def test_names_of_the_vae_are_those_of_the_file() -> None:
    shapes = vae_shapes(PUBLISHED_WAN_VAE)
    assert shapes["encoder.downsamples.5.time_conv.weight"] == (192, 192, 3, 1, 1)
    assert shapes["decoder.upsamples.3.time_conv.weight"] == (768, 384, 3, 1, 1)
    assert shapes["decoder.upsamples.11.resample.1.weight"] == (96, 192, 3, 3)
    assert shapes["decoder.upsamples.4.shortcut.weight"] == (384, 192, 1, 1, 1)
    assert shapes["encoder.head.2.bias"] == (32,)


def test_names_of_the_text_encoder_are_those_that_its_loader_takes() -> None:
    shapes = text_encoder_shapes(**PUBLISHED_TEXT_ENCODER_SIZES)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert len(translate_names(tensors, PUBLISHED_TEXT_ENCODER)) == 242
