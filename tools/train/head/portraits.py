"""The portraits that ship with visavis: `python -m tools.train.head.portraits` writes them.

Six people who do not exist, rendered by this generator and published under CC0 1.0.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.train.head.person import Wishes, sample_person
from tools.train.head.renderer import Renderer
from tools.train.head.scene import Camera, Scene, sample_scene
from tools.train.head.visemes import VISEMES, FaceMotion, expression_from

__all__ = ["SITTERS", "Sitter", "draw", "main"]

FOLDER = Path("pipeline/weights/embedded/portraits")
SIZE_PX = (256, 384)
LICENCE = """# Portraits

The people in this folder do not exist. They were rendered by `python -m tools.train.head.portraits` from the CC0 head
of MakeHuman/MPFB (see tools/train/head/data/LICENCE.md) and are published under CC0 1.0 Universal
(<https://creativecommons.org/publicdomain/zero/1.0/>): use them for anything.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitter:
    """Somebody to portray."""

    id: str
    """File name and identifier on the wire."""
    name: str
    """What people read."""
    seed: int
    """Everything that the wishes leave open is drawn from it."""
    wishes: Wishes
    back: tuple[tuple[int, int, int], tuple[int, int, int], int]
    """Lower and upper colour of the background, sRGB, and its kind (0 paper, 1 lights, 2 room, 3 foliage)."""


SITTERS = (
    Sitter(
        id="ada",
        name="Ada",
        seed=11,
        wishes=Wishes(
            gender=0.0, age=0.22, ancestry=(1.0, 0.0, 0.0), hair="long", hair_colour="chestnut", iris="green",
            glasses=False, cloth_kind=3, cloth=(52, 66, 92), darkness=0.05, spread=0.07,
        ),
        back=((128, 146, 158), (206, 214, 216), 0),
    ),
    Sitter(
        id="ben",
        name="Ben",
        seed=8,
        wishes=Wishes(
            gender=1.0, age=0.25, ancestry=(1.0, 0.0, 0.0), hair="side", hair_colour="dark blond", iris="blue",
            glasses=False, beard=0.32, cloth_kind=2, cloth=(196, 210, 224), darkness=0.12, spread=0.07,
        ),
        back=((96, 104, 96), (176, 184, 166), 2),
    ),
    Sitter(
        id="chika",
        name="Chika",
        seed=0,
        wishes=Wishes(
            gender=0.0, age=0.05, ancestry=(0.08, 0.0, 0.92), hair="bob", hair_colour="black", iris="dark brown",
            glasses=False, cloth_kind=0, cloth=(214, 142, 120), darkness=0.10, spread=0.07,
        ),
        back=((196, 180, 166), (236, 226, 212), 0),
    ),
    Sitter(
        id="dayo",
        name="Dayo",
        seed=5,
        wishes=Wishes(
            gender=1.0, age=0.2, ancestry=(0.05, 0.95, 0.0), hair="buzz", hair_colour="black", iris="dark brown",
            glasses=False, beard=0.55, cloth_kind=0, cloth=(226, 222, 210), darkness=0.82, spread=0.07,
        ),
        back=((58, 92, 96), (120, 158, 156), 0),
    ),
    Sitter(
        id="elif",
        name="Elif",
        seed=1,
        wishes=Wishes(
            gender=0.0, age=0.15, ancestry=(0.62, 0.20, 0.18), hair="curly", hair_colour="dark brown", iris="brown",
            glasses=False, cloth_kind=1, cloth=(38, 92, 88), darkness=0.36, spread=0.07,
        ),
        back=((150, 118, 96), (222, 196, 168), 2),
    ),
    Sitter(
        id="frank",
        name="Frank",
        seed=11,
        wishes=Wishes(
            gender=1.0, age=0.72, ancestry=(0.85, 0.0, 0.15), hair="crop", hair_colour="grey", iris="grey",
            glasses=True, beard=0.0, cloth_kind=3, cloth=(70, 62, 58), darkness=0.14, spread=0.07,
        ),
        back=((70, 78, 92), (138, 148, 162), 1),
    ),
)  # fmt: skip


def _light(scene: Scene, sitter: Sitter) -> Scene:
    """Three-point light of a portrait studio before the sitter's background."""
    low, high = (tuple(float((c / 255) ** 2.2) for c in colour) for colour in sitter.back[:2])
    light = {
        **scene.light,
        "key_direction": (-0.48, 0.50, 0.72),
        "key_colour": (2.08, 2.0, 1.90),
        "fill_direction": (0.72, 0.12, 0.68),
        "fill_colour": (0.42, 0.44, 0.47),
        "rim_direction": (0.62, 0.42, -0.66),
        "rim_colour": (1.1, 1.1, 1.1),
        "sky_colour": (0.40, 0.41, 0.43),
        "floor_colour": (0.27, 0.25, 0.23),
        "shadow_softness": 0.028,
    }
    background = {
        **scene.background, "back_low": low, "back_high": high, "back_accent": high, "back_kind": sitter.back[2],
        "back_glow": 0.35,
    }  # fmt: skip
    return Scene(camera=Camera(elevation=0.02), light=light, background=background)


def draw(sitter: Sitter, renderer: Renderer) -> NDArray[np.uint8]:
    """Draw one sitter: a closed mouth, the slightest smile, eyes on the viewer.

    Args:
        sitter: Who.
        renderer: Decides about the size.

    Returns:
        The portrait, uint8 RGB, (H, W, 3).
    """
    rng = np.random.default_rng(sitter.seed)
    person = sample_person(rng, sitter.wishes)
    person.paint["cloth_pattern"] = 0
    scene = _light(sample_scene(rng, person), sitter)
    motion = FaceMotion.still(1)
    motion.smile[:] = 0.18
    rest = np.zeros((1, len(VISEMES)), np.float32)
    pose = np.array([[0.03 * (-1) ** sitter.seed, 0.0, 0.0]], np.float32)
    return np.asarray(renderer.render(person, scene, expression_from(rest, motion), pose).frames[0], np.uint8)


def main() -> None:
    """Write the portraits, their index and their licence."""
    parser = argparse.ArgumentParser(description="Render the default portraits.")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    renderer = Renderer(size=SIZE_PX, supersampling=4)
    for sitter in SITTERS:
        Image.fromarray(draw(sitter, renderer)).save(folder / f"{sitter.id}.png", optimize=True)
    index = [{"id": sitter.id, "name": sitter.name} for sitter in SITTERS]
    (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "LICENCE.md").write_text(LICENCE)
    renderer.close()
    print(f"wrote {len(SITTERS)} portraits to {folder}")


if __name__ == "__main__":
    main()
