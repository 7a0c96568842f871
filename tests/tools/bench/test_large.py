"""The large engine's bench on a tiny checkpoint: every figure, and blocks step by step as block after block."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline.config import EngineConfig, LargeConfig
from pipeline.models.sampler import Noise, sample_block
from pipeline.weights.sizes import Sizes
from pipeline.worker.large import LargeModel
from pipeline.worker.large_networks import RandomNetworks
from tests.fakes.checkpoint import TINY_DIT, TINY_TEXT_ENCODER_SIZES, TINY_VAE
from tests.fakes.wav2vec import tiny_config
from tools.bench.large import BlockInputs, denoise_by_step, relative_errors, run, show

pytestmark = [pytest.mark.contract, pytest.mark.timeout(120)]

CONFIG = EngineConfig(
    name="large",
    threads=1,
    large=LargeConfig(device="cpu", height_px=64, width_px=64, random_weights=True),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What a model sets for its process is set back."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    yield
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


def tiny() -> RandomNetworks:
    return RandomNetworks(Sizes(dit=TINY_DIT, vae=TINY_VAE, text_encoder=TINY_TEXT_ENCODER_SIZES), tiny_config())


def test_blocks_step_by_step_are_blocks_one_after_another() -> None:
    model, source = LargeModel(CONFIG, tiny()), tiny()
    grey = np.full((64, 64, 3), 128, np.uint8)
    with torch.inference_mode():
        noise = Noise(model.geometry, seed=1, dtype=model.dtype)
        inputs = BlockInputs(
            still=model.still(grey),
            rows_BLC=source.encode_prompt("talk", model.device),
            columns_GSAT=torch.randn(3, 25, 16, 12),
            noise_GCTHW=torch.cat([noise.next_block() for _ in range(3)]),
        )
        cache = model.dit.new_cache(latent_height=8, latent_width=8, num_steps=4)
        text = model.dit.encode_text(inputs.rows_BLC)
        still = inputs.still
        model.dit.prefill(still.reference_BCThw[:, :, 0], cache, motion_BCTHW=still.motion_BCThw, text=text)
        expected = []
        for index in range(3):
            heard = model.dit.encode_audio(inputs.columns_GSAT[index][None].bfloat16())
            conditioning = model.dit.condition(heard, model.modulation, 3 * index)
            expected.append(
                sample_block(model.dit, inputs.noise_GCTHW[index][None], model.schedule, conditioning, cache)
            )
    for made, right in zip(denoise_by_step(model.dit, inputs, model.schedule), expected, strict=True):
        assert torch.equal(made, right)


def test_the_report_has_every_figure() -> None:
    report = run(CONFIG, num_windows=10, source=tiny())
    assert json.loads(json.dumps(report)) == report
    assert set(report["load_s"]) == {
        "prompt",
        "transformer",
        "video autoencoder",
        "audio encoder",
        "in all",
        "warm-up",
    }
    times = report["times"]
    assert list(times["stages_ms"]) == ["features", "step 1", "step 2", "step 3", "step 4", "decode"]
    assert times["num_windows"] == 10
    memory = report["memory"]
    assert memory["growth_bytes"] == memory["last_window_bytes"] - memory["first_window_bytes"]
    assert memory["growth_bytes"] < 40e6
    assert memory["most_bytes"] >= memory["last_window_bytes"]
    assert len(report["relative_errors"]) == 3
    assert all(1e-4 < error < 0.1 for error in report["relative_errors"])
    out = io.StringIO()
    show(report, Console(file=out, width=120))
    for text in ("random weights", "transformer", "step 4", "planned in all", "relative error", "%"):
        assert text in out.getvalue()


def test_a_comparison_without_room_is_left_out() -> None:
    model = LargeModel(CONFIG, tiny())
    assert relative_errors(model, tiny(), "talk", room_bytes=10**7) is None
    assert model.dit.dtype is torch.bfloat16
