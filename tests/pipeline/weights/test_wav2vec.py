"""Sizes and tensors of the speech network: those of the network that is built, in every spelling of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config

from pipeline.errors import WeightsError
from pipeline.models.wav2vec import Wav2Vec, published_config
from pipeline.weights.wav2vec import POSITION_PARTS, POSITIONS, is_needed, read_wav2vec_sizes, wav2vec_shapes
from tests.fakes.wav2vec import tiny_config, write_tiny_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The sizes of the published network."""
    published_config().save_pretrained(tmp_path)
    return tmp_path / "config.json"


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_tensors_are_those_of_the_published_network(path: Path) -> None:
    with torch.device("meta"):
        state = Wav2Vec(published_config()).state_dict()
    shapes = wav2vec_shapes(read_wav2vec_sizes(path), {f"{POSITIONS}.weight"})
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_what_the_sizes_leave_out_is_what_the_library_takes_for_it(path: Path) -> None:
    kind = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    path.write_text(json.dumps(kind))
    with torch.device("meta"):
        state = Wav2Vec(Wav2Vec2Config(**kind)).state_dict()
    shapes = wav2vec_shapes(read_wav2vec_sizes(path), {f"{POSITIONS}.weight"})
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("parts", POSITION_PARTS)
def test_a_file_in_either_spelling_has_exactly_the_listed_tensors(tmp_path: Path, parts: tuple[str, str]) -> None:
    network = write_tiny_folder(tmp_path)
    respelled = {old: new for old, new in zip(POSITION_PARTS[-1], parts, strict=True)}
    given = {respelled.get(name, name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    needed = {name: shape for name, shape in given.items() if is_needed(name)}
    assert wav2vec_shapes(read_wav2vec_sizes(tmp_path / "config.json"), needed) == needed
    assert len(given) - len(needed) == 3, "the letters above, and what stands for masked sound"


def test_without_a_weight_of_the_positions_the_newest_spelling_is_missed(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    shapes = wav2vec_shapes(read_wav2vec_sizes(tmp_path / "config.json"), ())
    assert shapes[POSITION_PARTS[-1][0]] == (1, 1, 16)
    assert shapes[POSITION_PARTS[-1][1]] == (16, 8, 16)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_size", "wide", "hidden_size is 'wide', but it has to be a positive whole number"),
        ("hidden_size", True, "hidden_size is True, but it has to be a positive whole number"),
        ("intermediate_size", 0, "intermediate_size is 0, but it has to be a positive"),
        ("conv_bias", 1, "conv_bias is 1, but it has to be true or false"),
        ("conv_dim", 512, "conv_dim is 512, but it has to be a list of positive whole numbers"),
        ("conv_dim", [], r"conv_dim is \[\], but it has to be a list"),
        ("conv_dim", [512], r"conv_dim is \[512\], but there are 7 kernels"),
        ("conv_kernel", [10, 3, -3], r"conv_kernel is \[10, 3, -3\], but it has to be a list"),
        ("conv_stride", [5, 2], r"conv_stride is \[5, 2\], but there are 7 kernels"),
        (
            "conv_stride",
            [5, 2, 2, 2, 2, 2, 4],
            "a state is made of 400 samples every 640, but it has to be 400 every 320",
        ),
        ("num_attention_heads", 7, "num_attention_heads is 7, but it has to divide hidden_size, 1024"),
        ("num_conv_pos_embedding_groups", 7, "num_conv_pos_embedding_groups is 7, but it has to divide"),
        ("feat_extract_norm", "group", "feat_extract_norm is 'group', but only 'layer' is known here"),
        ("do_stable_layer_norm", False, "do_stable_layer_norm is False, but only True is known here"),
        ("add_adapter", True, "add_adapter is True, but only False is known here"),
    ],
)
def test_a_network_of_another_kind_is_refused(path: Path, key: str, value: object, words: str) -> None:
    change(path, **{key: value})
    with pytest.raises(WeightsError, match=rf"config\.json: {words}"):
        read_wav2vec_sizes(path)
