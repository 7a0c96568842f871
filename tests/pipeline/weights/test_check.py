"""Every damage of the official folder is named before anything is loaded."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.models.published import PUBLISHED_14B
from pipeline.models.text_encoder import PUBLISHED_TEXT_ENCODER, TextEncoder, load_tokenizer
from pipeline.models.wav2vec import Wav2Vec
from pipeline.weights.check import check_folder
from pipeline.weights.merged import load_transformer
from pipeline.weights.tables import Shapes, adapter_targets, dit_shapes
from pipeline.weights.vae import load_vae
from tests.fakes.checkpoint import INFIXES, PREFIXES, TINY_DIT, upstream_config, write_adapter, write_checkpoint

pytestmark = pytest.mark.unit

SHARD = "diffusion_pytorch_model-00002-of-00004.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
AUDIO_WEIGHTS = "wav2vec2-large-xlsr-53-english/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A faultless folder, not to be changed."""
    folder = tmp_path_factory.mktemp("official")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that can be damaged."""
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def base(folder: Path) -> Path:
    """The base model in the copy."""
    return folder / "Wan2.2-S2V-14B"


def only_problem(folder: Path) -> str:
    """The one thing that is wrong."""
    problems = check_folder(folder).problems
    assert len(problems) == 1, [str(problem) for problem in problems]
    return str(problems[0])


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite a file of weights."""
    if path.suffix == ".safetensors":
        weights = load_file(path)
        edit(weights)
        save_file(weights, path)
    else:
        weights = torch.load(path, weights_only=True)
        edit(weights)
        torch.save(weights, path)


def change_json(path: Path, edit: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_whole_folder_has_no_problem_and_every_part(whole: Path) -> None:
    report = check_folder(whole)
    assert report.problems == []
    assert report.require() is report.files
    parts = {part.name: part for part in report.parts}
    assert (len(parts["transformer"].headers), parts["transformer"].num_parameters) == (180, 1_922_233)
    assert parts["transformer"].num_bytes == sum(
        path.stat().st_size for path in report.files.base.glob("*.safetensors")
    )
    assert len(parts["adapter"].headers) == 2 * 52
    assert len(parts["video autoencoder"].headers) == 194
    assert len(parts["text encoder"].headers) == 22
    assert parts["text encoder"].dtypes == ["bfloat16"]
    assert parts["video autoencoder"].dtypes == ["float32"]
    assert parts["tokenizer"].num_bytes > 0
    assert parts["audio encoder"].path.name == "model.safetensors"
    assert all(part.purpose for part in report.parts)


def test_what_passes_the_check_is_what_the_loaders_take(whole: Path) -> None:
    report = check_folder(whole)
    files, sizes, config = report.require(), report.sizes, report.sizes.dit
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    transformer = load_transformer(files, device=cpu, cache=None)
    vae = load_vae(files.vae, sizes.vae, device=cpu, dtype=dtype)
    audio_encoder = Wav2Vec.load(files.audio_encoder, device=cpu, dtype=dtype)
    text_config = replace(PUBLISHED_TEXT_ENCODER, **sizes.text_encoder, max_prompt_tokens=config.text_len)
    tokenizer = load_tokenizer(files.tokenizer, text_config)
    with TextEncoder.load(files.text_encoder, tokenizer, config=text_config) as text_encoder:
        rows_BLC = text_encoder.encode("a person talks, quietly")
    assert transformer.config == config == TINY_DIT
    assert rows_BLC.shape[-1] == config.text_dim
    assert len(transformer.encode_text(rows_BLC)) == config.num_layers
    assert (audio_encoder.dim, audio_encoder.num_layers) == (config.audio_dim, config.num_audio_layers)
    assert vae.encode(torch.zeros(1, 1, 3, 64, 64)).shape == (1, config.latent_channels, 1, 8, 8)


def test_a_missing_shard_is_one_problem(folder: Path, base: Path) -> None:
    (base / SHARD).unlink()
    assert only_problem(folder) == f"weights {base / SHARD}: is missing"


def test_a_truncated_shard_is_one_problem(folder: Path, base: Path) -> None:
    os.truncate(base / SHARD, (base / SHARD).stat().st_size - 100)
    assert re.search(rf"{SHARD}: is no complete safetensors file \(.*not fully covered", only_problem(folder))


def test_an_index_that_names_a_missing_file_is_told(folder: Path, base: Path) -> None:
    def rename(content: dict[str, dict[str, str]]) -> None:
        content["weight_map"]["head.modulation"] = "elsewhere.safetensors"

    change_json(base / INDEX, rename)  # type: ignore[arg-type]
    words = [str(problem) for problem in check_folder(folder).problems]
    assert words[0].endswith("tensor head.modulation is here, but the index puts it into elsewhere.safetensors")
    assert words[1] == f"weights {base / 'elsewhere.safetensors'}: is missing"


def test_a_tensor_that_the_index_does_not_name_is_told(folder: Path, base: Path) -> None:
    change_json(base / INDEX, lambda content: content["weight_map"].pop("head.modulation"))  # type: ignore[attr-defined]
    assert only_problem(folder).endswith("tensor head.modulation is here, but the index does not name it")


def test_a_missing_index_is_told(folder: Path, base: Path) -> None:
    (base / INDEX).unlink()
    with pytest.raises(WeightsError, match=f"there is no {INDEX}"):
        check_folder(folder)


def test_a_broken_index_is_told(folder: Path, base: Path) -> None:
    (base / INDEX).write_text("{")
    assert f"{INDEX}: is no JSON" in only_problem(folder)


@pytest.mark.parametrize(
    ("name", "owner", "tensor", "size"),
    [
        (SHARD, "the transformer", "blocks.1.ffn.0.weight", [256, 128]),
        ("Wan2.1_VAE.pth", "the video autoencoder", "decoder.upsamples.7.time_conv.bias", [64]),
        ("models_t5_umt5-xxl-enc-bf16.pth", "the text encoder", "blocks.1.norm2.weight", [48]),
    ],
)
def test_a_tensor_that_is_missing_mis_shaped_extra_or_of_another_type_is_named(
    folder: Path, base: Path, name: str, owner: str, tensor: str, size: list[int]
) -> None:
    path = base / name
    change(path, lambda weights: weights.pop(tensor))
    assert only_problem(folder) == f"weights {path}: tensor {tensor} {size} is missing"
    change(path, lambda weights: weights.update({tensor: torch.zeros(size, dtype=torch.float16)}))
    assert only_problem(folder) == f"weights {path}: tensor {tensor} is float16, but it has to be bfloat16 or float32"
    change(path, lambda weights: weights.update({tensor: torch.zeros(3, 5)}))
    assert only_problem(folder) == f"weights {path}: tensor {tensor} is [3, 5], but it has to be {size}"
    change(path, lambda weights: weights.update({tensor: torch.zeros(size), "surplus.weight": torch.zeros(1)}))
    assert only_problem(folder) == f"weights {path}: tensor surplus.weight is none of {owner}'s"


def test_every_missing_tensor_is_named(folder: Path, base: Path) -> None:
    names = ["encoder.conv1.bias", "encoder.head.2.weight", "decoder.middle.1.proj.bias"]
    change(base / "Wan2.1_VAE.pth", lambda weights: [weights.pop(name) for name in names])
    words = " ".join(str(problem) for problem in check_folder(folder).problems)
    assert all(f"tensor {name} " in words for name in names)
    assert words.count("is missing") == 3


def test_the_first_problem_is_raised_with_the_number_of_the_others(folder: Path, base: Path) -> None:
    (base / "Wan2.1_VAE.pth").unlink()
    with pytest.raises(WeightsError, match=r"Wan2\.1_VAE\.pth: is missing$"):
        check_folder(folder).require()
    (base / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    shutil.rmtree(base / "google")
    with pytest.raises(
        WeightsError, match=r"VAE\.pth: is missing \(and 2 more problems, which `visavis weights check` names"
    ):
        check_folder(folder).require()


def test_a_missing_adapter_is_told(folder: Path) -> None:
    (folder / "LiveAvatar" / "liveavatar.safetensors").unlink()
    assert only_problem(folder).endswith("LiveAvatar/liveavatar.safetensors: is missing")


def test_an_adapter_without_one_of_its_pairs_is_told(folder: Path) -> None:
    path = folder / "LiveAvatar" / "liveavatar.safetensors"
    change(path, lambda weights: weights.pop("blocks.3.cross_attn.k.lora_B.default.weight"))
    assert "lora_B of blocks.3.cross_attn.k is missing; 51 of 52 pairs are there" in only_problem(folder)


def test_an_adapter_that_holds_more_is_whole_and_the_rest_is_named(folder: Path) -> None:
    path = folder / "LiveAvatar" / "liveavatar.safetensors"
    change(path, lambda weights: weights.update({f"extra.{number}": torch.zeros(1) for number in range(5)}))
    report = check_folder(folder)
    assert report.problems == []
    remarks = {part.name: part.remarks for part in report.parts if part.remarks}
    words = "not used, because they belong to no layer that the adapter changes: extra.0, extra.1, extra.2 and 2 more"
    assert remarks == {"adapter": [words]}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("infix", INFIXES)
def test_an_adapter_in_any_spelling_is_whole(folder: Path, prefix: str, infix: str) -> None:
    write_adapter(folder / "LiveAvatar" / "liveavatar.safetensors", TINY_DIT, prefix=prefix, infix=infix)
    assert check_folder(folder).problems == []


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"])
def test_code_in_a_pth_is_refused_and_not_run(folder: Path, base: Path, name: str) -> None:
    torch.save({"conv1.weight": Bomb(folder / "proof")}, base / name)
    assert "holds something else than tensors, which is never loaded because it could run code" in only_problem(folder)
    assert not (folder / "proof").exists()


def test_code_in_the_audio_encoder_s_bin_is_refused_and_not_run(folder: Path, base: Path) -> None:
    audio = base / "wav2vec2-large-xlsr-53-english"
    (audio / "model.safetensors").unlink()
    torch.save({"a": Bomb(folder / "proof")}, audio / "pytorch_model.bin")
    assert "pytorch_model.bin: holds something else than tensors" in only_problem(folder)
    assert not (folder / "proof").exists()


def test_the_audio_encoder_may_be_a_bin(folder: Path, base: Path) -> None:
    audio = base / "wav2vec2-large-xlsr-53-english"
    torch.save(load_file(audio / "model.safetensors"), audio / "pytorch_model.bin")
    (audio / "model.safetensors").unlink()
    assert check_folder(folder).problems == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_size", 768, "hidden_size is 768, but the transformer was made for 16"),
        ("num_hidden_layers", 12, "num_hidden_layers is 12, but the transformer was made for 24"),
        ("num_hidden_layers", None, "num_hidden_layers is None, but it has to be a positive whole number"),
        ("do_stable_layer_norm", False, "do_stable_layer_norm is False, but only True is known here"),
    ],
)
def test_an_audio_encoder_of_another_size_is_told(
    folder: Path, base: Path, key: str, value: object, words: str
) -> None:
    change_json(base / "wav2vec2-large-xlsr-53-english" / "config.json", lambda config: config.update({key: value}))
    assert only_problem(folder).endswith(words)


def test_an_audio_encoder_with_too_few_layers_is_told(folder: Path, base: Path) -> None:
    def shorten(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if ".encoder.layers.23." in name]:
            del weights[name]

    change(base / AUDIO_WEIGHTS, shorten)
    problems = [str(problem) for problem in check_folder(folder).problems]
    assert len(problems) == 16
    assert all("tensor wav2vec2.encoder.layers.23." in words and words.endswith("is missing") for words in problems)


def test_a_tensor_of_the_audio_encoder_that_its_loader_would_refuse_is_named(folder: Path, base: Path) -> None:
    """What is above the network or for training only may be there or not."""
    path, name = base / AUDIO_WEIGHTS, "wav2vec2.encoder.layers.3.attention.k_proj.bias"
    change(path, lambda weights: [weights.pop(unused) for unused in ("lm_head.bias", "wav2vec2.masked_spec_embed")])
    assert check_folder(folder).problems == []
    change(path, lambda weights: weights.pop(name))
    assert only_problem(folder) == f"weights {path}: tensor {name} [16] is missing"
    change(path, lambda weights: weights.update({name: torch.zeros(17)}))
    assert only_problem(folder) == f"weights {path}: tensor {name} is [17], but it has to be [16]"
    change(path, lambda weights: weights.update({name: torch.zeros(16), "wav2vec2.adapter.bias": torch.zeros(1)}))
    assert only_problem(folder) == f"weights {path}: tensor wav2vec2.adapter.bias is none of the audio encoder's"
    save_file({}, path)
    assert len(check_folder(folder).problems) == 421


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "tokenizer.json: it knows no </s>: not the text encoder's tokenizer"),
        ('{"model": {"vocab": [["</s>"], 3, []]}, "added_tokens": [5]}', None),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "</s>"}]}', None),
        (
            json.dumps({"model": {"vocab": [["</s>", 0], *([str(number), 0] for number in range(300))]}}),
            "tokenizer.json: it has 301 tokens, but the text encoder has 300: not its tokenizer",
        ),
    ],
)
def test_a_tokenizer_of_another_network_is_told(folder: Path, base: Path, content: str, words: str | None) -> None:
    (base / "google" / "umt5-xxl" / "tokenizer.json").write_text(content)
    if words is None:
        assert check_folder(folder).problems == []
    else:
        assert only_problem(folder).endswith(words)


def test_a_tensor_that_only_the_index_names_is_told(folder: Path, base: Path) -> None:
    change_json(base / INDEX, lambda content: content["weight_map"].update(ghost=SHARD))  # type: ignore[attr-defined]
    assert only_problem(folder) == f"weights {base / INDEX}: it names tensor ghost, which is none of the transformer's"


def test_a_missing_tokenizer_is_told(folder: Path, base: Path) -> None:
    (base / "google" / "umt5-xxl" / "tokenizer.json").unlink()
    assert only_problem(folder).endswith("umt5-xxl/tokenizer.json: is missing")


def test_without_sizes_the_published_ones_are_expected(folder: Path, base: Path) -> None:
    (base / "config.json").write_text("{")
    problems = [str(problem) for problem in check_folder(folder).problems]
    assert "config.json: is no JSON" in problems[0]
    assert any("tensor blocks.39.modulation [1, 6, 5120] is missing" in problem for problem in problems)


def test_at_the_published_sizes_no_part_may_have_others(folder: Path, base: Path) -> None:
    change_json(base / "config.json", lambda config: config.clear())
    words = "\n".join(str(problem) for problem in check_folder(folder).problems)
    assert "tensor token_embedding.weight is [300, 48], but it has to be [256384, 4096]" in words
    assert "tensor encoder.conv1.weight is [8, 3, 3, 3, 3], but it has to be [96, 3, 3, 3, 3]" in words
    assert f"hidden_size is 16, but the transformer was made for {PUBLISHED_14B.audio_dim}" in words
    assert "lora_A.default.weight is [4, 128], but it has to be [128, 5120]" in words


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"])
def test_a_file_without_tensors_lacks_all_of_them(folder: Path, base: Path, name: str) -> None:
    torch.save({}, base / name)
    problems = check_folder(folder).problems
    assert len(problems) > 1
    assert all(problem.path == str(base / name) and problem.reason.endswith("is missing") for problem in problems)


def write_sparse(path: Path, shapes: Shapes) -> None:
    """Write a bfloat16 file of any size that takes no room: after the header there is a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)


def test_the_published_transformer_and_adapter_are_whole(tmp_path: Path) -> None:
    """At their real size, 34 GB, of which nothing but headers is there or read."""
    shapes = dit_shapes(PUBLISHED_14B)
    names, index = sorted(shapes), {}
    for shard in range(4):
        part = names[shard * 315 : (shard + 1) * 315]
        file = f"diffusion_pytorch_model-{shard + 1:05}-of-00004.safetensors"
        write_sparse(tmp_path / file, {name: shapes[name] for name in part})
        index |= dict.fromkeys(part, file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(upstream_config(PUBLISHED_14B)))
    adapter = {}
    for name, (rows, columns) in adapter_targets(shapes).items():
        adapter[f"{name}.lora_A.default.weight"] = (128, columns)
        adapter[f"{name}.lora_B.default.weight"] = (rows, 128)
    write_sparse(tmp_path / "liveavatar.safetensors", adapter)
    transformer, found = check_folder(tmp_path).parts[:2]
    assert (transformer.problems, found.problems) == ([], [])
    assert 32.59e9 < transformer.num_bytes < 32.6e9
    assert transformer.num_parameters == 16_295_755_609
    assert (len(found.headers), found.num_parameters) == (896, 676_331_520)
