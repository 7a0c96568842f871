"""The large engine's memory: the published sizes, and what a machine says is free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.published import PUBLISHED_14B
from pipeline.models.wan_vae import PUBLISHED_WAN_VAE
from pipeline.weights.sizes import PUBLISHED_TEXT_ENCODER_SIZES, Sizes
from pipeline.worker.large_memory import (
    PATIENCE_S,
    free_bytes,
    host_bytes,
    large_geometry,
    plan_memory,
    require_memory,
)

pytestmark = pytest.mark.unit

SIZES = Sizes(dit=PUBLISHED_14B, vae=PUBLISHED_WAN_VAE, text_encoder=PUBLISHED_TEXT_ENCODER_SIZES)
NUM_PARAMETERS = 16_295_755_609
SINK_TOKENS, RING_TOKENS = 2640, 12 * 1056
MEMINFO = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 4000 kB\n"


def plan(
    *,
    num_steps: int = 4,
    max_streams: int = 1,
    whole_sound_s: float = 300,
    has_pose: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, int]:
    geometry = large_geometry(SIZES, height_px=384, width_px=704)
    return plan_memory(
        SIZES,
        geometry,
        num_audio_parameters=1000,
        num_steps=num_steps,
        max_streams=max_streams,
        whole_sound_s=whole_sound_s,
        has_pose=has_pose,
        dtype=dtype,
    )


def test_the_published_model_needs_what_its_shapes_say() -> None:
    parts = plan()
    assert parts["transformer"] == 2 * NUM_PARAMETERS
    assert parts["video autoencoder"] == 2 * 126_892_531
    per_token = 2 * 40 * 5120 * 2
    assert parts["keys and values"] == 4 * (SINK_TOKENS + RING_TOKENS) * per_token + 1056 * per_token // 2
    assert parts["prompts"] == 3 * 40 * 2 * 512 * 5120 * 2
    assert parts["audio encoder"] == 2000
    assert parts["sounds"] == (2 * 7500 + 7500 + 48) * 25 * 1024 * 2, "two voices, and one in the making"


def test_steps_streams_and_precision_count() -> None:
    one = plan()
    assert plan(num_steps=8)["keys and values"] > 1.9 * one["keys and values"]
    assert plan(max_streams=3)["keys and values"] == 3 * one["keys and values"]
    assert plan(max_streams=3)["sounds"] - one["sounds"] == 2 * 2 * 7500 * 25 * 1024 * 2
    assert plan(whole_sound_s=0)["sounds"] == 0
    assert plan(max_streams=3)["decoder states"] == 5 * one["decoder states"] // 3
    assert plan(max_streams=3, has_pose=True)["poses"] == one["decoder states"]
    assert one["poses"] == 0
    assert plan(dtype=torch.float32) == {
        name: pytest.approx(2 * num_bytes, rel=0.6 if name == "work" else 0) for name, num_bytes in one.items()
    }


def test_what_fits_is_let_in_and_what_does_not_is_listed() -> None:
    cpu = torch.device("cpu")
    require_memory({"a": 1000}, cpu, None)
    with pytest.raises(ConfigError, match=r"are free there and 1000000\.00 GB are needed: a 999999\.00, b 1\.00$"):
        require_memory({"a": 999_999 * 10**9, "b": 10**9}, cpu, None)
    with pytest.raises(ConfigError, match=r"'cpu', but 0\.50 GB may be used \(engine\.large\.memory_gb\)"):
        require_memory({"a": 10**9}, cpu, 0.5)


class Waking:
    """A GPU whose driver gives memory back bit by bit while it is waited for."""

    def __init__(self, *free: int) -> None:
        self.free = list(free)
        self.waited_s = 0.0

    def free_on(self, device: torch.device) -> int:
        assert device.type == "cuda"
        return self.free[0]

    def pause(self, seconds: float) -> None:
        self.waited_s += seconds
        self.free = self.free[1:] or self.free


def test_a_gpu_is_given_time_to_free_what_another_process_held() -> None:
    gpu, device = Waking(10, 400, 1000), torch.device("cuda", 0)
    require_memory({"a": 1000}, device, None, free_on=gpu.free_on, pause=gpu.pause)
    assert gpu.waited_s == 1.0
    require_memory({"a": 1000}, device, None, free_on=gpu.free_on, pause=gpu.pause)
    assert gpu.waited_s == 1.0, "nobody waits for what is there"


def test_a_gpu_that_frees_nothing_is_refused_in_the_end_and_a_limit_at_once() -> None:
    gpu, device = Waking(1_500_000_000), torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"1\.00 GB may be used .* and 2\.00 GB are needed"):
        require_memory({"a": 2 * 10**9}, device, 1, free_on=gpu.free_on, pause=gpu.pause)
    assert gpu.waited_s == 0
    with pytest.raises(ConfigError, match=r"1\.50 GB are free there and 2\.00 GB are needed"):
        require_memory({"a": 2 * 10**9}, device, 3, free_on=gpu.free_on, pause=gpu.pause)
    assert gpu.waited_s == PATIENCE_S


def test_the_host_has_what_is_available_within_its_limit(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    group = tmp_path / "group"
    assert host_bytes(tmp_path, group) == 4000 * 1024
    group.mkdir()
    (group / "memory.current").write_text("3000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    (group / "memory.max").write_text("max\n")
    assert host_bytes(tmp_path, group) == 4000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert host_bytes(tmp_path, group) == 2500


def test_the_host_has_what_is_built_in_where_the_system_tells_no_more(tmp_path: Path) -> None:
    assert host_bytes(tmp_path, tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host_bytes(tmp_path, tmp_path) >= host_bytes()


def test_this_machine_has_memory() -> None:
    assert free_bytes(torch.device("cpu")) > 10**7
