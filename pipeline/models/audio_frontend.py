"""The embedded model's audio network: log-mel spectra to one feature column per video frame.

It takes the place that wav2vec2 has in the large model, at one million parameters. Two strided convolutions bring 100
columns per second to 25, then residual blocks of dilated convolutions look back about a second. All convolutions are
"valid": the network invents no padding, the caller provides the context, so a stream and a file give the same numbers.

Shape suffixes: B batch, T mel columns (100 per second), F video frames (25 per second), M mel bands, D feature width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.errors import ConfigError, WeightsError

__all__ = ["COLUMNS_PER_FRAME", "AudioFrontend", "AudioFrontendConfig", "FrontendHeads"]

COLUMNS_PER_FRAME = 4
# The two strided convolutions see the frame's own 4 columns, 3 before and 2 after.
_STEM_PAST_COLUMNS = 3
_STEM_FUTURE_COLUMNS = 2
_STEM_COLUMNS = _STEM_PAST_COLUMNS + COLUMNS_PER_FRAME + _STEM_FUTURE_COLUMNS
# Log-mel of speech at the usual level, roughly: brought to mean 0 and spread 1.
_MEL_MEAN = -10.0
_MEL_SPREAD = 3.5
# Share of a block's numbers that training drops: there are far fewer voices than steps.
_DROPOUT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFrontendConfig:
    """Sizes of the network.

    Raises:
        ConfigError: A size is impossible.
    """

    num_mels: int = 80
    """Bands of the spectrum."""
    dim: int = 160
    """Width of a feature column."""
    kernel_frames: int = 5
    """Video frames that one convolution spans."""
    dilations: tuple[int, ...] = (1, 2, 3, 4)
    """Spacing of the taps of each block's convolution, in video frames; the first block is the one that looks ahead."""
    lookahead_frames: int = 1
    """Video frames after the present one that the first block sees: each costs 40 ms of delay."""
    num_visemes: int = 15
    """Mouth shapes that the training heads predict."""

    def __post_init__(self) -> None:
        if not 0 <= self.lookahead_frames < self.kernel_frames:
            raise ConfigError(
                "lookahead_frames",
                self.lookahead_frames,
                f"it has to be 0 to kernel_frames - 1 = {self.kernel_frames - 1}",
            )
        if not self.dilations or self.dilations[0] != 1:
            raise ConfigError("dilations", self.dilations, "the first has to be 1")

    @property
    def past_frames(self) -> int:
        """Frames before the present one that the blocks see."""
        return (self.kernel_frames - 1) * sum(self.dilations) - self.lookahead_frames

    @property
    def past_columns(self) -> int:
        """Mel columns needed before the first column of the first frame."""
        return self.past_frames * COLUMNS_PER_FRAME + _STEM_PAST_COLUMNS

    @property
    def future_columns(self) -> int:
        """Mel columns needed after the last column of the last frame."""
        return self.lookahead_frames * COLUMNS_PER_FRAME + _STEM_FUTURE_COLUMNS


class _Block(nn.Module):
    """A dilated convolution over time and a feed-forward layer, both residual."""

    def __init__(self, dim: int, kernel_frames: int, dilation: int, lookahead_frames: int) -> None:
        super().__init__()
        self.past_frames = (kernel_frames - 1) * dilation - lookahead_frames
        self.future_frames = lookahead_frames
        self.norm1 = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, kernel_frames, dilation=dilation)
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * dim)
        self.reduce = nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x_BFD: Tensor) -> Tensor:
        mixed_BFD = self.conv(self.norm1(x_BFD).transpose(1, 2)).transpose(1, 2)
        kept_BFD = x_BFD[:, self.past_frames : x_BFD.shape[1] - self.future_frames]
        y_BFD = kept_BFD + self.dropout(nn.functional.gelu(mixed_BFD))
        return cast(Tensor, y_BFD + self.dropout(self.reduce(nn.functional.gelu(self.expand(self.norm2(y_BFD))))))


class AudioFrontend(nn.Module):
    """The network up to its last hidden state, which is what the diffusion model is given.

    Args:
        config: Sizes.
    """

    def __init__(self, config: AudioFrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.stem1 = nn.Conv1d(config.num_mels, config.dim, 5, stride=2)
        self.stem2 = nn.Conv1d(config.dim, config.dim, 3, stride=2)
        self.blocks = nn.ModuleList(
            _Block(config.dim, config.kernel_frames, dilation, config.lookahead_frames if index == 0 else 0)
            for index, dilation in enumerate(config.dilations)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, mel_BTM: Tensor) -> Tensor:
        """Compute feature columns.

        Args:
            mel_BTM: Log-mel with context: T = past_columns + 4 * F + future_columns.

        Returns:
            One column per video frame, (B, F, D).

        Raises:
            ConfigError: T fits no number of frames.
        """
        context = self.config.past_columns + self.config.future_columns
        num_columns = mel_BTM.shape[1] - context
        if num_columns <= 0 or num_columns % COLUMNS_PER_FRAME:
            raise ConfigError("mel columns", mel_BTM.shape[1], f"it has to be {context} + a multiple of 4, and more")
        x_BMT = ((mel_BTM - _MEL_MEAN) / _MEL_SPREAD).transpose(1, 2)
        x_BDT = nn.functional.gelu(self.stem1(x_BMT))
        x_BFD = nn.functional.gelu(self.stem2(x_BDT)).transpose(1, 2)
        for block in self.blocks:
            x_BFD = block(x_BFD)
        return cast(Tensor, self.norm(x_BFD))

    def save(self, path: Path, *, heads: FrontendHeads | None = None, dtype: torch.dtype = torch.float16) -> None:
        """Write the weights, with the sizes in the file's header.

        Args:
            path: The file, a safetensors.
            heads: The training heads, if they are to be kept.
            dtype: What the weights are stored in.
        """
        tensors = {f"frontend.{name}": tensor for name, tensor in self.state_dict().items()}
        if heads is not None:
            tensors |= {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}
        stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
        # Plain writing, so that the file gets the usual permissions: safetensors' own writer keeps others from reading.
        path.write_bytes(save(stored, metadata={"config": json.dumps(asdict(self.config))}))

    @classmethod
    def load(cls, path: Path) -> AudioFrontend:
        """Read the network without its training heads, as float32 on the CPU, ready for use.

        Args:
            path: A file that `save` wrote.

        Returns:
            The network, in evaluation mode.

        Raises:
            WeightsError: The file is missing, damaged, or does not fit.
        """
        config, tensors = _read(path, "frontend.")
        frontend = cls(config)
        _fill(frontend, tensors, path)
        return frontend


class FrontendHeads(nn.Module):
    """What the features are trained to tell; not used at run time.

    Args:
        config: Sizes of the network whose features are read.
    """

    def __init__(self, config: AudioFrontendConfig) -> None:
        super().__init__()
        self.weights = nn.Linear(config.dim, config.num_visemes)
        self.classes = nn.Linear(config.dim, config.num_visemes)
        self.jaw = nn.Linear(config.dim, 1)

    @classmethod
    def load(cls, path: Path) -> FrontendHeads:
        """Read the training heads that lie beside a network.

        Args:
            path: A file that `AudioFrontend.save` wrote with heads.

        Returns:
            The heads, in evaluation mode.

        Raises:
            WeightsError: The file is missing, damaged, or holds no heads.
        """
        config, tensors = _read(path, "heads.")
        heads = cls(config)
        _fill(heads, tensors, path)
        return heads

    def forward(self, features_BFD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read features.

        Args:
            features_BFD: Output of `AudioFrontend`.

        Returns:
            Logits of the viseme weights, (B, F, V), logits of the viseme that sounds, (B, F, V), and the opening of the
            jaw, (B, F).
        """
        features_BFD = features_BFD.to(self.weights.weight.dtype)
        jaw_BF = nn.functional.softplus(self.jaw(features_BFD)).squeeze(-1)
        return self.weights(features_BFD), self.classes(features_BFD), jaw_BF


def _read(path: Path, prefix: str) -> tuple[AudioFrontendConfig, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["config"])
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a mapping)
            tensors = {name.removeprefix(prefix): file.get_tensor(name).float() for name in names}
        return AudioFrontendConfig(**{**values, "dilations": tuple(values["dilations"])}), tensors
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as exc:
        raise WeightsError(str(path), f"not a readable audio front end ({exc})") from exc


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as exc:
        raise WeightsError(str(path), str(exc)) from exc
    module.eval().requires_grad_(False)
