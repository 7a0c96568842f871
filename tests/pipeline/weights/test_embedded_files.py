"""Weight files: only what the manifest names, unchanged and fitting, is loaded; else the file is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import WeightsError
from pipeline.models.audio_frontend import AudioFrontend, AudioFrontendConfig
from pipeline.models.dit import DiT
from pipeline.models.embedded_vae import EmbeddedVAE, EmbeddedVAEConfig
from pipeline.weights.embedded_files import DEFAULT_FOLDER, EmbeddedFiles, write_manifest
from tools.train import sizes
from tools.train.records import save_weights

pytestmark = pytest.mark.unit

VAE = EmbeddedVAEConfig(
    latent_channels=4,
    motion_signal_dim=3,
    encoder_widths=(4, 4, 4),
    decoder_widths=(4, 4, 4, 4),
    portrait_widths=(4, 4, 4),
)
DIT = replace(sizes.DIT, dim=16, ffn_dim=16, num_layers=2, audio_inject_layers=(0,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small networks with their manifest."""
    torch.manual_seed(0)
    save_weights(EmbeddedVAE(VAE), tmp_path / "vae.safetensors")
    save_weights(DiT(DIT), tmp_path / "dit.safetensors")
    AudioFrontend(AudioFrontendConfig(dim=8)).save(tmp_path / "frontend.safetensors")
    write_manifest(tmp_path)
    return tmp_path


def load(files: EmbeddedFiles, name: str) -> nn.Module:
    return {"vae": files.load_vae, "dit": files.load_dit, "frontend": files.load_frontend}[name]()


def test_networks_are_loaded_exactly_ready_and_in_float32(folder: Path) -> None:
    torch.manual_seed(0)
    expected = EmbeddedVAE(VAE).state_dict()
    network = EmbeddedFiles(folder).load_vae()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected[name].half().float(), rtol=0, atol=0)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_networks_bring_their_own_sizes(folder: Path) -> None:
    files = EmbeddedFiles(folder)
    assert files.load_vae().config == VAE
    assert files.load_dit().config == DIT
    assert files.load_frontend().config.dim == 8


@pytest.mark.parametrize("name", ["vae", "dit", "frontend"])
def test_a_changed_byte_is_found(folder: Path, name: str) -> None:
    path = folder / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    files = EmbeddedFiles(folder)
    with pytest.raises(WeightsError, match=rf"{name}\.safetensors: damaged: its SHA-256 is not the one"):
        load(files, name)


@pytest.mark.parametrize("name", ["vae", "frontend"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / f"{name}.safetensors").unlink()
    files = EmbeddedFiles(folder)
    with pytest.raises(WeightsError, match=rf"{name}\.safetensors: cannot be read \(No such file"):
        load(files, name)


def test_a_truncated_file_is_found(folder: Path) -> None:
    path = folder / "dit.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(WeightsError, match=r"dit\.safetensors: damaged"):
        EmbeddedFiles(folder).load_dit()


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"config": json.dumps({**asdict(VAE), "latent_channels": 5})}, "size mismatch"),
        ({"config": json.dumps({"latent_channels": 4})}, "missing 4 required"),
        ({"config": "[]"}, "items"),
        ({"config": "{"}, "Expecting"),
        ({}, "config"),
        (None, "metadata"),
    ],
)
def test_sizes_that_do_not_fit_the_weights_are_refused(
    folder: Path, metadata: dict[str, str] | None, complaint: str
) -> None:
    save_file(EmbeddedVAE(VAE).state_dict(), folder / "vae.safetensors", metadata=metadata)
    write_manifest(folder)
    with pytest.raises(WeightsError, match=rf"(?s)vae\.safetensors: does not fit the network .*{complaint}"):
        EmbeddedFiles(folder).load_vae()


def test_a_file_that_is_no_safetensors_is_refused_even_if_the_manifest_has_it(folder: Path) -> None:
    (folder / "vae.safetensors").write_text("not weights")
    write_manifest(folder)
    with pytest.raises(WeightsError, match=r"vae\.safetensors: does not fit the network"):
        EmbeddedFiles(folder).load_vae()


@pytest.mark.parametrize("manifest", [None, "{", "\xff", "[]", '"text"', "{}", '{"format": 1}', '{"format": 2}'])
def test_a_bad_manifest_is_refused_by_name(folder: Path, manifest: str | None) -> None:
    path = folder / "manifest.json"
    path.unlink()
    if manifest is not None:
        path.write_text(manifest, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"manifest\.json: "):
        EmbeddedFiles(folder)


def test_an_unknown_format_is_told(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 7}))
    with pytest.raises(WeightsError, match="format 7 is not 1"):
        EmbeddedFiles(folder)


def test_a_file_that_the_manifest_does_not_name_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]["dit.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"dit\.safetensors: damaged"):
        EmbeddedFiles(folder).load_dit()


def test_the_shipped_weights_load_and_fit_in_40_mb() -> None:
    files = EmbeddedFiles(None)
    assert files.folder == DEFAULT_FOLDER
    vae, dit = files.load_vae(), files.load_dit()
    assert all(bool(p.isfinite().all()) for network in (vae, dit) for p in network.parameters())
    assert files.load_frontend().config.dim == dit.config.audio_dim
    assert vae.config.latent_channels == dit.config.latent_channels
    assert sum(path.stat().st_size for path in DEFAULT_FOLDER.rglob("*")) <= 40e6


def test_a_copy_of_the_folder_works_too(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("copy"))
    assert EmbeddedFiles(copy).load_vae().config == VAE
