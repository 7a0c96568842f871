"""How well the video autoencoder keeps held-out people: PSNR of rendered clips, whole and at mouth and eyes.

The people say held-out speech with the head motion of a stream, so the figures are of what the avatar has to show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.embedded import motion_signal
from pipeline.models.embedded_vae import EmbeddedVAE
from tools.bench.heldout import SpokenPart, draw_portrait, draw_speaking, sample_sitter
from tools.bench.measures import psnr_db
from tools.train.head.mesh import LANDMARK_NAMES
from tools.train.head.renderer import Renderer
from tools.train.speech.librivox import HeldOutClip

__all__ = ["detail_mask", "measure_vae", "round_trip", "round_trips"]

NUM_FRAMES = 48
# Half sizes of the boxes, relative to the distance of the eyes.
MOUTH_HALF, EYE_HALF = (0.55, 0.42), (0.32, 0.22)


def detail_mask(landmarks: NDArray[np.float32], height_px: int, width_px: int) -> NDArray[np.bool_]:
    """Mark mouth and eyes.

    Args:
        landmarks: (T, 8, 2), in the order of LANDMARK_NAMES, in pixels.
        height_px: Height of the frames.
        width_px: Width of the frames.

    Returns:
        (T, height_px, width_px).
    """
    places = {name: landmarks[:, index] for index, name in enumerate(LANDMARK_NAMES)}
    left, right = places["eye_left"], places["eye_right"]
    distance = np.linalg.norm(left - right, axis=-1)
    mouth = (places["mouth_left"] + places["mouth_right"]) / 2
    y, x = np.mgrid[:height_px, :width_px]
    mask = np.zeros((len(landmarks), height_px, width_px), bool)
    for centre, (half_x, half_y) in ((mouth, MOUTH_HALF), (left, EYE_HALF), (right, EYE_HALF)):
        near_x = np.abs(x - centre[:, 0, None, None]) < half_x * distance[:, None, None]
        near_y = np.abs(y - centre[:, 1, None, None]) < half_y * distance[:, None, None]
        mask |= near_x & near_y
    return mask


def measure_vae(
    vae: EmbeddedVAE, renderer: Renderer, clips: Sequence[HeldOutClip], num_people: int
) -> dict[str, float]:
    """Encode and decode rendered people that training has not seen.

    Args:
        vae: In float32.
        renderer: Draws, in the size of the embedded avatar.
        clips: What they say: each person the first two seconds of another clip.
        num_people: How many.

    Returns:
        Mean PSNR in dB: "full" and "mouth_and_eyes".
    """
    full, detail = [], []
    for number in range(num_people):
        sitter, speech = sample_sitter(number), clips[number % len(clips)]
        (clip,) = draw_speaking(renderer, sitter, speech.visemes[:NUM_FRAMES], speech.loudness[:NUM_FRAMES])
        decoded = round_trip(vae, draw_portrait(renderer, sitter), clip)
        mask = detail_mask(clip.landmarks, *clip.frames.shape[1:3])
        full.append(psnr_db(decoded, clip.frames))
        detail.append(psnr_db(decoded, clip.frames, mask.astype(np.float32)))
    return {"full": float(np.mean(full)), "mouth_and_eyes": float(np.mean(detail))}


def round_trip(vae: EmbeddedVAE, portrait: NDArray[np.uint8], part: SpokenPart) -> NDArray[np.uint8]:
    """Encode and decode a clip.

    Args:
        vae: In float32.
        portrait: Of the person, (H, W, 3).
        part: Its frames, a multiple of 4.

    Returns:
        The decoded frames, (T, H, W, 3).
    """
    return next(round_trips(vae, portrait, [part]))


def round_trips(
    vae: EmbeddedVAE, portrait: NDArray[np.uint8], parts: Iterable[SpokenPart]
) -> Iterator[NDArray[np.uint8]]:
    """Encode and decode the parts of one stream.

    Args:
        vae: In float32.
        portrait: Of the person, (H, W, 3).
        parts: A multiple of 4 frames each.

    Yields:
        The decoded frames of each part.
    """
    with torch.no_grad():
        features, state = vae.portrait_features(_tensor(portrait[None])), vae.new_state()
    for part in parts:
        with torch.no_grad():
            latents = vae.encode(_tensor(part.frames)[None])
            signal = motion_signal(torch.from_numpy(part.motion)[None])
            decoded = vae.decode(latents.transpose(1, 2), signal, features, state)[0]
        pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        yield np.asarray(pixels.permute(0, 2, 3, 1).numpy(), np.uint8)


def _tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Bring pictures into the network's form: (T, H, W, 3) to (T, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
