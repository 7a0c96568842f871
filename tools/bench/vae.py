"""How well the video autoencoder keeps held-out people: PSNR of rendered clips, whole and at mouth and eyes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import EngineConfig
from pipeline.models.embedded import EMBEDDED_GEOMETRY, EMBEDDED_VAE
from pipeline.models.embedded_vae import EmbeddedVAE
from pipeline.weights.embedded_files import EmbeddedFiles
from tools.bench.measures import psnr_db
from tools.train.head.mesh import LANDMARK_NAMES
from tools.train.head.person import sample_person
from tools.train.head.renderer import Clip, Renderer
from tools.train.head.scene import sample_scene
from tools.train.head.visemes import VISEMES, FaceMotion, expression_from

__all__ = ["detail_mask", "measure_vae", "render_person"]

# Far from the seeds of training, which count from small numbers.
FIRST_SEED = 900_000_000
NUM_FRAMES = 24
# Half sizes of the boxes, relative to the distance of the eyes.
MOUTH_HALF, EYE_HALF = (0.55, 0.42), (0.32, 0.22)


def render_person(renderer: Renderer, seed: int, num_frames: int = NUM_FRAMES) -> Clip:
    """Draw a person who runs through the visemes, blinks and turns the head.

    Args:
        renderer: Draws.
        seed: Of the person.
        num_frames: Frames after the first, which is the resting portrait.

    Returns:
        The clip, `num_frames + 1` frames.
    """
    rng = np.random.default_rng(FIRST_SEED + seed)
    person = sample_person(rng)
    scene = sample_scene(rng, person)
    visemes = np.zeros((num_frames + 1, len(VISEMES)), np.float32)
    for frame in range(1, num_frames + 1):
        visemes[frame, rng.integers(len(VISEMES)) if frame % 3 == 1 else visemes[frame - 1].argmax()] = 1
    motion = FaceMotion.still(num_frames + 1)
    motion.blink[num_frames // 2 : num_frames // 2 + 4] = (0.5, 1, 1, 0.5)
    pose = np.zeros((num_frames + 1, 3), np.float32)
    pose[:, 0] = 0.1 * np.sin(np.arange(num_frames + 1) / 6)
    return renderer.render(person, scene, expression_from(visemes, motion), pose)


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


@torch.no_grad()
def measure_vae(config: EngineConfig, num_people: int) -> dict[str, float]:
    """Encode and decode rendered people that training has not seen.

    Args:
        config: Of the engine, for the folder of the weights.
        num_people: How many.

    Returns:
        Mean PSNR in dB: "full" and "mouth_and_eyes".

    Raises:
        WeightsError: The weights are missing or damaged.
    """
    vae = EmbeddedFiles(config.weights_dir).load(EmbeddedVAE(EMBEDDED_VAE), "vae").float()
    renderer = Renderer((EMBEDDED_GEOMETRY.width_px, EMBEDDED_GEOMETRY.height_px))
    full, detail = [], []
    try:
        for seed in range(num_people):
            clip = render_person(renderer, seed)
            decoded = _round_trip(vae, clip.frames)
            truth = clip.frames[1:]
            mask = detail_mask(clip.landmarks[1:], *truth.shape[1:3])
            full.append(psnr_db(decoded, truth))
            detail.append(psnr_db(decoded, truth, mask.astype(np.float32)))
    finally:
        renderer.close()
    return {"full": float(np.mean(full)), "mouth_and_eyes": float(np.mean(detail))}


def _round_trip(vae: EmbeddedVAE, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode all frames but the first, which is the portrait."""
    video = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    portrait = vae.portrait_features(video[:1])
    latents = vae.encode(video[None, 1:])
    decoded: Tensor = vae.decode(latents.transpose(1, 2), portrait, vae.new_state())[0]
    pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(pixels.permute(0, 2, 3, 1).numpy(), np.uint8)
