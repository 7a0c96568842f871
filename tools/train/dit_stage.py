"""What both stages of the DiT have in common: networks, data, renewal and validation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.models.dit import DiT
from pipeline.models.embedded import motion_signal
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.features import AudioBank
from tools.train.latents import LatentPool, draw_reference_position, validate_dit
from tools.train.steps import Learner

__all__ = ["DitStage"]


class DitStage:
    """What a `tools.train.loop.Stage` that trains the DiT has, but for `inputs` and `compute`.

    Args:
        dit: Trained in place.
        average: Receives the moving average of the weights.
        latents: Training data, full size first.
        bank: Audio.
        vae: Decodes; not trained.
        levels: The sampler's noise levels.
    """

    def __init__(
        self,
        dit: DiT,
        average: DiT,
        latents: Sequence[LatentPool],
        bank: AudioBank,
        vae: EmbeddedVAE,
        levels: NoiseSchedule,
    ) -> None:
        self.network, self.average = dit, average
        self._latents, self._bank, self._vae, self._levels = latents, bank, vae, levels
        self._device = latents[0].latents.device
        self.learners: tuple[Learner, ...] = (Learner(dit.parameters(), betas=(0.9, 0.95), weight_decay=0.01),)

    def clip_inputs(self, latents: LatentPool, clip: Tensor) -> dict[str, Tensor]:
        """Look up what a whole clip is computed from.

        Args:
            latents: At one picture size.
            clip: Places in the pool, (B,).

        Returns:
            `clean` latents (B, C, T, h, w), `reference` (B, C, h, w), augmented `audio`, `motion`, `weight` and
            `position`, as `DiT.forward_clip` and the losses take them.
        """
        pool = latents.pool
        return {
            "clean": latents.latents[clip].transpose(1, 2).float(),
            "reference": latents.reference[clip].float(),
            "audio": self._bank.columns(pool.audio[clip], pool.motion.shape[1], augment=True),
            "motion": motion_signal(pool.motion[clip]),
            "weight": latents.weights(clip),
            "position": draw_reference_position(self._device),
        }

    def renew(self, places: list[int]) -> None:
        """See `tools.train.loop.Stage`."""
        for latents in self._latents:
            latents.encode(places)

    def validate(self) -> dict[str, float]:
        """See `tools.train.loop.Stage`."""
        return validate_dit(self.average, self._latents[0], self._bank, self._vae, self._levels)
