"""Audio and motion as the DiT takes them, computed on the training device for whole batches of clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.models.audio_frontend import COLUMNS_PER_FRAME, AudioFrontend
from tools.train.speech.augment import augment_mel
from tools.train.speech.bank import SpeechBank, dequantise_mel

__all__ = ["AudioBank"]


class AudioBank:
    """The speech bank's spectra on the training device, and the frozen audio front end.

    Args:
        path: The bank's file.
        frontend: Turns spectra into feature columns.
        device: Where training runs.
    """

    def __init__(self, path: Path, frontend: AudioFrontend, device: str) -> None:
        bank = SpeechBank.load(path)
        self._frontend = frontend.eval().requires_grad_(False)
        config = frontend.config
        self._before, self._after = config.past_columns, config.future_columns
        parts, firsts, total = [], [], self._before
        for source in bank.sources.values():
            firsts.append(total)
            parts.append(source.mel_codes)
            total += len(source.mel_codes)
        codes = np.concatenate(parts)
        codes = np.concatenate([codes[: self._before], codes, codes[-self._after :]])
        self._codes = torch.from_numpy(codes).to(device)
        self._firsts = torch.tensor(firsts, device=device)
        self._table = torch.from_numpy(dequantise_mel(np.arange(256, dtype=np.uint8))).to(device)

    @torch.no_grad()
    def columns(self, audio_B2: Tensor, num_frames: int, *, augment: bool) -> Tensor:
        """Compute the feature columns of stretches of the bank.

        Args:
            audio_B2: Source index and first video frame of each.
            num_frames: Length in video frames.
            augment: Whether level, room and noise are varied.

        Returns:
            float32, (B, 1, D, num_frames).
        """
        start = self._firsts[audio_B2[:, 0]] + audio_B2[:, 1] * COLUMNS_PER_FRAME - self._before
        length = self._before + num_frames * COLUMNS_PER_FRAME + self._after
        mel = self._table[self._codes[start[:, None] + torch.arange(length, device=start.device)].long()]
        if augment:
            mel = augment_mel(mel)
        with torch.autocast(mel.device.type, torch.bfloat16):
            features = self._frontend(mel)
        return features.float().transpose(1, 2)[:, None]  # type: ignore[no-any-return]
