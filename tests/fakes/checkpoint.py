"""The large model's official folder at a tiny size, with reproducible weights.

Names, types and places are the official ones, so that every loader takes it for a real one. Weights depend on their
names and shapes only; the transformer's, the VAE's and the text encoder's are those of the reference outputs. Only
the tokenizer and the audio encoder need transformers, which is slow to import.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.dit_config import DiTConfig
from pipeline.models.published import PUBLISHED_14B
from pipeline.models.wan_vae import PUBLISHED_WAN_VAE
from pipeline.weights.official import ADAPTER_FOLDER, ADAPTER_NAME, BASE_FOLDER, OfficialFolder
from pipeline.weights.tables import Shapes, adapter_targets, dit_shapes, text_encoder_shapes, vae_shapes

TINY_DIT = dataclasses.replace(
    PUBLISHED_14B,
    dim=128,
    num_heads=4,
    num_layers=4,
    ffn_dim=256,
    freq_dim=64,
    text_dim=48,
    text_len=32,
    audio_dim=16,
    audio_inject_layers=(0, 1, 3),
)
TINY_RANK = 4
TINY_VAE = dataclasses.replace(PUBLISHED_WAN_VAE, width=8)
TINY_TEXT_ENCODER_SIZES = {
    "vocabulary_tokens": 300,
    "dim": 48,
    "attention_dim": 48,
    "ffn_dim": 96,
    "num_heads": 4,
    "num_layers": 2,
    "num_buckets": 32,
}

PREFIXES = ("", "base_model.model.", "diffusion_model.")
INFIXES = (".default", "")


def write_checkpoint(folder: Path, config: DiTConfig = TINY_DIT) -> OfficialFolder:
    """Write the whole official folder."""
    base = folder / BASE_FOLDER
    files = OfficialFolder(base, folder / ADAPTER_FOLDER / ADAPTER_NAME)
    base.mkdir(parents=True)
    write_transformer(base, config)
    write_adapter(files.adapter, config)
    torch.save(recipe_weights(vae_shapes(TINY_VAE)), files.vae)
    text_encoder = text_encoder_shapes(**TINY_TEXT_ENCODER_SIZES)
    torch.save(recipe_weights(text_encoder, torch.bfloat16), files.text_encoder)
    write_tokenizer(files.tokenizer)
    write_audio_encoder(files.audio_encoder, config)
    return files


def write_transformer(base: Path, config: DiTConfig, num_shards: int = 4) -> None:
    """Write the transformer's shards, their index and its sizes; neighbouring tensors share a shard."""
    weights = recipe_weights(dit_shapes(config), torch.bfloat16)
    names = sorted(weights)
    index = {}
    for shard in range(num_shards):
        part = names[shard * len(names) // num_shards : (shard + 1) * len(names) // num_shards]
        file = f"diffusion_pytorch_model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        save_file({name: weights[name] for name in part}, base / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    num_bytes = sum(weight.nbytes for weight in weights.values())
    write_json(
        base / "diffusion_pytorch_model.safetensors.index.json",
        {"metadata": {"total_size": num_bytes}, "weight_map": index},
    )
    write_json(base / "config.json", upstream_config(config))


def upstream_config(config: DiTConfig) -> dict[str, object]:
    """Say the transformer's sizes in upstream's words."""
    return {
        "_class_name": "WanModel_S2V",
        "_diffusers_version": "0.34.0",
        "model_type": "s2v",
        "patch_size": [1, config.patch, config.patch],
        "text_len": config.text_len,
        "in_dim": config.latent_channels,
        "out_dim": config.latent_channels,
        "cond_dim": config.latent_channels,
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "window_size": [-1, -1],
        "qk_norm": True,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "audio_dim": config.audio_dim,
        "num_audio_token": config.num_audio_tokens,
        "enable_adain": True,
        "adain_mode": "attn_norm",
        "audio_inject_layers": list(config.audio_inject_layers),
        "zero_init": True,
        "zero_timestep": True,
        "enable_motioner": False,
        "add_last_motion": True,
        "enable_framepack": True,
        "enable_tsm": False,
        "trainable_token_pos_emb": False,
        "motion_token_num": 1024,
    }


def adapter_weights(config: DiTConfig, *, seed: str = "") -> dict[str, tuple[Tensor, Tensor]]:
    """Make A and B of every adapted layer, bfloat16, of about the weights' size; another seed, another adapter."""
    return {
        name: (
            (recipe(f"{seed}{name}.lora_A", (TINY_RANK, shape[1])) / shape[1] ** 0.5).bfloat16(),
            (recipe(f"{seed}{name}.lora_B", (shape[0], TINY_RANK)) / TINY_RANK**0.5).bfloat16(),
        )
        for name, shape in adapter_targets(dit_shapes(config)).items()
    }


def write_adapter(
    path: Path, config: DiTConfig, *, prefix: str = PREFIXES[0], infix: str = INFIXES[0], seed: str = ""
) -> None:
    """Write the adapter in one of its spellings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, (down, up) in adapter_weights(config, seed=seed).items():
        weights[f"{prefix}{name}.lora_A{infix}.weight"] = down
        weights[f"{prefix}{name}.lora_B{infix}.weight"] = up
    save_file(weights, path)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of 300 pieces: words of one letter, with the ids of padding, end and unknown as in T5."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{letter}" for letter in letters)]
    pieces += [f"<extra_id_{number}>" for number in range(300 - len(pieces))]
    tokenizer = Tokenizer(
        Unigram([(piece, 0.0 if place < 3 else -1.0) for place, piece in enumerate(pieces)], unk_id=2)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(folder)


def write_audio_encoder(folder: Path, config: DiTConfig) -> None:
    """Write the audio encoder as Hugging Face stores it, with sizes that fit the transformer."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(0)
    network = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            hidden_size=config.audio_dim,
            num_hidden_layers=config.num_audio_layers - 1,
            num_attention_heads=2,
            intermediate_size=2 * config.audio_dim,
            conv_dim=(8,) * 7,
            conv_kernel=(10, 3, 3, 3, 3, 2, 2),
            conv_stride=(5, 2, 2, 2, 2, 2, 2),
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            vocab_size=33,
        )
    )
    network.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", "-", *map(chr, range(ord("a"), ord("z") + 1))]
    write_json(folder / "vocab.json", {letter: place for place, letter in enumerate(letters)})


def recipe_weights(shapes: Shapes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights that depend on their names and shapes only, as the reference outputs were made with."""
    return {name: _scaled(name, recipe(name, shape)).to(dtype) for name, shape in shapes.items()}


def recipe(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend on a name only."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(int(np.prod(shape)))
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def _scaled(name: str, values: Tensor) -> Tensor:
    if name == "casual_audio_encoder.weights":
        return 1 + 0.5 * values
    if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
        return 1 + 0.1 * values
    if values.ndim >= 2 and not name.endswith(("modulation", "padding_tokens")):
        return values / (values.numel() / values.shape[0]) ** 0.5
    return 0.1 * values


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file as upstream's tools do."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
