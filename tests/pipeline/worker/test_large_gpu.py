"""The large engine on a GPU: exact convolutions, prompts beside windows, and when stages end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.api import StreamParams
from pipeline.models.precision import Float32Conv1d
from pipeline.worker.large import LargeModel
from pipeline.worker.model import StageMarks
from tests.fakes.large import SlowNetworks, config_of, make, open_stream, windows

pytestmark = [
    pytest.mark.contract,
    pytest.mark.timeout(180),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.usefixtures("modes"),
]


def test_convolutions_in_float32_have_all_their_bits(folder: Path) -> None:
    """TF32 would be off by 3e-4."""
    LargeModel(config_of(folder, device="cuda"))
    generator = torch.Generator().manual_seed(0)
    layer = Float32Conv1d(256, 256, 3).requires_grad_(False)
    x_BCT = torch.randn(1, 256, 64, generator=generator)
    expected = layer.double()._conv_forward(x_BCT.double(), layer.weight, layer.bias)
    made = layer.float().cuda()(x_BCT.cuda()).cpu().double()
    assert (made - expected).norm() / expected.norm() < 1e-5


def test_windows_are_made_while_another_prompt_is_read(folder: Path) -> None:
    """The same ones as without that, and the prompt is the same as one that was waited for."""
    source = SlowNetworks(folder)
    model = LargeModel(config_of(folder, device="cuda"), source)
    changed, kept = open_stream(model), open_stream(model)
    sing, pcm = StreamParams(prompt="sing"), windows(model)
    assert not changed.is_ready(sing)
    source.let.set()
    while not changed.is_ready(sing):
        np.testing.assert_array_equal(make(changed, pcm[0]), make(kept, pcm[0]))
    assert source.reserved_bytes[0] >= 0
    for stream in (changed, kept):
        stream.update(sing)
    np.testing.assert_array_equal(make(changed, pcm[1]), make(kept, pcm[1]))
    again = LargeModel(config_of(folder, device="cuda"))
    waited, read = open_stream(again, prompt="sing"), open_stream(model, prompt="sing")
    np.testing.assert_array_equal(make(waited, pcm[0]), make(read, pcm[0]))


def test_a_gpu_makes_frames_and_tells_when_its_stages_ended(folder: Path) -> None:
    model = LargeModel(config_of(folder, device="cuda"))
    model.warm_up()
    used = []
    stream = open_stream(model)
    for pcm in windows(model):
        marks = StageMarks(window=0)
        started_s = marks.now_s()
        frames = np.concatenate(list(stream.generate(pcm, marks, 4)))
        assert frames.std() > 10
        ends = [started_s, marks.features_s, *marks.steps_s, marks.decoded_s, marks.now_s() + 0.001]
        assert ends == sorted(ends)  # type: ignore[type-var]
        used.append(torch.cuda.memory_allocated())
    assert used[-1] <= used[0] + 2**20
    again = open_stream(model)
    np.testing.assert_array_equal(make(again, windows(model)[0]), make(open_stream(model), windows(model)[0]))
