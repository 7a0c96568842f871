"""The speech network: loaded from its published folder, and the same states as the library's own forward pass."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2ForCTC

from pipeline.errors import WeightsError
from pipeline.models.wav2vec import Wav2Vec, published_config
from tests.fakes.wav2vec import TINY_DIM, TINY_LAYERS, tiny_config, write_tiny_folder

pytestmark = pytest.mark.numerics

State = dict[str, Tensor]
POSITIONS = "wav2vec2.encoder.pos_conv_embed.conv"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Wav2Vec2ForCTC]:
    folder = tmp_path_factory.mktemp("wav2vec2")
    return folder, write_tiny_folder(folder)


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> Wav2Vec:
    return Wav2Vec.load(folder, device="cpu", dtype=dtype)


def _states(network: Wav2Vec, sound_N: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.stack(list(network.hidden_states(sound_N)))


def _sound(num_samples: int = 16_000) -> Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(1))


def _copy(source: Path, folder: Path, change: Callable[[State], State]) -> Path:
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(change(state), folder / "pytorch_model.bin")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


def test_the_states_are_the_inputs_of_the_layers_and_the_normalised_output(
    written: tuple[Path, Wav2Vec2ForCTC],
) -> None:
    folder, reference = written
    sound_N = _sound()
    with torch.inference_mode():
        theirs = reference.wav2vec2(sound_N[None], output_hidden_states=True)
    ours_STD = _states(_load(folder), sound_N)
    assert ours_STD.shape == (TINY_LAYERS + 1, 49, TINY_DIM)
    # The library's last collected state is not normalised in all of its versions.
    wanted_STD = torch.stack([*theirs.hidden_states[:-1], theirs.last_hidden_state])[:, 0]
    torch.testing.assert_close(ours_STD, wanted_STD, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_states_are_those_of_the_library_in_bfloat16(written: tuple[Path, Wav2Vec2ForCTC]) -> None:
    folder, _ = written
    reference = Wav2Vec2ForCTC(tiny_config()).eval()
    reference.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    sound_N = _sound().bfloat16()
    with torch.inference_mode():
        wanted_TD = reference.bfloat16().wav2vec2(sound_N[None]).last_hidden_state[0]
    ours_STD = _states(_load(folder, torch.bfloat16), sound_N)
    assert ours_STD.dtype == torch.bfloat16
    torch.testing.assert_close(ours_STD[-1], wanted_TD, rtol=0, atol=0)


def test_safetensors_and_both_spellings_of_the_split_weight_give_the_same_network(
    written: tuple[Path, Wav2Vec2ForCTC], tmp_path: Path
) -> None:
    def respell(state: State) -> State:
        for old, new in (("original0", "weight_g"), ("original1", "weight_v")):
            state[f"{POSITIONS}.{new}"] = state.pop(f"{POSITIONS}.parametrizations.weight.{old}")
        return state

    folder, reference = written
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.mkdir()
    newer.mkdir()
    _copy(folder, older, respell)
    (newer / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({name: tensor.clone() for name, tensor in reference.state_dict().items()}, newer / "model.safetensors")
    (newer / "pytorch_model.bin").write_bytes(b"not looked at")
    wanted = _load(folder).state_dict()
    for other in (older, newer):
        state = _load(other).state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_a_file_of_a_very_old_version_is_read_too(written: tuple[Path, Wav2Vec2ForCTC], tmp_path: Path) -> None:
    folder, reference = written
    _copy(folder, tmp_path, lambda state: state)
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(_states(_load(tmp_path), _sound()), _states(_load(folder), _sound()))


def test_a_long_file_is_heard_in_pieces_that_bound_what_the_convolutions_hold(
    written: tuple[Path, Wav2Vec2ForCTC],
) -> None:
    """The states are those of the whole, and no map of the convolutions is larger than that of half a minute."""
    folder, reference = written
    network = _load(folder)
    largest = 0

    def watch(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel())

    for layer in network.wav2vec2.feature_extractor.conv_layers:
        layer.register_forward_hook(watch)
    sound_N = _sound(75 * 16_000 + 123)
    with torch.inference_mode():
        theirs_TD = reference.wav2vec2(sound_N[None]).last_hidden_state[0]
    torch.testing.assert_close(_states(network, sound_N)[-1], theirs_TD, rtol=1e-4, atol=1e-4)
    assert largest <= 8 * (30 * 16_000 + 80) // 5


@pytest.mark.parametrize("num_states", [1, 1499, 1500, 1501, 3000])
def test_no_length_loses_or_doubles_a_state(written: tuple[Path, Wav2Vec2ForCTC], num_states: int) -> None:
    folder, reference = written
    for num_more in (0, 319):
        sound_N = _sound(400 + 320 * (num_states - 1) + num_more)
        with torch.inference_mode():
            theirs_BCT = reference.wav2vec2.feature_extractor(sound_N[None])
            ours_BTC = _load(folder)._convolve(sound_N)
        torch.testing.assert_close(ours_BTC, theirs_BCT.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_the_published_network_has_315_437_568_parameters_in_420_tensors() -> None:
    with torch.device("meta"):
        network = Wav2Vec(published_config())
    state = network.state_dict()
    assert (network.dim, network.num_layers) == (1024, 25)
    assert sum(tensor.numel() for tensor in state.values()) == 315_437_568
    assert len(state) == 420
    assert tuple(state[f"{POSITIONS}.weight"].shape) == (1024, 64, 128)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def _without_a_bias(state: State) -> State:
    del state["wav2vec2.encoder.layers.3.attention.k_proj.bias"], state["wav2vec2.encoder.layer_norm.bias"]
    return state


def _with_an_adapter(state: State) -> State:
    return {**state, "wav2vec2.adapter.proj.weight": torch.zeros(2)}


def _wider(state: State) -> State:
    return {**state, "wav2vec2.feature_projection.projection.bias": torch.zeros(17)}


def _wrong_split(state: State) -> State:
    return {**state, f"{POSITIONS}.parametrizations.weight.original0": torch.zeros(1, 1, 15)}


def _half_split(state: State) -> State:
    del state[f"{POSITIONS}.parametrizations.weight.original0"]
    return state


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (_without_a_bias, "2 tensors are missing, the first is wav2vec2.encoder.layer_norm.bias"),
        (_with_an_adapter, "1 tensors are not of this network, the first is wav2vec2.adapter.proj.weight"),
        (_wider, r"projection.bias has shape \(17,\), but it has to be \(16,\)"),
        (_wrong_split, r"original0 has shape \(1, 1, 15\), but it has to be \(1, 1, 16\)"),
        (_half_split, "1 tensors are missing, the first is wav2vec2.encoder.pos_conv_embed.conv.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    written: tuple[Path, Wav2Vec2ForCTC], tmp_path: Path, change: Callable[[State], State], pattern: str
) -> None:
    with pytest.raises(WeightsError, match=pattern):
        _load(_copy(written[0], tmp_path, change))


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("conv_stride", [5, 2, 2, 2, 2, 2, 4], "a state is made of 400 samples every 640, but it has to be 400 every"),
        ("conv_stride", [5, 2], r"conv_stride is \[5, 2\], but there are 7 kernels"),
        ("do_stable_layer_norm", False, "do_stable_layer_norm is False, but only True is known here"),
        ("hidden_act", 3, "the sizes cannot be read"),
    ],
)
def test_a_network_of_another_kind_is_refused(tmp_path: Path, key: str, value: object, pattern: str) -> None:
    write_tiny_folder(tmp_path)
    sizes = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**sizes, key: value}))
    with pytest.raises(WeightsError, match=pattern):
        _load(tmp_path)


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.target, "executed")


@pytest.mark.parametrize("is_archive", [True, False])
def test_pickled_code_is_refused_and_not_executed(tmp_path: Path, is_archive: bool) -> None:
    write_tiny_folder(tmp_path)
    bomb = {"wav2vec2.encoder.layer_norm.bias": _Bomb(tmp_path / "trace")}
    if is_archive:
        torch.save(bomb, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(bomb, protocol=2))
    with pytest.raises(WeightsError, match=r"pytorch_model.bin: holds something else than tensors"):
        _load(tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "data", "pattern"),
    [
        ("pytorch_model.bin", None, "it holds neither model.safetensors nor pytorch_model.bin"),
        ("pytorch_model.bin", b"", "pytorch_model.bin: is no file of torch's"),
        ("pytorch_model.bin", b"PK\x03\x04cut off", "pytorch_model.bin: is no complete file of torch's"),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "model.safetensors: cannot be read"),
        ("config.json", None, "config.json: is missing"),
        ("config.json", b"{", "config.json: is no JSON"),
        ("config.json", b"[]", "config.json: is no JSON object"),
    ],
)
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str, data: bytes | None, pattern: str) -> None:
    write_tiny_folder(tmp_path)
    if data is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match=pattern):
        _load(tmp_path)


@pytest.mark.parametrize("held", [torch.zeros(3), {"model": {"a": torch.zeros(3)}}, {3: torch.zeros(3)}])
def test_a_file_that_holds_no_named_tensors_is_refused(tmp_path: Path, held: object) -> None:
    write_tiny_folder(tmp_path)
    torch.save(held, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds something else than tensors"):
        _load(tmp_path)


def test_its_parameters_are_the_same_where_gradients_are_off() -> None:
    with torch.no_grad():
        network = Wav2Vec(tiny_config())
    assert {name for name, _ in network.named_parameters()} == set(network.state_dict())
