"""The embedded avatar as the worker runs it: audio features, motion plan, four denoising steps, decoder.

Weights are loaded from one folder and checked against its manifest. What suits the machine is measured at warm-up: the
precision, and, where the pace of 480 ms per window would not hold, a lighter load (`pipeline.worker.pace`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.api import StreamParams
from pipeline.audio.features import EmbeddedFeatures
from pipeline.audio.level import LoudnessMeter
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError
from pipeline.geometry import EMBEDDED_PX, WINDOW_S, WINDOW_SAMPLES
from pipeline.models.embedded import embedded_geometry, motion_signal
from pipeline.models.packed_decoder import PackedDecoder
from pipeline.models.packed_dit import pack_dit
from pipeline.models.precision import cast_bulk
from pipeline.models.sampler import Noise, sample_block
from pipeline.motion import MotionPlanner
from pipeline.schedule import EMBEDDED_STEPS, make_schedule
from pipeline.weights.embedded_files import EmbeddedFiles
from pipeline.worker.model import StageMarks, WarmTimes
from pipeline.worker.pace import Leeway, Load, choose_precision, settle
from pipeline.worker.pictures import portrait_tensor
from pipeline.worker.timing import time_windows

__all__ = ["EmbeddedModel", "EmbeddedStream"]

PACE_SHARE = 0.8
"""Share of a window's 480 ms that its computation may take; the rest is for encoding, network and page."""
WARM_WINDOWS, TIMED_WINDOWS = 3, 8
LONGEST_TIMING_S = 6.0
"""Where windows take so long that timing them all would hold up the start, fewer are timed."""
MIN_STEPS = 2
SMALLER_PX = ((288, 192),)
"""Smaller picture sizes that the networks were trained at, height and width."""

NOTE_DOMAIN = "the embedded model learnt from rendered people; the large engine is for photographs"


class EmbeddedModel:
    """The loaded networks and what was measured about them.

    Args:
        config: Of the engine.
        pace_s: What a window may take at most before less is made, if the config says so.

    Raises:
        WeightsError: A file is missing or damaged.
    """

    def __init__(self, config: EngineConfig, *, pace_s: float = PACE_SHARE * WINDOW_S) -> None:
        torch.set_num_threads(config.num_threads)
        torch.set_grad_enabled(False)
        files = EmbeddedFiles(config.weights_dir)
        vae, dit = files.load_vae(), files.load_dit()
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._exact = vae, dit
        self._use(torch.float32)
        self.features = EmbeddedFeatures(files.load_frontend())
        self._config = config
        self._pace_s = pace_s if config.keeps_pace else math.inf
        self._max_steps = config.num_steps or EMBEDDED_STEPS
        self._notes: tuple[str, ...] = (NOTE_DOMAIN,)

    name = "embedded"
    height_px, width_px = EMBEDDED_PX
    accepts_prompt = False
    accepts_portrait = True

    @property
    def num_steps(self) -> int:
        """Denoising steps per block, settled at warm-up."""
        return self._max_steps

    @property
    def right_context_samples(self) -> int:
        """Audio after the end of a window that its features need."""
        return self.features.right_context_samples

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen, in sentences."""
        return self._notes

    def warm_up(self) -> WarmTimes:
        """Time windows in both precisions, keep one, and make them lighter until the pace holds.

        Returns:
            90th percentiles over a few windows.
        """
        candidates = {"fp32": torch.float32, "bf16": torch.bfloat16}
        if self._config.precision != "auto":
            candidates = {self._config.precision: candidates[self._config.precision]}
        timed = {}
        for name, dtype in candidates.items():
            self._use(dtype)
            timed[name] = self._time_windows()
        chosen = choose_precision(timed, limit_s=self._pace_s)
        self._use(candidates[chosen])
        measured = ", ".join(f"{name} {1000 * timed[name].window_s:.0f} ms" for name in timed)
        self._notes = (NOTE_DOMAIN, f"precision {chosen} ({measured} per window)")

        full = Load(
            num_threads=self._config.num_threads,
            num_steps=self._max_steps,
            height_px=self.height_px,
            width_px=self.width_px,
        )
        leeway = Leeway(
            most_threads=self._config.most_threads,
            fewest_steps=self._config.num_steps or MIN_STEPS,
            smaller_px=SMALLER_PX,
        )
        load, times = settle(full, timed[chosen], leeway, self._time_load, limit_s=self._pace_s)
        self._set_load(load)
        if load != full:
            self._notes += (f"because this machine is slow: {load}, {1000 * times.window_s:.0f} ms per window",)
        if times.window_s > WINDOW_S:
            self._notes += (f"a window takes longer than the {1000 * WINDOW_S:.0f} ms that a window lasts",)
        return times

    def is_ready(self, *, prompt: str | None, params: StreamParams) -> bool:
        """Say that a stream can be opened: there is no prompt to read."""
        return True

    def open_stream(
        self, *, portrait: NDArray[np.uint8] | None, prompt: str | None, seed: int, params: StreamParams
    ) -> EmbeddedStream:
        """Make the state of a new stream.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).
            prompt: Has to be None.
            seed: Of noise and motion.
            params: Parameters at the start.

        Returns:
            The stream.

        Raises:
            ConfigError: A prompt was given, or the portrait is missing or has another size.
        """
        if prompt is not None:
            raise ConfigError("prompt", prompt, "the embedded engine knows no prompt")
        return EmbeddedStream(self, portrait, seed, params)

    def _use(self, dtype: torch.dtype) -> None:
        """Compute in a dtype, always from the exact weights: what bfloat16 has rounded off does not come back."""
        self.vae, self.dit = copy.deepcopy(self._exact)
        cast_bulk(self.dit, dtype)
        self.vae.decoder.to(dtype)
        pack_dit(self.dit)
        self.decoder = PackedDecoder(self.vae.decoder)

    def _set_load(self, load: Load) -> None:
        """Make windows in this way from now on."""
        torch.set_num_threads(load.num_threads)
        self._max_steps = load.num_steps
        self.height_px, self.width_px = load.height_px, load.width_px

    def _time_load(self, load: Load) -> WarmTimes:
        self._set_load(load)
        return self._time_windows()

    def _time_windows(self) -> WarmTimes:
        return time_windows(self, num_warm=WARM_WINDOWS, num_timed=TIMED_WINDOWS, longest_s=LONGEST_TIMING_S)


class EmbeddedStream:
    """The state of one stream: caches, decoder context, audio context, motion plan.

    Args:
        model: The loaded networks.
        portrait: uint8 RGB, (height_px, width_px, 3).
        seed: Of noise and motion.
        params: Parameters at the start.
    """

    @torch.inference_mode()
    def __init__(
        self, model: EmbeddedModel, portrait: NDArray[np.uint8] | None, seed: int, params: StreamParams
    ) -> None:
        self._model = model
        self._params = params
        self._schedule = make_schedule(EMBEDDED_STEPS)
        geometry = embedded_geometry(model.dit.config, height_px=model.height_px, width_px=model.width_px)
        self._cache = model.dit.new_cache(
            latent_height=geometry.latent_height, latent_width=geometry.latent_width, num_steps=EMBEDDED_STEPS
        )
        self._decoder_state = model.vae.new_state()
        self._noise = Noise(geometry, seed=seed)
        self._planner = MotionPlanner(seed)
        self._loudness = LoudnessMeter()
        self._audio = model.features.stream()
        self._block = 0
        self.set_portrait(portrait)

    @torch.inference_mode()
    def set_portrait(self, portrait: NDArray[np.uint8] | None) -> None:
        """Show another portrait from the next window on; motion and rhythm go on.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).

        Raises:
            ConfigError: It is missing or has another size.
        """
        image = portrait_tensor(portrait, height_px=self._model.height_px, width_px=self._model.width_px)
        reference, features = self._model.vae.encode_portrait(image)
        self._portrait = self._model.decoder.prepare(features)
        self._model.dit.prefill(reference[:, :, 0].to(self._model.dit.dtype), self._cache)
        if self._block:
            self._cache.clear_rings()
            self._block = 0
        self._decoder_state = self._model.vae.new_state()

    def is_ready(self, params: StreamParams) -> bool:
        """Say that `update` takes no time."""
        return True

    def update(self, params: StreamParams) -> None:
        """Use these parameters from the next window on."""
        self._params = params

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Hear the sound of a window that is not made; the head goes on from where it was last seen.

        Args:
            pcm: The window and its right context.
        """
        self._audio.skip(pcm)
        self._loudness.push(pcm[:WINDOW_SAMPLES])

    def interrupt(self) -> None:
        """Forget the sound so far: what follows is not its continuation."""
        self._audio = self._model.features.stream()

    def close(self) -> None:
        """Free the stream's memory."""
        del self._cache, self._portrait, self._decoder_state

    @torch.inference_mode()
    def generate(self, pcm: NDArray[np.int16], marks: StageMarks, max_steps: int) -> Iterator[NDArray[np.uint8]]:
        """Make the 12 frames of the next window, four at a time.

        Args:
            pcm: The window and its right context.
            marks: Where to note the stages.
            max_steps: At most so many steps; the sampler's estimate of the clean latents is taken after the last.

        Yields:
            I420 pictures, (4, height_px * 3 // 2, width_px).
        """
        dit = self._model.dit
        columns = self._audio.push(pcm)
        motion = self._planner.plan(self._loudness.push(pcm[:WINDOW_SAMPLES]), self._params)
        signal = motion_signal(torch.from_numpy(motion)[None])
        conditioning = dit.condition(
            dit.encode_audio(columns[None]), dit.modulate(self._schedule.timesteps, signal), 3 * self._block
        )
        marks.features_done()
        latents = sample_block(
            dit,
            self._noise.next_block(),
            self._schedule,
            conditioning,
            self._cache,
            max_steps=min(max_steps, self._model.num_steps),
            on_step=marks.step_done,
        )
        self._block += 1
        for t in range(latents.shape[2]):
            here = slice(t, t + 1)
            pictures = self._model.decoder.decode(
                latents[:, :, here], signal[:, here], self._portrait, self._decoder_state
            )
            if t == latents.shape[2] - 1:
                marks.decode_done()
            yield pictures.numpy()
