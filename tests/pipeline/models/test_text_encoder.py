"""The text encoder: reference rows from a file's text to its numbers, what is cleaned, and what is refused."""

import dataclasses
import gc
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from pipeline.errors import ConfigError, WeightsError
from pipeline.models.text_encoder import (
    PUBLISHED_TEXT_ENCODER,
    TOKENIZER_FILE,
    TextEncoder,
    TextEncoderConfig,
    clean_prompt,
    load_tokenizer,
    translate_names,
)
from pipeline.weights.sizes import PUBLISHED_TEXT_ENCODER_SIZES
from pipeline.weights.tables import text_encoder_shapes

pytestmark = pytest.mark.numerics

TINY = TextEncoderConfig(
    vocabulary_tokens=300,
    dim=48,
    attention_dim=48,
    ffn_dim=96,
    num_heads=4,
    num_layers=2,
    num_buckets=32,
    max_distance_tokens=128,
    max_prompt_tokens=32,
)
"""The configuration for which the reference rows were made."""
PROMPT = "w5 w17 w299 w3 w88 w150 w42 w42 w7 w260"
PROMPT_IDS = [5, 17, 299, 3, 88, 150, 42, 42, 7, 260, 1]
TOLERANCE = 1e-4

Draw = Callable[[str, tuple[int, ...]], Tensor]
Load = Callable[..., TextEncoder]
RelativeError = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def weights(draw: Draw) -> dict[str, Tensor]:
    """Weights that depend on their names and shapes only, as the reference rows were made with."""
    tensors = {}
    for name, shape in published_shapes(TINY).items():
        values = draw(name, shape)
        tensors[name] = 1 + 0.1 * values if "norm" in name else values / (values.numel() / shape[0]) ** 0.5
    return tensors


@pytest.fixture(scope="module")
def reference_rows() -> Tensor:
    """What the reference made of the prompt, padded to 32 tokens."""
    with np.load(Path(__file__).parents[2] / "data" / "tiny_parity.npz") as arrays:
        return torch.from_numpy(arrays["t5_out"])[None]


@pytest.fixture
def files(tmp_path: Path, weights: dict[str, Tensor]) -> tuple[Path, Path]:
    """A weight file in bfloat16, and the folder of a tokenizer that knows the words w2 to w299."""
    path, folder = tmp_path / "encoder.pth", tmp_path / "tokenizer"
    torch.save({name: tensor.bfloat16() for name, tensor in weights.items()}, path)
    save_tokenizer(folder, word_tokenizer())
    return path, folder


@pytest.fixture
def load(files: tuple[Path, Path], weights: dict[str, Tensor]) -> Load:
    """Load the tiny encoder, unrounded."""
    path, folder = files
    torch.save(weights, path)

    def load_tiny(config: TextEncoderConfig = TINY, dtype: torch.dtype = torch.float32) -> TextEncoder:
        return load_files(path, folder, config=config, dtype=dtype)

    return load_tiny


def load_files(path: Path, folder: Path, *, config: TextEncoderConfig = TINY, **settings: Any) -> TextEncoder:
    return TextEncoder.load(path, load_tokenizer(folder, config), config=config, **settings)


def published_shapes(config: TextEncoderConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of the published file, at any size."""
    return text_encoder_shapes(**{name: getattr(config, name) for name in PUBLISHED_TEXT_ENCODER_SIZES})


def word_tokenizer(num_words: int = 300) -> Tokenizer:
    """Split at spaces; word w<n> is token n."""
    words = {"<pad>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, num_words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))


def encode_plainly(weights: dict[str, Tensor], ids: list[int], config: TextEncoderConfig, num_slots: int) -> Tensor:
    """Encode as the published model is described, padded to a number of slots, with every tensor in one dtype."""
    x = weights["token_embedding.weight"][torch.tensor(ids + [0] * (num_slots - len(ids)))]
    position = torch.arange(num_slots)
    buckets = (position[None, :] - position[:, None]).apply_(bucket)
    lowest = torch.finfo(x.dtype).min
    for block in range(config.num_layers):
        part = {name.split(".", 2)[2]: t for name, t in weights.items() if name.startswith(f"blocks.{block}.")}
        normed = root_mean_square_norm(x, part["norm1.weight"])
        q, k, v = ((normed @ part[f"attn.{name}.weight"].T).unflatten(1, (config.num_heads, -1)) for name in "qkv")
        logits = torch.einsum("ind,jnd->nij", q, k) + part["pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        logits[:, :, len(ids) :] += lowest
        attended = torch.einsum("nij,jnd->ind", logits.float().softmax(-1).to(x.dtype), v).flatten(1)
        x = x + attended @ part["attn.o.weight"].T
        normed = root_mean_square_norm(x, part["norm2.weight"])
        gate = gelu_in_steps(normed @ part["ffn.gate.0.weight"].T)
        x = x + ((normed @ part["ffn.fc1.weight"].T) * gate) @ part["ffn.fc2.weight"].T
    return root_mean_square_norm(x, weights["norm.weight"])[None, : len(ids)]


def gelu_in_steps(x: Tensor) -> Tensor:
    """Approximate the GELU by tanh, rounding after every operation as the published model does."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def root_mean_square_norm(x: Tensor, weight: Tensor) -> Tensor:
    return (x * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(weight.dtype) * weight


def bucket(distance: int) -> int:
    """Entry of the table of positions for a key so many tokens after the query."""
    half, far = (16 if distance > 0 else 0), abs(distance)
    return half + (far if far < 8 else min(15, 8 + math.floor(math.log(far / 8) / math.log(128 / 8) * 8)))


def test_the_published_file_has_242_tensors_with_the_published_names_and_shapes() -> None:
    block = {
        "norm1.weight": (4096,),
        "attn.q.weight": (4096, 4096),
        "attn.k.weight": (4096, 4096),
        "attn.v.weight": (4096, 4096),
        "attn.o.weight": (4096, 4096),
        "norm2.weight": (4096,),
        "ffn.gate.0.weight": (10240, 4096),
        "ffn.fc1.weight": (10240, 4096),
        "ffn.fc2.weight": (4096, 10240),
        "pos_embedding.embedding.weight": (32, 64),
    }
    expected = {f"blocks.{i}.{name}": shape for i in range(24) for name, shape in block.items()}
    expected |= {"token_embedding.weight": (256384, 4096), "norm.weight": (4096,)}
    shapes = published_shapes(PUBLISHED_TEXT_ENCODER)
    assert shapes == expected
    assert len(shapes) == 242
    assert sum(math.prod(shape) for shape in shapes.values()) == 5_680_910_336


def test_a_file_of_the_published_size_fits_the_network(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """Tensors without storage stand for the file; the network refuses names too many or too few, and other shapes."""
    path = tmp_path / "published.pth"
    shapes = published_shapes(PUBLISHED_TEXT_ENCODER)
    torch.save({name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}, path)
    load_files(path, files[1], config=PUBLISHED_TEXT_ENCODER, device="meta").close()


def test_a_prompt_gives_the_reference_rows(load: Load, reference_rows: Tensor, relative_error: RelativeError) -> None:
    """The reference padded the prompt to 32 tokens and masked the rest: rows do not depend on it."""
    with load() as encoder:
        rows = encoder.encode(PROMPT)
    assert relative_error(rows, reference_rows) < TOLERANCE


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_a_long_prompt_agrees_with_the_description(
    load: Load, weights: dict[str, Tensor], relative_error: RelativeError, dtype: torch.dtype, tolerance: float
) -> None:
    """200 tokens reach every bucket of the positions; 40 slots of padding are masked in the description.

    In bfloat16 the two agree to one rounding here and there: 0.003, against 0.03 for attention with float32 logits.
    """
    config = dataclasses.replace(TINY, max_prompt_tokens=256)
    numbers = [2 + 7 * index % 298 for index in range(199)]
    with load(config=config, dtype=dtype) as encoder:
        rows = encoder.encode(" ".join(f"w{number}" for number in numbers))
    assert rows.dtype == dtype
    rounded = {name: tensor.to(dtype) for name, tensor in weights.items()}
    expected = encode_plainly(rounded, [*numbers, 1], config, num_slots=240)
    assert relative_error(rows, expected) < tolerance


def test_by_default_everything_is_bfloat16_and_autocast_around_it_changes_nothing(files: tuple[Path, Path]) -> None:
    with load_files(*files) as encoder:
        rows = encoder.encode(PROMPT)
        with torch.autocast("cpu", dtype=torch.float16):
            again = encoder.encode(PROMPT)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(again, rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_rows_are_the_same_and_closing_frees_the_memory(
    files: tuple[Path, Path], relative_error: RelativeError
) -> None:
    with load_files(*files) as encoder:
        expected = encoder.encode(PROMPT)
    encoder = load_files(*files, device="cuda")
    rows = encoder.encode(PROMPT)
    assert rows.device.type == "cuda"
    assert relative_error(rows.cpu(), expected) < 2e-2
    loaded_bytes = torch.cuda.memory_allocated()
    encoder.close()
    num_weights = sum(math.prod(shape) for shape in published_shapes(TINY).values())
    assert loaded_bytes - torch.cuda.memory_allocated() >= 2 * num_weights


def test_weights_stay_in_the_mapped_file_until_the_encoder_is_closed(files: tuple[Path, Path]) -> None:
    def is_mapped() -> bool:
        return str(files[0]) in Path("/proc/self/maps").read_text()

    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not list what a process has mapped")
    gc.disable()  # closing alone has to do it
    try:
        encoder = load_files(*files)
        encoder.encode(PROMPT)
        assert is_mapped()
        encoder.close()
        assert not is_mapped()
    finally:
        gc.enable()


def test_an_encoder_that_is_loaded_in_a_thread_leaves_the_others_alone(load: Load, reference_rows: Tensor) -> None:
    """A prompt may be encoded while a stream runs."""
    with ThreadPoolExecutor(1) as pool:
        loading = [pool.submit(lambda: load().encode(PROMPT)) for _ in range(5)]
        while not loading[-1].done():
            assert torch.nn.Linear(2, 2).weight.device == torch.zeros(1).device == torch.device("cpu")
    for rows in loading:
        torch.testing.assert_close(rows.result(), reference_rows, rtol=1e-3, atol=1e-3)


def test_a_closed_encoder_refuses_and_may_be_closed_again(load: Load) -> None:
    encoder = load()
    encoder.close()
    encoder.close()
    with pytest.raises(ValueError, match="the text encoder is closed"):
        encoder.encode(PROMPT)


def test_nothing_is_written_to_the_terminal(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    with load() as encoder:
        encoder.encode(PROMPT)
    assert capfd.readouterr() == ("", "")


def test_a_prompt_that_is_too_long_is_cut_before_its_end_mark_and_reported(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    with load() as encoder:
        fitting = encoder.encode(" ".join(["w5"] * 31))
        assert not caplog.messages
        cut = encoder.encode(" ".join(["w5"] * 31 + ["w6"] * 40))
    assert fitting.shape == (1, 32, 48)
    assert torch.equal(cut, fitting)
    assert caplog.messages == ["a prompt is too long: only its first 32 tokens are read"]


def test_an_empty_prompt_is_the_end_mark_alone(load: Load, relative_error: RelativeError) -> None:
    with load() as encoder:
        rows = encoder.encode(" \n")
        shortest = encoder.encode("w5")
    assert rows.shape == (1, 1, 48)
    assert relative_error(rows[:, -1], shortest[:, -1]) > 0.01


def test_a_prompt_is_cleaned_before_it_is_cut_into_tokens(load: Load) -> None:
    with load() as encoder:
        assert torch.equal(encoder.encode("\ufeffw5\n\n ｗ17&nbsp;w299 "), encoder.encode("w5 w17 w299"))


def test_rare_characters_keep_their_bytes_where_the_tokenizer_says_so(files: tuple[Path, Path], load: Load) -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)] + [("▁", -2.0), ("a", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    save_tokenizer(files[1], tokenizer)
    with load() as encoder:
        assert encoder.encode("a").shape[1] == 3
        assert encoder.encode("a猫").shape[1] == 6


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  A woman\r\n\tspeaks.\u2028\u3000 ", "A woman speaks."),
        ("“It’s ‘fine’”, ʼtis", "\"It's 'fine'\", 'tis"),
        ("a &amp;lt; b &quot;c&quot; &#39;d&#39;", "a < b \"c\" 'd'"),
        ("&ldquo;R&amp;D&rdquo;", '"R&D"'),
        ("一个女人，在说话。", "一个女人,在说话。"),
        ("ＡＢＣ！ ｶﾞ ￥", "ABC! ガ ¥"),
        ("ﬁne ﬂuﬀ ǆ ĳ", "fine fluff dž ij"),
        ("cafe\u0301", "café"),
        ("a\x00b\x7f\ufeffc\ufffc", "abc"),
        ("\ud83d\ude00 \ud83d", "😀 \ufffd"),
        ("👩\u200d💻 São Ångström — naïve…", "👩\u200d💻 São Ångström — naïve…"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned_as_for_the_published_model(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def test_translation_keeps_every_tensor_once(weights: dict[str, Tensor]) -> None:
    translated = translate_names(weights, TINY)
    assert {id(tensor) for tensor in translated.values()} == {id(tensor) for tensor in weights.values()}
    assert len(translated) == len(weights) == 22
    assert translated["encoder.block.1.layer.1.DenseReluDense.wi_0.weight"] is weights["blocks.1.ffn.gate.0.weight"]
    assert translated["encoder.block.0.layer.0.SelfAttention.o.weight"] is weights["blocks.0.attn.o.weight"]


@pytest.mark.parametrize(
    ("dropped", "added", "message"),
    [
        (["blocks.1.attn.k.weight"], {}, r": it lacks blocks\.1\.attn\.k\.weight$"),
        ([], {"extra": torch.zeros(1)}, r": it has the unknown extra$"),
        (["norm.weight"], {"norm.bias": torch.zeros(48)}, r"it lacks norm\.weight and has the unknown norm\.bias$"),
        (
            [f"blocks.0.attn.{part}.weight" for part in "qkvo"],
            {},
            r"it lacks .*q.*, .*k.*, .*v\.weight \(and 1 more\)$",
        ),
        ([], {"norm.weight": torch.zeros(47)}, r"norm\.weight has the shape \(47,\), but it has to be \(48,\)"),
        ([], {"norm.weight": torch.zeros(48, dtype=torch.int8)}, r"norm\.weight is torch\.int8, but it has to be of"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_their_file(
    files: tuple[Path, Path], weights: dict[str, Tensor], dropped: list[str], added: dict[str, Tensor], message: str
) -> None:
    torch.save({name: tensor for name, tensor in weights.items() if name not in dropped} | added, files[0])
    with pytest.raises(WeightsError, match=message) as error:
        load_files(*files)
    assert error.value.path == str(files[0])


class Bomb:
    """Runs code when it is unpickled: touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("save", "message"),
    [
        (torch.save, "holds something else than tensors, which is never loaded"),
        (lambda value, path: path.write_bytes(pickle.dumps(value)), "holds something else than tensors"),
    ],
)
def test_code_in_a_weight_file_is_refused_and_not_run(
    files: tuple[Path, Path], tmp_path: Path, save: Callable[[Any, Path], object], message: str
) -> None:
    touched = tmp_path / "touched"
    save({"norm.weight": Bomb(touched)}, files[0])
    with pytest.raises(WeightsError, match=message):
        load_files(*files)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"encoder\.pth: is missing"),
        (lambda path: path.write_bytes(b""), "is no file of torch's"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "is no file of torch's"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4000]), "is no complete file of torch's"),
        (lambda path: torch.save([torch.zeros(1)], path), "holds something else than tensors"),
        (lambda path: torch.save({"norm.weight": 3}, path), "holds something else than tensors"),
        (lambda path: torch.save({3: torch.zeros(1)}, path), "holds something else than tensors"),
    ],
)
def test_a_damaged_weight_file_is_refused(
    files: tuple[Path, Path], damage: Callable[[Path], object], message: str
) -> None:
    damage(files[0])
    with pytest.raises(WeightsError, match=message):
        load_files(*files)


def test_a_folder_without_a_tokenizer_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tokenizer\.json: cannot be read \(No such file"):
        load_files(files[0], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"version": "1.0"}', "not a readable tokenizer"),
        (b"\xff\xfe", "not a readable tokenizer"),
        (word_tokenizer(301).to_str().encode(), "it has 301 tokens, but the network has 300"),
        (Tokenizer(models.WordLevel({"</s>": 0}, unk_token="</s>")).to_str().encode(), "it does not end a text with"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(files: tuple[Path, Path], content: bytes, message: str) -> None:
    (files[1] / TOKENIZER_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_files(*files)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_heads", 5, "attention_dim is 48, but it has to give 5 heads"),
        ("num_buckets", 30, "num_buckets is 30, but it has to be a multiple of 4"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(key: str, value: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **{key: value})
