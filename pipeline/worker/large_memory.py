"""How much memory the large engine needs, part by part, and how much there is: known before anything is loaded."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pipeline.errors import ConfigError
from pipeline.geometry import (
    BLOCKS_PER_CLIP,
    FRAMES_PER_BLOCK,
    LATENT_FRAMES_PER_BLOCK,
    WINDOW_S,
    VideoGeometry,
)
from pipeline.models.cache import KVCache
from pipeline.models.wan_vae import WanVAE
from pipeline.weights.sizes import Sizes
from pipeline.weights.tables import Shapes, dit_shapes, vae_shapes

__all__ = [
    "NUM_KEPT_PORTRAITS",
    "NUM_KEPT_PROMPTS",
    "NUM_WHOLE_VOICES",
    "free_bytes",
    "host_bytes",
    "large_geometry",
    "plan_memory",
    "require_memory",
]

NUM_KEPT_PORTRAITS = 2
"""Encoded portraits that are kept for the next stream, beside those in use."""
NUM_KEPT_PROMPTS = 2
"""Prompts whose keys and values are kept for the next stream, beside those in use."""
NUM_WHOLE_VOICES = 2
"""Voices of the longest sound that a stream can hear as a whole; more of them have to be shorter."""

_GB = 1e9
_ENCODED_FRAMES = 12
"""Frames that the video autoencoder has at full resolution at a time, at most."""
_PICTURE_BUFFERS = 6
"""Feature maps of that size that it holds at a time, those inside its convolutions included."""
_TOKEN_BUFFERS = 6
"""Rows of the transformer's width that it holds per token at a time, in float32."""
_NO_LIMIT = "max"
PATIENCE_S, _PAUSE_S = 15.0, 0.5
"""A driver takes seconds to free what a process held that has just ended."""

_logger = logging.getLogger(__name__)


def large_geometry(sizes: Sizes, *, height_px: int, width_px: int) -> VideoGeometry:
    """Work out the sizes of latents and tokens for a picture size.

    Args:
        sizes: Of the networks.
        height_px: Of the frames.
        width_px: Of the frames.

    Returns:
        The geometry.
    """
    return VideoGeometry(
        height_px=height_px,
        width_px=width_px,
        vae_spatial_stride=sizes.vae.spatial_stride,
        latent_channels=sizes.dit.latent_channels,
        patch=sizes.dit.patch,
    )


def plan_memory(
    sizes: Sizes,
    geometry: VideoGeometry,
    *,
    num_audio_parameters: int,
    num_steps: int,
    max_streams: int,
    whole_sound_s: float,
    has_pose: bool,
    dtype: torch.dtype,
) -> dict[str, int]:
    """Add up what the engine needs when all its places are taken.

    The text encoder is not in it: it takes what is free beside all this. Torch keeps that memory afterwards, for what
    this process needs next.

    Args:
        sizes: Of the networks.
        geometry: Of the video.
        num_audio_parameters: Numbers in the audio encoder.
        num_steps: Denoising steps per block.
        max_streams: Streams at once.
        whole_sound_s: Longest sound that a stream hears as a whole.
        has_pose: Whether streams follow a film.
        dtype: What the networks compute in.

    Returns:
        Bytes by part. All are exact but `poses` and `work`, which are estimates.
    """
    dit = sizes.dit
    column_bytes = dit.num_audio_layers * dit.audio_dim * dtype.itemsize
    num_columns = math.ceil(whole_sound_s / WINDOW_S) * FRAMES_PER_BLOCK
    # The published code makes whole clips of columns, one more than the sound fills.
    made_columns = num_columns + BLOCKS_PER_CLIP * FRAMES_PER_BLOCK if num_columns else 0
    state_bytes = _state_bytes(sizes, geometry, dtype)
    text_bytes = 2 * dit.num_layers * dit.text_len * dit.dim * dtype.itemsize
    return {
        "transformer": _num_parameters(dit_shapes(dit)) * dtype.itemsize,
        "video autoencoder": _num_parameters(vae_shapes(sizes.vae)) * dtype.itemsize,
        "audio encoder": num_audio_parameters * dtype.itemsize,
        "prompts": (max_streams + NUM_KEPT_PROMPTS) * text_bytes,
        "keys and values": max_streams * _cache_bytes(sizes, geometry, num_steps, dtype),
        "decoder states": (max_streams + NUM_KEPT_PORTRAITS) * state_bytes,
        # The encoder has fewer layers than the decoder.
        "poses": max_streams * state_bytes if has_pose else 0,
        # Beside what streams hold, the columns of one voice that are being made.
        "sounds": (max_streams * NUM_WHOLE_VOICES * num_columns + made_columns) * column_bytes,
        "work": _work_bytes(sizes, geometry, dtype),
    }


def free_bytes(device: torch.device) -> int:
    """Say how much memory is free on a device.

    Args:
        device: A GPU or the CPU.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        # What this process has freed is kept by torch, and is as good as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return host_bytes()


def host_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Say how much memory the host has for this process.

    Args:
        proc: Folder of the kernel's figures.
        cgroup: Folder of the process's limits, where it has some.

    Returns:
        Bytes: what is available on the machine, or what is left of the limit if that is less. Where the system has no
        such figures (macOS), all memory that there is.
    """
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return available
    if limit == _NO_LIMIT:
        return available
    # Pages of files that nobody has used lately are given up first.
    return min(available, int(limit) - used + int(statistics.get("inactive_file", 0)))


def require_memory(
    parts: Mapping[str, int],
    device: torch.device,
    limit_gb: float | None,
    *,
    free_on: Callable[[torch.device], int] = free_bytes,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Refuse what would not fit, on a GPU after a while: the worker before this one may just have ended.

    Args:
        parts: Bytes by part.
        device: Where they would go.
        limit_gb: Memory that may be used, in 10^9 bytes; None: all that is free.
        free_on: Says how much is free.
        pause: Waits for seconds.

    Raises:
        ConfigError: It does not fit; says what is needed for what.
    """
    limit = math.inf if limit_gb is None else int(limit_gb * _GB)
    needed = sum(parts.values())
    waited_s, free = 0.0, free_on(device)
    while free < needed <= limit and device.type == "cuda" and waited_s < PATIENCE_S:
        if not waited_s:
            _logger.info("waiting for memory: %.2f GB of %.2f are free", free / _GB, needed / _GB)
        pause(_PAUSE_S)
        waited_s, free = waited_s + _PAUSE_S, free_on(device)
    usable = min(free, limit)
    if needed <= usable:
        return
    there = "are free" if usable == free else "may be used (engine.large.memory_gb)"
    listed = ", ".join(f"{name} {num_bytes / _GB:.2f}" for name, num_bytes in parts.items() if num_bytes)
    rule = f"{usable / _GB:.2f} GB {there} there and {needed / _GB:.2f} GB are needed: {listed}"
    raise ConfigError("engine.large.device", str(device), rule)


def _num_parameters(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def _cache_bytes(sizes: Sizes, geometry: VideoGeometry, num_steps: int, dtype: torch.dtype) -> int:
    cache = KVCache(
        sizes.dit,
        token_rows=geometry.token_rows,
        token_columns=geometry.token_columns,
        num_steps=num_steps,
        batch=1,
        dtype=dtype,
        device=torch.device("meta"),
    )
    return cache.num_bytes


def _state_bytes(sizes: Sizes, geometry: VideoGeometry, dtype: torch.dtype) -> int:
    """Decode without computing, and look at what is left."""
    with torch.device("meta"):
        vae = WanVAE(sizes.vae).to(dtype)
        state = vae.new_state()
        channels, _, height, width = geometry.block_shape
        vae.decode(torch.zeros(1, channels, 1, height, width), state)
    return state.num_bytes


def _work_bytes(sizes: Sizes, geometry: VideoGeometry, dtype: torch.dtype) -> int:
    """Estimate what the largest of the computations needs for what it forgets again."""
    dit = sizes.dit
    sink_tokens = dit.sink_tokens(geometry.token_rows, geometry.token_columns)
    num_tokens = max(sink_tokens, LATENT_FRAMES_PER_BLOCK * geometry.tokens_per_latent_frame)
    token_bytes = 2 * dit.ffn_dim * dtype.itemsize + _TOKEN_BUFFERS * dit.dim * torch.float32.itemsize
    sink_bytes = 2 * dit.num_layers * sink_tokens * dit.dim * dtype.itemsize
    time_bytes = 6 * dit.dim**2 * torch.float32.itemsize
    picture_bytes = geometry.height_px * geometry.width_px * sizes.vae.widths[0] * dtype.itemsize
    return max(num_tokens * token_bytes + sink_bytes + time_bytes, _PICTURE_BUFFERS * _ENCODED_FRAMES * picture_bytes)
