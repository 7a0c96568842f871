"""Random people: shape of the face, skin, hair, clothes, glasses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.train.head.glasses import Frame, sample_frame
from tools.train.head.hair import HairStyle, Strands, grow, hairline_heights, sample_style
from tools.train.head.mesh import ARKIT_NAMES, Shape, load_head

__all__ = ["Paint", "Person", "Wishes", "sample_person", "srgb"]

Colour = tuple[float, float, float]
Paint = dict[str, float | int | Colour | tuple[float, ...]]
"""Values of the shaders' uniforms by name; colours are linear."""

SKINS = np.array(
    [
        (232, 194, 174),
        (224, 180, 155),
        (211, 162, 134),
        (194, 142, 112),
        (168, 118, 90),
        (138, 93, 69),
        (108, 71, 53),
        (84, 56, 44),
    ],
    np.float64,
)
"""From the fairest to the darkest, sRGB."""
HAIR_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (33, 28, 27),
    "dark brown": (44, 31, 24),
    "brown": (68, 46, 32),
    "chestnut": (92, 56, 36),
    "light brown": (116, 82, 54),
    "dark blond": (150, 112, 70),
    "blond": (196, 160, 108),
    "red": (138, 66, 34),
    "grey": (120, 117, 114),
    "white": (205, 201, 195),
}
IRISES: dict[str, tuple[int, int, int]] = {
    "dark brown": (62, 38, 24),
    "brown": (98, 62, 36),
    "hazel": (112, 84, 52),
    "green": (88, 104, 80),
    "grey": (100, 114, 122),
    "blue": (84, 106, 128),
}
NEVER_SAMPLED = ("head-trans", "neck-trans", "asymm", "mouth-trans-in", "head-back")


def srgb(*colour: float) -> Colour:
    """Convert an sRGB colour, 0 to 255, to linear light."""
    r, g, b = (float(c / 255) ** 2.2 for c in colour)
    return (r, g, b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is not left to chance; None leaves it to chance."""

    gender: float | None = None
    age: float | None = None
    ancestry: tuple[float, float, float] | None = None
    hair: str | None = None
    hair_colour: str | None = None
    iris: str | None = None
    glasses: bool | None = None
    beard: float | None = None
    cloth_kind: int | None = None
    cloth: tuple[int, int, int] | None = None
    darkness: float | None = None
    spread: float = 0.13
    """Standard deviation of the local face shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Everything about a person that does not change from frame to frame."""

    shape: Shape
    vertices: NDArray[np.float32]
    """Neutral vertices, (V, 3)."""
    paint: Paint
    hair_style: HairStyle
    strands: Strands | None
    frame: Frame | None
    """Glasses."""


def _sample_shape(wishes: Wishes, rng: np.random.Generator) -> Shape:
    gender = float(np.clip(rng.choice([rng.beta(1.2, 7), 1 - rng.beta(1.2, 7)]), 0, 1))
    ancestry = rng.dirichlet((0.45, 0.45, 0.45))
    shape = Shape(
        gender=gender if wishes.gender is None else wishes.gender,
        age=float(rng.beta(1.0, 2.8)) if wishes.age is None else wishes.age,
        ancestry=tuple(float(x) for x in ancestry) if wishes.ancestry is None else wishes.ancestry,  # type: ignore[arg-type]
        muscle=float(rng.uniform(0.38, 0.65)),
        weight=float(rng.uniform(0.32, 0.66)),
    )
    return shape


def _sample_local(spread: float, rng: np.random.Generator) -> dict[str, float]:
    """Symmetric deviations of the face, and slight asymmetric ones."""
    local: dict[str, float] = {}
    drawn: dict[str, float] = {}
    for low, high in load_head().local_pairs():
        if low.startswith(NEVER_SAMPLED):
            continue
        stem = low[2:] if low[:2] in ("l-", "r-") else low
        if stem not in drawn:
            drawn[stem] = float(np.clip(rng.normal() * spread, -0.7, 0.7))
        value = drawn[stem] * (0.3 if low.startswith("asym") else 0.4 if low.startswith("eyebrows") else 1.0)
        local[high if value > 0 else low] = abs(value)
    return local


def _sample_hair(shape: Shape, wishes: Wishes, rng: np.random.Generator) -> HairStyle:
    african, receding = shape.ancestry[1] > 0.5, 0.0
    if shape.gender < 0.5:
        styles = ["crop", "afro", "curly", "bob", "long", "tied", "bun"]
        odds = [5, 2, 8, 22, 38, 15, 10]
        if african:
            odds = [8, 24, 18, 8, 18, 12, 12]
    else:
        styles = ["bald", "buzz", "crop", "side", "quiff", "afro", "curly", "long", "tied"]
        odds = [9, 14, 30, 20, 13, 1, 8, 3, 2]
        if african:
            odds = [14, 30, 18, 2, 4, 20, 10, 1, 1]
        receding = float(rng.random() < 0.15 + 0.5 * shape.age) * float(rng.uniform(0.3, 1.0)) * (0.4 + 0.6 * shape.age)
    name = str(rng.choice(styles, p=np.array(odds) / sum(odds)))
    return sample_style(wishes.hair or name, rng, receding=receding)


def _hair_colour(shape: Shape, wishes: Wishes, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """The hair's colour (sRGB) and its share of grey strands."""
    names = list(HAIR_COLOURS)
    odds = (
        np.array([12, 18, 20, 12, 13, 9, 9, 6, 0.5, 0.2])
        if shape.ancestry[0] > 0.55
        else np.array([55, 28, 10, 4, 1, 0.5, 0.5, 0.5, 0.3, 0.1])
    )
    if shape.age > 0.6:
        odds = odds * 0.45 + odds.sum() * np.array([0, 0, 0, 0, 0, 0, 0, 0, 0.38, 0.18])
    name = wishes.hair_colour or str(rng.choice(names, p=odds / odds.sum()))
    grey = float(np.clip((shape.age - 0.35) * rng.uniform(0, 1.1), 0, 0.6)) if name not in ("grey", "white") else 0.0
    return np.clip(np.array(HAIR_COLOURS[name], float) * rng.uniform(0.88, 1.12), 0, 255), grey


def _skin(shape: Shape, wishes: Wishes, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """The skin's colour (sRGB) and how dark it is, 0 to 1."""
    mean = 0.14 * shape.ancestry[0] + 0.78 * shape.ancestry[1] + 0.32 * shape.ancestry[2]
    dark = float(np.clip(mean + 0.09 * rng.normal(), 0, 1)) if wishes.darkness is None else wishes.darkness
    place = dark * (len(SKINS) - 1)
    low = min(int(place), len(SKINS) - 2)
    colour = SKINS[low] * (1 - place + low) + SKINS[low + 1] * (place - low)
    return np.clip(colour * rng.uniform(0.97, 1.03, 3), 20, 250), dark


def _clothes(wishes: Wishes, rng: np.random.Generator) -> Paint:
    hue, sat, val = rng.random(), 0.55 * rng.random() ** 1.4, rng.uniform(0.12, 0.82)
    kind = int(rng.choice([0, 1, 2, 3], p=[0.42, 0.20, 0.22, 0.16])) if wishes.cloth_kind is None else wishes.cloth_kind
    if kind == 3:
        val, sat = val * 0.45, sat * 0.5

    def from_hsv(h: float, s: float, v: float) -> Colour:
        rgb = [
            v * (1 - s * max(0.0, min(1.0, min(k, 4 - k)))) for k in ((5 + 6 * h) % 6, (3 + 6 * h) % 6, (1 + 6 * h) % 6)
        ]
        return srgb(*(255 * c for c in rgb))

    accent = (
        from_hsv(rng.random(), 0.12, rng.uniform(0.6, 0.9))
        if kind == 3
        else from_hsv((hue + rng.uniform(-0.1, 0.1)) % 1, sat * 0.6, min(1.0, val + 0.25))
    )
    return {
        "cloth_kind": kind,
        "cloth_pattern": 0 if kind == 3 else int(rng.choice([0, 1, 2, 3], p=[0.62, 0.10, 0.10, 0.18])),
        "cloth_colour": srgb(*wishes.cloth) if wishes.cloth else from_hsv(hue, sat, val),
        "cloth_accent": accent,
        "neckline": float(rng.uniform(5.98, 6.14)),
    }


def _rested(vertices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Close the hair's breadth between the lips of the neutral mesh and lift its tired lids, (V, 3)."""
    weights = np.zeros((1, len(ARKIT_NAMES)), np.float32)
    weights[0, ARKIT_NAMES.index("mouthShrugLower")] = 0.14
    weights[0, ARKIT_NAMES.index("mouthRollUpper")] = -0.04
    weights[0, [ARKIT_NAMES.index(f"eyeWide{side}") for side in ("Left", "Right")]] = 0.45
    return np.asarray(load_head().pose(vertices, weights)[0], np.float32)


def sample_person(rng: np.random.Generator, wishes: Wishes | None = None) -> Person:
    """Draw one person.

    Args:
        rng: Source of randomness; the same state gives the same person.
        wishes: What is not left to chance.

    Returns:
        The person.
    """
    wishes = wishes or Wishes()
    shape = _sample_shape(wishes, rng)
    local = _sample_local(wishes.spread, rng)
    # The neutral mesh looks stern: most people's mouths rest a little higher at the corners.
    wanted = {"mouth-angles-up": 0.42, "l-eye-scale-incr": 0.22, "r-eye-scale-incr": 0.22}
    if shape.gender < 0.5:
        wanted |= {"chin-width-decr": 0.25, "nose-scale-horiz-decr": 0.30, "nose-scale-vert-decr": 0.10}
    for name, weight in wanted.items():
        local[name] = local.get(name, 0.0) + weight
    vertices = _rested(load_head().identity(shape, local))
    style = _sample_hair(shape, wishes, rng)
    hair, grey = _hair_colour(shape, wishes, rng)
    skin, dark = _skin(shape, wishes, rng)
    female = shape.gender < 0.5
    makeup = float(female and rng.random() < 0.6) * float(rng.uniform(0.2, 0.9))
    iris_odds = np.array(
        [12, 22, 18, 12, 14, 22] if shape.ancestry[0] > 0.6 and dark < 0.4 else [55, 38, 5, 1, 0.5, 0.5]
    )
    iris = wishes.iris or str(rng.choice(list(IRISES), p=iris_odds / iris_odds.sum()))
    beard = (
        float(rng.choice([0.0, 0.18, 0.35, 0.62, 0.9], p=[0.42, 0.20, 0.14, 0.12, 0.12]))
        if wishes.beard is None
        else wishes.beard
    )
    beard *= not female
    lip = skin * (0.86 - 0.05 * dark, 0.64 + 0.08 * dark, 0.66 + 0.06 * dark)
    lipstick = np.array([(176, 58, 66), (188, 96, 100), (150, 66, 78), (170, 88, 78)][int(rng.integers(4))]) * (
        1 - 0.25 * dark
    )
    hair_linear = np.array(srgb(*hair))
    paint: Paint = {
        "skin_colour": srgb(*skin),
        "melanin": dark,
        "lip_colour": srgb(*(lip + 0.45 * makeup * (lipstick - lip))),
        "hair_colour": tuple(hair_linear),
        "hair_tip_colour": tuple(hair_linear * rng.uniform(1.0, 1.35)),
        "grey_share": grey,
        "hair_gloss": float(rng.uniform(0.6, 1.0)) * (0.45 if style.name in ("afro", "curly", "buzz") else 1.0),
        "brow_colour": tuple(np.clip(hair_linear * 0.75, 0.004, 0.16)),
        "iris_colour": srgb(*(np.array(IRISES[iris]) * rng.uniform(0.9, 1.1))),
        "blush": float(rng.uniform(0.4, 1.0)) * (1 - 0.55 * dark),
        "freckles": float(rng.random() < 0.12) * float(rng.uniform(0.25, 0.6)) * (1 - dark),
        "age": shape.age,
        "makeup": makeup,
        "mottle": float(rng.uniform(0.5, 1.0)),
        "oil": float(rng.uniform(0.3, 1.0)),
        "skin_seed": float(rng.uniform(0, 50)),
        "brow_strength": float(rng.uniform(0.75, 1.05)),
        "brow_height": float(rng.uniform(-0.015, 0.020)),
        "brow_arch": float(rng.uniform(0.030, 0.065) if female else rng.uniform(0.015, 0.045)),
        "brow_thickness": float(rng.uniform(0.75, 1.05) if female else rng.uniform(1.0, 1.35)),
        "brow_length": float(rng.uniform(0.94, 1.06)),
        "stubble": beard,
        "moustache": beard * float(rng.choice([0.55, 1.0], p=[0.2, 0.8])),
        "beard_seed": float(rng.uniform(0, 50)),
        "scalp_cover": {"bald": 0.10 * (shape.gender > 0.5), "buzz": 0.97}.get(style.name, 0.95),
        "hairline": tuple(float(y) for y in hairline_heights(style)),
        "hairline_softness": 0.10,
        "lash_strength": float(rng.uniform(0.75, 1.1) + 0.35 * makeup if female else rng.uniform(0.5, 0.75)),
        **_clothes(wishes, rng),
    }
    frame = sample_frame(vertices, rng)
    wears = rng.random() < 0.12 if wishes.glasses is None else wishes.glasses
    return Person(
        shape=shape,
        vertices=vertices,
        paint=paint,
        hair_style=style,
        strands=grow(style, vertices, rng),
        frame=frame if wears else None,
    )
