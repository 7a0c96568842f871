"""What both stages that train the decoder on the DiT's roll-outs have in common: networks, data and validation."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.models.dit import DiT
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.schedule import Schedule as NoiseSchedule
from tools.train.features import AudioBank
from tools.train.latents import LatentPool, validate_dit

__all__ = ["RollOutStage"]


class RollOutStage:
    """What a `tools.train.loop.Stage` that trains the decoder has, but for `learners`, `inputs` and `compute`.

    Clips are rolled out when the stage is made: they have to be there before.

    Args:
        vae: Begins as the average; part of its decoder is trained in place, once the stage has unfrozen it.
        average: Receives the moving average of the weights.
        dit: Makes the latents.
        latents: Clips and true latents, full size first.
        bank: Audio.
        levels: The sampler's noise levels.
    """

    refills = False
    is_compiled = False

    def __init__(
        self,
        vae: EmbeddedVAE,
        average: EmbeddedVAE,
        dit: DiT,
        latents: Sequence[LatentPool],
        bank: AudioBank,
        levels: NoiseSchedule,
    ) -> None:
        vae.load_state_dict(average.state_dict())
        vae.eval().requires_grad_(False)
        self.network, self.average = vae, average
        self._dit, self._latents, self._bank, self._levels = dit, latents, bank, levels

    def renew(self, places: list[int]) -> None:
        """See `tools.train.loop.Stage`."""
        for latents in self._latents:
            latents.encode(places)

    def validate(self) -> dict[str, float]:
        """See `tools.train.loop.Stage`."""
        return validate_dit(self._dit, self._latents[0], self._bank, self.average, self._levels)
