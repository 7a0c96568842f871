"""The audio network: its contexts, its file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError, WeightsError
from pipeline.models.audio_frontend import AudioFrontend, AudioFrontendConfig, FrontendHeads

pytestmark = pytest.mark.numerics

SMALL = AudioFrontendConfig(dim=16, dilations=(1, 2))


def _network(config: AudioFrontendConfig = SMALL) -> AudioFrontend:
    torch.manual_seed(0)
    return AudioFrontend(config).eval()


def _num_columns(config: AudioFrontendConfig, num_frames: int) -> int:
    return config.past_columns + 4 * num_frames + config.future_columns


def test_the_default_network_has_about_a_million_parameters_and_looks_back_over_a_second() -> None:
    config = AudioFrontendConfig()
    count = sum(parameter.numel() for parameter in AudioFrontend(config).parameters())
    assert 0.9e6 < count < 1.2e6
    assert config.past_columns > 100


@pytest.mark.parametrize("lookahead_frames", [0, 1, 2])
def test_a_frame_depends_on_exactly_the_promised_columns(lookahead_frames: int) -> None:
    config = AudioFrontendConfig(dim=16, dilations=(1, 2), lookahead_frames=lookahead_frames)
    network = _network(config)
    mel = torch.randn(1, _num_columns(config, 3), 80, requires_grad=True)
    network(mel)[0, 1, 0].backward()
    assert mel.grad is not None
    used = mel.grad.abs().sum(dim=(0, 2)).nonzero().flatten()
    assert used.min() == 4
    assert used.max() == _num_columns(config, 2) - 1


def test_frames_do_not_depend_on_how_many_are_asked_for() -> None:
    network = _network()
    mel = torch.randn(1, _num_columns(SMALL, 10), 80)
    whole = network(mel)
    part = network(mel[:, 4 * 6 :])
    torch.testing.assert_close(part, whole[:, 6:], atol=1e-5, rtol=1e-5)


def test_a_file_brings_back_network_and_heads(tmp_path: Path) -> None:
    network, heads = _network(), FrontendHeads(SMALL)
    path = tmp_path / "frontend.safetensors"
    network.save(path, heads=heads, dtype=torch.float32)
    mel = torch.randn(1, _num_columns(SMALL, 2), 80)
    again = AudioFrontend.load(path)
    assert again.config == SMALL
    assert torch.equal(again(mel), network(mel))
    features = network(mel)
    for old, new in zip(heads(features), FrontendHeads.load(path)(features), strict=True):
        assert torch.equal(old, new)


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "frontend.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"frontend\.safetensors: not a readable audio front end"):
        AudioFrontend.load(path)


def test_a_file_without_heads_says_so(tmp_path: Path) -> None:
    path = tmp_path / "frontend.safetensors"
    _network().save(path)
    with pytest.raises(WeightsError, match="Missing key"):
        FrontendHeads.load(path)


@pytest.mark.parametrize("num_columns", [10, _num_columns(SMALL, 2) + 1])
def test_columns_that_fit_no_number_of_frames_are_refused(num_columns: int) -> None:
    with pytest.raises(ConfigError, match=f"mel columns is {num_columns}"):
        _network()(torch.zeros(1, num_columns, 80))


def test_an_impossible_lookahead_is_refused() -> None:
    with pytest.raises(ConfigError, match="lookahead_frames is 5, but it has to be 0 to kernel_frames - 1 = 4"):
        AudioFrontendConfig(lookahead_frames=5)


def test_a_first_block_that_cannot_look_ahead_frame_by_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dilations is \(2,\), but the first has to be 1"):
        AudioFrontendConfig(dilations=(2,))
