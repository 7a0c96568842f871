"""Where the large engine's networks come from: files of any size, or random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import EngineConfig, LargeConfig
from pipeline.errors import WeightsError
from pipeline.models.text_encoder import TOKENIZER_FILE
from pipeline.weights.sizes import Sizes
from pipeline.worker.large_networks import OfficialNetworks, RandomNetworks, make_source
from tests.fakes.checkpoint import TINY_DIT, TINY_TEXT_ENCODER_SIZES, TINY_VAE, write_checkpoint
from tests.fakes.wav2vec import tiny_config

pytestmark = pytest.mark.contract

CPU = torch.device("cpu")


def random_networks() -> RandomNetworks:
    return RandomNetworks(Sizes(dit=TINY_DIT, vae=TINY_VAE, text_encoder=TINY_TEXT_ENCODER_SIZES), tiny_config())


def test_the_sizes_are_those_of_the_folder(folder: Path) -> None:
    networks = OfficialNetworks(folder, None)
    assert networks.sizes.dit == TINY_DIT
    assert networks.sizes.vae == TINY_VAE
    assert networks.load_transformer(CPU, torch.bfloat16).config == TINY_DIT
    audio = networks.load_audio_encoder(CPU, torch.bfloat16)
    # What is left out are the letters, and the vector for masked sound.
    assert 0 < sum(part.numel() for part in audio.parameters()) <= networks.num_audio_parameters


def test_everything_is_loaded_in_the_dtype_that_is_asked_for(folder: Path) -> None:
    networks = OfficialNetworks(folder, None)
    for load in (networks.load_transformer, networks.load_vae, networks.load_audio_encoder):
        assert {part.dtype for part in load(CPU, torch.float32).parameters()} == {torch.float32}


def test_a_copy_is_kept_where_one_is_wanted(folder: Path, tmp_path: Path) -> None:
    first = OfficialNetworks(folder, tmp_path).load_transformer(CPU, torch.bfloat16)
    assert list(tmp_path.glob("transformer-*/manifest.json"))
    again = OfficialNetworks(folder, tmp_path).load_transformer(CPU, torch.bfloat16)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), again.parameters(), strict=True))


def test_a_prompt_becomes_a_row_per_token(folder: Path) -> None:
    rows = OfficialNetworks(folder, None).encode_prompt("a b c", CPU)
    assert rows.shape == (1, 4, 48)
    assert rows.dtype is torch.bfloat16


def test_a_device_whose_memory_is_spoken_for_is_left_to_the_others(folder: Path) -> None:
    """Meta, which can compute nothing, stands for a GPU with the host's memory."""
    networks, meta = OfficialNetworks(folder, None), torch.device("meta")
    rows = networks.encode_prompt("a b c", meta, reserved_bytes=10**15)
    assert torch.equal(rows, networks.encode_prompt("a b c", CPU))


def test_the_tokenizer_is_read_once(tmp_path: Path) -> None:
    """While it is, nothing else runs: not beside live windows."""
    files = write_checkpoint(tmp_path)
    networks = OfficialNetworks(tmp_path, None)
    (files.tokenizer / TOKENIZER_FILE).unlink()
    assert networks.encode_prompt("a b c", CPU).shape == (1, 4, 48)


class NetworksBesideOthers(OfficialNetworks):
    """Somebody else takes a device's memory after it was looked at; meta stands for it."""

    def _encode_prompt(self, prompt: str, device: torch.device) -> Tensor:
        if device.type == "meta":
            raise torch.OutOfMemoryError("out of memory")
        return super()._encode_prompt(prompt, device)


def test_a_device_that_runs_out_of_memory_after_all_is_left_to_the_others(folder: Path) -> None:
    networks = NetworksBesideOthers(folder, None)
    rows = networks.encode_prompt("a b c", torch.device("meta"))
    assert torch.equal(rows, networks.encode_prompt("a b c", CPU))


def test_a_folder_is_chosen_unless_random_weights_are_wanted(folder: Path) -> None:
    real = EngineConfig(name="large", weights_dir=folder, large=LargeConfig(cache_dir=None))
    assert isinstance(make_source(real), OfficialNetworks)
    random = EngineConfig(name="large", large=LargeConfig(random_weights=True))
    assert isinstance(make_source(random), RandomNetworks)


def test_an_incomplete_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    files = write_checkpoint(tmp_path)
    files.vae.unlink()
    with pytest.raises(WeightsError, match=r"Wan2\.1_VAE\.pth: is missing"):
        OfficialNetworks(tmp_path, None)


def test_random_networks_keep_what_passes_through_them_finite() -> None:
    networks = random_networks()
    dit = networks.load_transformer(CPU, torch.float32)
    text = dit.encode_text(networks.encode_prompt("x", CPU))
    assert 0.1 < float(text[0].values_BKHD.std()) < 10
    image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    still = networks.load_vae(CPU, torch.float32).encode_portrait(image)
    assert still.motion_BCThw.isfinite().all()
    assert float(still.motion_BCThw.std()) > 0
    states = list(networks.load_audio_encoder(CPU, torch.float32).hidden_states(torch.randn(8000)))
    assert len(states) == 25
    assert all(layer.isfinite().all() for layer in states)


def test_random_rows_depend_on_the_prompt_alone() -> None:
    networks = random_networks()
    one, same, other = (networks.encode_prompt(prompt, CPU) for prompt in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_published_sizes_are_the_default() -> None:
    networks = RandomNetworks()
    assert networks.sizes.dit.num_layers == 40
    assert networks.num_audio_parameters == 315_437_568


def test_what_is_odd_and_does_no_harm_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_checkpoint(tmp_path).adapter
    save_file({**load_file(path), "extra": torch.zeros(1)}, path)
    OfficialNetworks(tmp_path, None)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"weights {path}: not used, because they belong to no layer")
    assert record.getMessage().endswith(": extra")
