"""The official folder is found from two places, and config.json is translated once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import WeightsError
from pipeline.models.published import PUBLISHED_14B
from pipeline.weights.official import ADAPTER_NAME, OfficialFolder, find_official, read_dit_config
from tests.fakes.checkpoint import TINY_DIT, upstream_config

pytestmark = pytest.mark.unit

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose files are there and nothing more."""
    for name in (f"Wan2.2-S2V-14B/{INDEX}", f"LiveAvatar/{ADAPTER_NAME}"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("start", [".", "Wan2.2-S2V-14B"])
def test_the_parts_are_found_from_the_folder_and_from_the_base_model(folder: Path, start: str) -> None:
    files = find_official(folder / start)
    assert files.base.samefile(folder / "Wan2.2-S2V-14B")
    assert files.adapter.samefile(folder / "LiveAvatar" / ADAPTER_NAME)


def test_every_part_has_its_official_place(folder: Path) -> None:
    files, base = find_official(folder), folder / "Wan2.2-S2V-14B"
    assert files.dit_config == base / "config.json"
    assert files.vae == base / "Wan2.1_VAE.pth"
    assert files.text_encoder == base / "models_t5_umt5-xxl-enc-bf16.pth"
    assert files.tokenizer == base / "google/umt5-xxl"
    assert files.audio_encoder == base / "wav2vec2-large-xlsr-53-english"


@pytest.mark.parametrize("home", [".", "Wan2.2-S2V-14B"])
def test_the_adapter_can_lie_in_either_folder(folder: Path, home: str) -> None:
    (folder / "LiveAvatar" / ADAPTER_NAME).rename(folder / home / ADAPTER_NAME)
    assert find_official(folder).adapter == folder / home / ADAPTER_NAME


@pytest.mark.parametrize("start", [".", "Wan2.2-S2V-14B"])
def test_a_missing_adapter_has_a_place_all_the_same(folder: Path, start: str) -> None:
    (folder / "LiveAvatar" / ADAPTER_NAME).unlink()
    assert find_official(folder / start).adapter == folder / "LiveAvatar" / ADAPTER_NAME


def test_a_folder_without_a_base_model_is_refused_with_the_places_that_were_looked_at(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"there is no {INDEX} in {tmp_path} or in {tmp_path}/Wan2.2-S2V-14B"):
        find_official(tmp_path)


def make(folder: Path, index: object) -> OfficialFolder:
    (folder / INDEX).write_text(json.dumps(index))
    return OfficialFolder(folder, folder / ADAPTER_NAME)


def test_the_shards_are_those_of_the_index_in_order(tmp_path: Path) -> None:
    files = make(tmp_path, {"weight_map": {"x": "2.safetensors", "y": "1.safetensors", "z": "2.safetensors"}})
    assert files.dit_shards() == (tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    assert files.read_index()["z"] == tmp_path / "2.safetensors"


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    files = find_official(tmp_path)
    assert files.read_index() == {}
    assert files.dit_shards() == (tmp_path / "diffusion_pytorch_model.safetensors",)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["x"]}])
def test_an_index_without_tensors_is_refused(tmp_path: Path, index: object) -> None:
    with pytest.raises(WeightsError, match=rf"{INDEX}: it has no weight_map"):
        make(tmp_path, index).read_index()


@pytest.mark.parametrize("file", ["../../secret.safetensors", "/etc/passwd", 3])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, file: object) -> None:
    with pytest.raises(WeightsError, match="it has to be the name of a file"):
        make(tmp_path, {"weight_map": {"x": file}}).dit_shards()


def write(path: Path, config: dict[str, object]) -> Path:
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("config", [PUBLISHED_14B, TINY_DIT])
def test_sizes_are_translated(tmp_path: Path, config: object) -> None:
    assert read_dit_config(write(tmp_path / "config.json", upstream_config(config))) == config  # type: ignore[arg-type]


def test_what_the_file_leaves_out_is_as_published(tmp_path: Path) -> None:
    assert read_dit_config(write(tmp_path / "config.json", {})) == PUBLISHED_14B


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_type", "t2v", "model_type is 't2v', but only 's2v' is known here"),
        ("enable_framepack", False, "enable_framepack is False, but only True is known"),
        ("eps", 1e-5, "eps is 1e-05, but only 1e-06"),
        ("dim", "5120", "dim is '5120', but it has to be a positive whole number"),
        ("dim", True, "dim is True, but it has to be a positive whole number"),
        ("num_layers", 0, "num_layers is 0, but it has to be a positive"),
        ("out_dim", 48, "out_dim is 48, but in_dim is 16"),
        ("cond_dim", 4, "cond_dim is 4, but in_dim is 16"),
        ("patch_size", [2, 2, 2], r"patch_size is \[2, 2, 2\], but only \[1, 2, 2\] is known"),
        ("num_heads", 7, "dim is 128, but it has to be a multiple of 4 and give 7 heads of even width"),
        ("audio_inject_layers", "all", "audio_inject_layers is 'all', but it has to be a list of whole numbers"),
        ("audio_inject_layers", [0, 4], r"audio_inject_layers is \(0, 4\), but it has to ascend within the 4 blocks"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(tmp_path: Path, key: str, value: object, words: str) -> None:
    path = write(tmp_path / "config.json", upstream_config(TINY_DIT) | {key: value})
    with pytest.raises(WeightsError, match=rf"config\.json: {words}"):
        read_dit_config(path)
