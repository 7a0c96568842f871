"""The large engine, Live Avatar with 14 billion parameters, as the worker runs it on one device.

What is computed is what the published pipeline computes: reference, motion and prompt fill the sink, every denoising
step has its own ring, and after the first clip of a video the reference becomes the first latent frame that was made.
A sound that is known from the start is heard as a whole, other sound live, window by window. All 12 frames of a block
are shown, the first block's too, so that picture and sound stay aligned.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.api import StreamParams
from pipeline.audio.wav2vec import Wav2VecFeatures
from pipeline.config import EngineConfig, num_cores
from pipeline.errors import ConfigError
from pipeline.geometry import (
    BLOCKS_PER_CLIP,
    FRAMES_PER_BLOCK,
    LATENT_FRAMES_PER_BLOCK,
    SAMPLE_RATE_HZ,
    WINDOW_S,
    WINDOW_SAMPLES,
)
from pipeline.models.attention import KeysValues
from pipeline.models.colour import to_i420
from pipeline.models.pose import PoseStream
from pipeline.models.sampler import Noise, sample_block
from pipeline.models.wan_vae import SINGLE_FLAVOUR, TIMESTEP_FLAVOUR, StillPortrait
from pipeline.schedule import make_schedule
from pipeline.worker.devices import find_device
from pipeline.worker.kept import Kept
from pipeline.worker.large_memory import (
    NUM_KEPT_PORTRAITS,
    NUM_KEPT_PROMPTS,
    NUM_WHOLE_VOICES,
    large_geometry,
    plan_memory,
    require_memory,
)
from pipeline.worker.large_networks import NetworkSource, make_source
from pipeline.worker.large_prompts import Prompts
from pipeline.worker.model import StageMarks, WarmTimes
from pipeline.worker.pictures import portrait_tensor
from pipeline.worker.stages import StageClock, make_event
from pipeline.worker.timing import time_windows

__all__ = ["LargeModel", "LargeStream"]

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 4
"""What the model was distilled for."""
TIMED_WINDOWS = 4
LONGEST_TIMING_S = 60.0
"""Where windows take so long that timing them all would hold up the start, fewer are made: on a CPU a single one."""

Value = TypeVar("Value")


class LargeModel:
    """The loaded networks.

    Args:
        config: Of the engine.
        source: Where the networks come from; None: as the configuration says.

    Raises:
        WeightsError: Something in the weights' folder is missing, damaged or does not fit.
        ConfigError: There is no such device, or not enough memory.
    """

    def __init__(self, config: EngineConfig, source: NetworkSource | None = None) -> None:
        torch.set_grad_enabled(False)
        # `pipeline.models.precision` promises float32, and by default PyTorch computes convolutions with 10 bits.
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        self.device = find_device(config.large.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        # These networks are large enough for any number of threads, and on a CPU nothing else is in a hurry.
        torch.set_num_threads(config.num_threads if self.device.type == "cuda" else config.threads or num_cores())
        self.dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        self.num_steps = config.num_steps or DEFAULT_STEPS
        self.schedule = make_schedule(self.num_steps)
        self.config = config.large
        self._source = source or make_source(config)
        self.geometry = large_geometry(
            self._source.sizes, height_px=config.large.height_px, width_px=config.large.width_px
        )
        self.memory = plan_memory(
            self._source.sizes,
            self.geometry,
            num_audio_parameters=self._source.num_audio_parameters,
            num_steps=self.num_steps,
            max_streams=config.max_streams,
            whole_sound_s=config.large.whole_sound_s,
            has_pose=config.large.pose_video is not None,
            dtype=self.dtype,
        )
        require_memory(self.memory, self.device, config.large.memory_gb)
        place = self.device, self.dtype
        self.load_s: dict[str, float] = {}
        # Before the others are there, the text encoder has room. They have other shapes: what it had is handed back.
        rows = self._timed("prompt", lambda: self._source.encode_prompt(config.large.prompt, self.device))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._queue_beside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.dit = self._timed("transformer", lambda: self._source.load_transformer(*place))
        self.vae = self._timed("video autoencoder", lambda: self._source.load_vae(*place))
        audio_encoder = self._timed("audio encoder", lambda: self._source.load_audio_encoder(*place))
        self.features = Wav2VecFeatures(audio_encoder, config.large.audio_context)
        with torch.inference_mode():
            self.modulation = self.dit.modulate(self.schedule.timesteps)
            self._prompts = Prompts(self._read, self._attend, num_prompts=NUM_KEPT_PROMPTS)
            self._prompts.add(config.large.prompt, rows)
        self._stills = Kept[bytes, StillPortrait](NUM_KEPT_PORTRAITS)
        self._notes: tuple[str, ...] = ()

    name = "large"
    accepts_prompt = True
    accepts_portrait = True

    @property
    def height_px(self) -> int:
        """Height of every frame."""
        return self.geometry.height_px

    @property
    def width_px(self) -> int:
        """Width of every frame."""
        return self.geometry.width_px

    @property
    def right_context_samples(self) -> int:
        """Audio after the end of a window that its features need."""
        return self.features.right_context_samples

    @property
    def refreshes_reference(self) -> bool:
        """Whether the first latent frame of a video takes the portrait's place after its first clip."""
        return self.config.flavour == "timestep"

    @property
    def num_warm_windows(self) -> int:
        """Windows until rings and left context are full, the reference is refreshed, and one was made so."""
        return 1 + max(BLOCKS_PER_CLIP, math.ceil(self.config.audio_context.left_samples / WINDOW_SAMPLES))

    @property
    def longest_whole_s(self) -> float:
        """Longest sound that a stream hears as a whole."""
        return self.config.whole_sound_s

    @property
    def px_per_token(self) -> int:
        """Side of a token, in pixels."""
        return self.height_px // self.geometry.token_rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen, in sentences."""
        return self._notes

    def warm_up(self) -> WarmTimes:
        """Make windows until one is as the other, and time some more.

        Returns:
            90th percentiles over a few windows.
        """
        warm = time_windows(self, num_warm=self.num_warm_windows, num_timed=TIMED_WINDOWS, longest_s=LONGEST_TIMING_S)
        self._stills.clear()
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU"
        precision = "bf16" if self.dtype is torch.bfloat16 else "fp32"
        # The page shows the first one to everybody.
        notes = ["the weights are random: the pictures mean nothing"] if self.config.random_weights else []
        notes.append(f"{self.num_steps} steps in {precision} on {place}")
        if warm.window_s > WINDOW_S:
            pace = f"longer than the {1000 * WINDOW_S:.0f} ms it lasts"
            notes.append(f"a window takes {1000 * warm.window_s:.0f} ms, {pace}: live streams lose steps, then windows")
        self._notes = tuple(notes)
        return warm

    def open_stream(
        self, *, portrait: NDArray[np.uint8] | None, prompt: str | None, seed: int, params: StreamParams
    ) -> LargeStream:
        """Make the state of a new stream.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).
            prompt: Text prompt; None: that of the configuration.
            seed: Of the noise.
            params: Parameters at the start; the model knows nothing but their prompt.

        Returns:
            The stream.

        Raises:
            ConfigError: The portrait is missing or has another size.
            PromptUnread: The prompt cannot be read.
        """
        return LargeStream(self, portrait, self._first_prompt(prompt, params), seed)

    def is_ready(self, *, prompt: str | None, params: StreamParams) -> bool:
        """Say whether the prompt of a new stream is one of the last ones; it is read beside everything else otherwise.

        Args:
            prompt: Text prompt; None: that of the configuration.
            params: Parameters at the start.

        Returns:
            Whether `open_stream` takes no time for it.
        """
        return self.has_text(self._first_prompt(prompt, params))

    def has_text(self, prompt: str) -> bool:
        """Say whether `text` takes no time; the prompt is read beside everything else otherwise.

        Args:
            prompt: The prompt.

        Returns:
            Whether it is there, or could not be read.
        """
        return self._prompts.is_ready(prompt)

    def text(self, prompt: str) -> Sequence[KeysValues]:
        """Give the keys and values of a prompt; one that was not used lately is read first, which takes seconds.

        Args:
            prompt: The prompt.

        Returns:
            One entry per layer.

        Raises:
            PromptUnread: It cannot be read.
        """
        return self._prompts.get(prompt)

    def still(self, portrait: NDArray[np.uint8] | None) -> StillPortrait:
        """Encode a portrait, unless it was used lately.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).

        Returns:
            What a stream starts from.

        Raises:
            ConfigError: It is missing or has another size.
        """
        image = portrait_tensor(portrait, height_px=self.height_px, width_px=self.width_px)
        key = hashlib.sha256(image.numpy().tobytes()).digest()
        flavour = TIMESTEP_FLAVOUR if self.refreshes_reference else SINGLE_FLAVOUR
        return self._stills.get(key, lambda: self.vae.encode_portrait(image.to(self.device), flavour))

    def _first_prompt(self, prompt: str | None, params: StreamParams) -> str:
        return params.prompt or prompt or self.config.prompt

    def _read(self, prompt: str) -> Tensor:
        """Turn a prompt into rows, on the CPU. Runs beside the worker's thread: torch keeps its modes for each thread.

        On a GPU it has a queue of its own, or windows would wait behind the text encoder's gigabytes.
        """
        started = time.monotonic()
        with torch.inference_mode(), torch.cuda.stream(self._queue_beside):
            rows = self._source.encode_prompt(prompt, self.device, reserved_bytes=self._reserved_bytes()).cpu()
        logger.info("encoded a prompt of %d tokens in %.1f s", rows.shape[1], time.monotonic() - started)
        return rows

    @torch.inference_mode()
    def _attend(self, rows_BLC: Tensor) -> Sequence[KeysValues]:
        return self.dit.encode_text(rows_BLC.to(self.device))

    def _reserved_bytes(self) -> int:
        """Memory of the GPU that was planned and is not in use: streams that open meanwhile will want it."""
        if self.device.type != "cuda":
            return 0
        return max(0, sum(self.memory.values()) - torch.cuda.memory_allocated(self.device))

    def _timed(self, part: str, load: Callable[[], Value]) -> Value:
        started = time.monotonic()
        value = load()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.load_s[part] = time.monotonic() - started
        logger.info("%s: ready after %.1f s", part, self.load_s[part])
        return value


class LargeStream:
    """The state of one stream: keys and values, decoder context, audio context, noise.

    Args:
        model: The loaded networks.
        portrait: uint8 RGB, (height_px, width_px, 3).
        prompt: Text prompt.
        seed: Of the noise.
    """

    @torch.inference_mode()
    def __init__(self, model: LargeModel, portrait: NDArray[np.uint8] | None, prompt: str, seed: int) -> None:
        self._model = model
        self._prompt = prompt
        self._text = model.text(prompt)
        geometry = model.geometry
        self._cache = model.dit.new_cache(
            latent_height=geometry.latent_height, latent_width=geometry.latent_width, num_steps=model.num_steps
        )
        self._noise = Noise(geometry, seed=seed, device=model.device, dtype=model.dtype)
        self._audio = model.features.stream()
        self._whole_VSAT: Tensor | None = None
        self._masks_VN: Tensor | None = None
        self.set_portrait(portrait)
        self._pose = _open_pose(model)

    @property
    def num_bytes(self) -> dict[str, int]:
        """Memory that the stream holds by itself, by part."""
        return {"keys and values": self._cache.num_bytes, "decoder state": self._decoder_state.num_bytes}

    @torch.inference_mode()
    def set_portrait(self, portrait: NDArray[np.uint8] | None) -> None:
        """Begin a video of another portrait with the next window; sound, prompt and noise go on.

        Args:
            portrait: uint8 RGB, (height_px, width_px, 3).

        Raises:
            ConfigError: It is missing or has another size.
        """
        still = self._model.still(portrait)
        self._motion_BCThw = still.motion_BCThw
        self._decoder_state = still.warm_state.clone()
        self._block = 0
        self._fresh_reference_BChw: Tensor | None = None
        self._cache.clear_rings()
        self._fill_sink(still.reference_BCThw[:, :, 0])

    def is_ready(self, params: StreamParams) -> bool:
        """Say whether `update` takes no time; another prompt is read beside everything else otherwise."""
        return params.prompt in (None, self._prompt) or self._model.has_text(params.prompt)

    @torch.inference_mode()
    def update(self, params: StreamParams) -> None:
        """Use these parameters from the next window on; another prompt is read now if it is not.

        Args:
            params: The parameters; the model knows nothing but their prompt.

        Raises:
            PromptUnread: Nothing has changed.
        """
        if params.prompt is not None and params.prompt != self._prompt:
            self._text = self._model.text(params.prompt)
            self._prompt = params.prompt
            self._fill_sink(self._reference_BChw)

    @torch.inference_mode()
    def hear_whole(self, sounds: NDArray[np.int16], masks: NDArray[np.bool_] | None) -> None:
        """Take the sound of all windows to come, and make its features as the published code does, all at once.

        Args:
            sounds: 16 kHz mono, (num_voices, num_samples).
            masks: Which tokens listen to which voice, (num_voices, num_tokens); None: there is one voice.

        Raises:
            ConfigError: All voices together are longer than what memory was planned for.
        """
        model = self._model
        voices_s, most_s = sounds.size / SAMPLE_RATE_HZ, NUM_WHOLE_VOICES * model.longest_whole_s
        if voices_s > most_s:
            rule = f"there is memory for {most_s:g} s ({NUM_WHOLE_VOICES} x engine.large.whole_sound_s)"
            raise ConfigError("length of all speakers together", f"{voices_s:.1f} s", rule)
        # The published code's last clip ends before the sound where less than a state is left over.
        num_columns = -(-sounds.shape[1] // WINDOW_SAMPLES) * FRAMES_PER_BLOCK
        sizes = model.dit.config
        self._whole_VSAT = torch.zeros(
            (len(sounds), sizes.num_audio_layers, sizes.audio_dim, num_columns), dtype=model.dtype, device=model.device
        )
        for whole_SAT, sound in zip(self._whole_VSAT, sounds, strict=True):
            columns_SAT = model.features.from_file(sound)[..., :num_columns]
            whole_SAT[..., : columns_SAT.shape[2]] = columns_SAT
        self._masks_VN = None if masks is None else torch.from_numpy(masks.copy()).to(model.device)

    def skip(self, pcm: NDArray[np.int16]) -> None:
        """Hear the sound of a window that is not made, and let its part of the film go by.

        Args:
            pcm: The window and its right context.
        """
        self._audio.skip(pcm)
        if self._pose is not None:
            self._pose.skip_block()

    def interrupt(self) -> None:
        """Forget the sound so far: what follows is not its continuation."""
        self._whole_VSAT = self._masks_VN = None
        self._audio = self._model.features.stream()

    def close(self) -> None:
        """Free the stream's memory."""
        if self._pose is not None:
            self._pose.close()
        del self._cache, self._decoder_state, self._text, self._motion_BCThw

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
        model, dit = self._model, self._model.dit
        stages = StageClock(marks, make_event(model.device))
        self._refresh_reference()  # a window that was given up did not come to it
        columns_VSAT = self._hear(pcm, marks.window)
        conditioning = dit.condition(
            dit.encode_audio(columns_VSAT),
            model.modulation,
            LATENT_FRAMES_PER_BLOCK * self._block,
            reference_distance=model.config.reference_distance,
            pose_BCTHW=None if self._pose is None else self._pose.next_block(),
            masks_VN=self._masks_VN,
        )
        stages.features_done()
        latents_BCThw = sample_block(
            dit,
            self._noise.next_block(),
            model.schedule,
            conditioning,
            self._cache,
            max_steps=min(max_steps, model.num_steps),
            on_step=stages.step_done,
        )
        if self._block == 0 and model.refreshes_reference:
            self._fresh_reference_BChw = latents_BCThw[:, :, 0].clone()
        self._block += 1
        for t in range(LATENT_FRAMES_PER_BLOCK):
            frames_BFCHW = model.vae.decode(latents_BCThw[:, :, t : t + 1], self._decoder_state)
            pictures = to_i420(frames_BFCHW[0]).cpu()
            if t == LATENT_FRAMES_PER_BLOCK - 1:
                stages.decode_done()
            yield pictures.numpy()
        self._refresh_reference()  # while the viewer watches the frames that are made

    def _hear(self, pcm: NDArray[np.int16], window: int) -> Tensor:
        """Audio columns of a window for each voice, in the compute dtype."""
        if self._whole_VSAT is None:
            return self._audio.push(pcm)[None].to(self._model.dtype)
        return self._whole_VSAT[..., window * FRAMES_PER_BLOCK : (window + 1) * FRAMES_PER_BLOCK]

    def _refresh_reference(self) -> None:
        """After the first clip of a video, the first latent frame that was made takes the portrait's place. Once."""
        if self._fresh_reference_BChw is not None and self._block >= BLOCKS_PER_CLIP:
            self._fill_sink(self._fresh_reference_BChw)
            self._fresh_reference_BChw = None

    def _fill_sink(self, reference_BChw: Tensor) -> None:
        self._reference_BChw = reference_BChw
        self._model.dit.prefill(reference_BChw, self._cache, motion_BCTHW=self._motion_BCThw, text=self._text)


def _open_pose(model: LargeModel) -> PoseStream | None:
    """Begin with the pose, if there is one."""
    config = model.config
    if config.pose_video is None:
        return None
    return PoseStream(
        model.vae,
        config.pose_video,
        height_px=model.height_px,
        width_px=model.width_px,
        is_exact=config.pose_is_exact,
        loops=config.pose_loops,
    )
