"""The adapter: every spelling is found, an incomplete one is refused, the merge is exact in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.models.published import PUBLISHED_14B
from pipeline.weights.headers import TensorHeader, read_safetensors
from pipeline.weights.lora import ADAPTER_SCALE, find_pairs, merge_pair, open_adapter, published_rank
from pipeline.weights.tables import adapter_targets, dit_shapes
from tests.fakes.checkpoint import INFIXES, PREFIXES, TINY_DIT, adapter_weights, recipe_weights, write_adapter

pytestmark = pytest.mark.unit

NAME = "blocks.2.ffn.0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole adapter."""
    write_adapter(tmp_path / "liveavatar.safetensors", TINY_DIT)
    return tmp_path / "liveavatar.safetensors"


def merged(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    with open_adapter(path, TINY_DIT) as adapter:
        return dict(adapter.merge((name, value.clone()) for name, value in weights.items()))


def change(path: Path, *, without: str | None = None, **changes: Tensor) -> None:
    """Rewrite an adapter without a tensor, or with others."""
    weights = load_file(path)
    if without is not None:
        del weights[without]
    save_file({**weights, **changes}, path)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("infix", INFIXES)
def test_every_spelling_gives_the_same_weights(path: Path, tmp_path: Path, prefix: str, infix: str) -> None:
    weights = recipe_weights(dit_shapes(TINY_DIT), torch.bfloat16)
    write_adapter(tmp_path / "other.safetensors", TINY_DIT, prefix=prefix, infix=infix)
    expected = merged(path, weights)
    for name, value in merged(tmp_path / "other.safetensors", weights).items():
        assert torch.equal(value, expected[name])


def test_the_merge_is_the_sum_in_float32_and_touches_the_adapted_layers_only(path: Path) -> None:
    weights = recipe_weights(dit_shapes(TINY_DIT))
    pairs = adapter_weights(TINY_DIT)
    actual = merged(path, weights)
    assert actual.keys() == weights.keys()
    assert len(pairs) == 4 * (2 * 4 + 2) + 3 * 4
    for name, weight in weights.items():
        if name.removesuffix(".weight") in pairs and name.endswith(".weight"):
            down, up = (side.double() for side in pairs[name.removesuffix(".weight")])
            torch.testing.assert_close(actual[name], (weight.double() + 0.5 * up @ down).float(), rtol=1e-6, atol=1e-6)
            assert (actual[name] - weight).abs().max() > 0.03
        else:
            assert torch.equal(actual[name], weight)


def test_the_merge_rounds_once_to_the_dtype_of_the_weight() -> None:
    """Formed in bfloat16 instead, the sum would differ in a part of the numbers."""
    torch.manual_seed(0)
    weight, down, up = (torch.randn(size).bfloat16() for size in ((64, 48), (8, 48), (64, 8)))
    expected = (weight.double() + 0.5 * up.double() @ down.double()).bfloat16()
    assert not torch.equal(weight + 0.5 * up @ down, expected)
    merge_pair(weight, down, up, 0.5)
    assert torch.equal(weight, expected)


def test_the_merge_is_exact_also_where_fast_products_are_allowed() -> None:
    torch.manual_seed(0)
    weight, down, up = torch.zeros(64, 256), torch.randn(128, 256), torch.randn(64, 128)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        merge_pair(weight, down, up, 1.0)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(weight, (up.double() @ down.double()).float(), rtol=1e-6, atol=1e-6)


def test_the_scale_is_alpha_64_over_rank_128() -> None:
    assert ADAPTER_SCALE == 0.5
    assert published_rank(PUBLISHED_14B) == 128
    assert published_rank(TINY_DIT) is None


@pytest.mark.parametrize("side", ["A", "B"])
def test_an_adapter_with_one_matrix_missing_is_refused_by_the_name_of_its_layer(path: Path, side: str) -> None:
    change(path, without=f"{NAME}.lora_{side}.default.weight")
    with (
        pytest.raises(WeightsError, match=rf"safetensors: lora_{side} of {NAME} is missing; 51 of 52 pairs are there$"),
        open_adapter(path, TINY_DIT),
    ):
        pass


def test_the_first_missing_pair_is_named(path: Path) -> None:
    save_file({"unused": torch.zeros(1)}, path)
    weights = {}
    for name, (down, up) in adapter_weights(TINY_DIT).items():
        if not name.startswith("blocks.1."):
            weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(weights, path)
    words = r"lora_A and lora_B of blocks\.1\.self_attn\.q is missing; 42 of 52"
    with pytest.raises(WeightsError, match=words), open_adapter(path, TINY_DIT):
        pass


def test_a_spelling_that_is_not_known_is_refused(path: Path) -> None:
    """By the pairs that are missing then: passing over all of it would run the model without its adapter."""
    save_file({f"lora_unet_{name}": value for name, value in load_file(path).items()}, path)
    with (
        pytest.raises(WeightsError, match="is missing; 0 of 52 pairs are there"),
        open_adapter(path, TINY_DIT),
    ):
        pass


def test_a_tensor_that_nobody_uses_does_no_harm_and_is_named(path: Path) -> None:
    """As with the published code, which passes over all that it does not look for."""
    change(path, **{"head.head.lora_A.weight": torch.zeros(4, 128)})
    targets = adapter_targets(dit_shapes(TINY_DIT))
    found = find_pairs(read_safetensors(path), targets, None)
    assert (len(found.pairs), found.problems, found.unused) == (52, [], ["head.head.lora_A.weight"])
    with open_adapter(path, TINY_DIT) as adapter:
        passed = dict(adapter.merge([("head.head.weight", torch.ones(2, 2))]))
    assert torch.equal(passed["head.head.weight"], torch.ones(2, 2))


def test_a_pair_in_two_spellings_is_refused(path: Path) -> None:
    change(path, **{f"diffusion_model.{NAME}.lora_A.weight": torch.zeros(4, 128)})
    with pytest.raises(WeightsError, match=rf"{NAME} is there twice: .* and "), open_adapter(path, TINY_DIT):
        pass


@pytest.mark.parametrize(
    ("side", "value", "words"),
    [
        ("A", torch.zeros(4, 99), r"is \[4, 99\], but it has to be \[4, 128\]"),
        ("A", torch.zeros(5, 128), r"is \[5, 128\], but it has to be \[4, 128\]"),
        ("B", torch.zeros(4, 256), r"is \[4, 256\], but it has to be \[256, 4\]"),
        ("B", torch.zeros(256, 4, dtype=torch.int8), "is i8, but it has to be one of bfloat16, float16, float32"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(path: Path, side: str, value: Tensor, words: str) -> None:
    change(path, **{f"{NAME}.lora_{side}.default.weight": value})
    with (
        pytest.raises(WeightsError, match=rf"tensor {NAME}\.lora_{side}\.default\.weight {words}"),
        open_adapter(path, TINY_DIT),
    ):
        pass


def test_an_adapter_of_numbers_instead_of_matrices_is_refused() -> None:
    headers = {f"{NAME}.lora_{side}.weight": TensorHeader((), "bfloat16") for side in "AB"}
    problems = find_pairs(headers, {NAME: (256, 128)}, None).problems
    assert problems[0] == f"tensor {NAME}.lora_A.weight is [], but it has to be [0, 128]"


def test_at_the_published_sizes_the_rank_has_to_be_128() -> None:
    targets = adapter_targets(dit_shapes(PUBLISHED_14B))
    headers = {}
    for name, (rows, columns) in targets.items():
        headers[f"{name}.lora_A.weight"] = TensorHeader((64, columns), "bfloat16")
        headers[f"{name}.lora_B.weight"] = TensorHeader((rows, 64), "bfloat16")
    pairs, problems, _ = find_pairs(headers, targets, published_rank(PUBLISHED_14B))
    assert len(pairs) == 448
    assert problems[0].endswith("is [64, 5120], but it has to be [128, 5120]")
    assert find_pairs(headers, targets, None).problems == []
