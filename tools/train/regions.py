"""Compiles the pieces of the networks that training spends its time in; on CUDA only, where it fuses what lies
between products.

Regions instead of whole networks: each piece is compiled once for all layers, in seconds, and no graph breaks in it.
But once for every shape, so only where the stance says "default" (`torch.compiler.set_stance`): in the step that a
long stage repeats, not in validation or a short stage.
"""

from __future__ import annotations

import torch

from pipeline.models.audio_injector import AudioInjector
from pipeline.models.dit import Block
from pipeline.models.embedded_vae import ResidualBlock, TemporalBlock
from tools.train import critic

__all__ = ["compile_regions"]


def compile_regions() -> None:
    """Replace the pieces by ones that can be compiled, for the rest of the process; the stance is eager at first."""
    torch.compiler.set_stance("force_eager")
    for owner, name in (
        (Block, "project"),
        (Block, "finish"),
        (AudioInjector, "forward"),
        (ResidualBlock, "forward"),
        (TemporalBlock, "forward"),
        (critic, "_compare"),
    ):
        setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False, fullgraph=True))
