"""Light, background and camera of one clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.train.head.person import Paint, Person

__all__ = ["Camera", "Scene", "sample_scene"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Where the picture is taken from, and where the eyes lie in it when the head is straight."""

    distance: float = 9.0
    """From the eyes, in head units."""
    azimuth: float = 0.0
    """Radians; positive when the camera stands to the person's left."""
    elevation: float = 0.0
    """Radians above the eyes."""
    eye_x: float = 0.5
    """Middle of the eyes, share of the width."""
    eye_y: float = 0.41
    """Middle of the eyes from the top, share of the height."""
    eye_distance: float = 0.25
    """Distance of the eyes, share of the width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is round the person."""

    camera: Camera
    light: Paint
    background: Paint


def _colour(values: NDArray[np.float64]) -> tuple[float, float, float]:
    r, g, b = (float(max(v, 0.0)) for v in values)
    return (r, g, b)


def _direction(azimuth: float, elevation: float) -> tuple[float, float, float]:
    return (
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
        float(np.cos(azimuth) * np.cos(elevation)),
    )


def _sample_light(rng: np.random.Generator) -> Paint:
    side = float(rng.choice([-1.0, 1.0]))
    azimuth, elevation = side * rng.uniform(0.15, 0.85), rng.uniform(0.30, 0.70)
    warm = rng.uniform(-0.05, 0.10)
    key, contrast = rng.uniform(1.75, 2.25), rng.uniform(0.0, 1.0)
    fill = (0.62 - 0.40 * contrast) * rng.uniform(0.85, 1.15)
    ambient = (0.46 - 0.18 * contrast) * rng.uniform(0.9, 1.1)
    cool = rng.uniform(-0.06, 0.10)
    return {
        "key_direction": _direction(azimuth, elevation),
        "key_colour": _colour(key * np.array([1 + warm, 1, 1 - warm])),
        "fill_direction": _direction(-azimuth * 1.1 - side * 0.35, 0.12),
        "fill_colour": _colour(fill * np.array([1 - cool, 1, 1 + cool])),
        "rim_direction": _direction(-side * rng.uniform(2.0, 2.6), rng.uniform(0.2, 0.6)),
        "rim_colour": _colour(rng.uniform(0.2, 1.5) * rng.uniform(0.85, 1.0, 3)),
        "sky_colour": _colour(ambient * np.array([1.0, 1.02, 1.06])),
        "floor_colour": _colour(ambient * 0.62 * np.array([1.08, 1.0, 0.93])),
        "shadow_softness": float(rng.uniform(0.012, 0.030)),
    }


def _sample_background(rng: np.random.Generator) -> Paint:
    hue = rng.dirichlet((3, 3, 3)) * 3
    tint = 1 + (hue - 1) * rng.uniform(0.2, 0.8)
    level = float(np.exp(rng.uniform(np.log(0.06), np.log(0.80))))
    high = np.clip(level * tint, 0.01, 1.0)
    accent = np.clip(level * rng.uniform(0.6, 1.8) * (1 + (rng.dirichlet((2, 2, 2)) * 3 - 1) * 0.6), 0.02, 0.8)
    return {
        "back_low": _colour(high * rng.uniform(0.35, 0.85)),
        "back_high": _colour(high),
        "back_accent": _colour(accent),
        "back_kind": int(rng.choice([0, 1, 2, 3], p=[0.45, 0.15, 0.22, 0.18])),
        "back_seed": float(rng.integers(1, 2000)),
        "back_glow": float(rng.uniform(0.0, 0.7)),
    }


def sample_scene(rng: np.random.Generator, person: Person) -> Scene:
    """Draw light, background and framing for a person.

    Args:
        rng: Source of randomness.
        person: Who is in the picture: dark hair and skin get a little more light.

    Returns:
        The scene.
    """
    light = _sample_light(rng)
    melanin = float(person.paint["melanin"])  # type: ignore[arg-type]
    lift = 1.0 + 0.50 * max(0.0, melanin - 0.3)
    for name in ("key_colour", "fill_colour", "sky_colour"):
        light[name] = _colour(lift * np.array(light[name]))
    camera = Camera(
        distance=float(rng.uniform(8.0, 10.0)),
        azimuth=float(rng.normal() * 0.03),
        elevation=float(rng.normal() * 0.025 + 0.01),
        eye_x=float(0.5 + 0.010 * np.clip(rng.normal(), -2, 2)),
        eye_y=float(rng.uniform(0.40, 0.42)),
        eye_distance=float(np.clip(0.25 + 0.006 * rng.normal(), 0.235, 0.265)),
    )
    return Scene(camera=camera, light=light, background=_sample_background(rng))
