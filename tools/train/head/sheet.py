"""Contact sheets to look at: `python -m tools.train.head.sheet people|visemes|mouths -o sheet.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.train.head.person import Wishes, sample_person
from tools.train.head.renderer import Renderer
from tools.train.head.scene import sample_scene
from tools.train.head.visemes import VISEMES, FaceMotion, expression_from

__all__ = ["main"]


def _viseme_rows(names: list[str]) -> NDArray[np.float32]:
    rows = np.zeros((len(names), len(VISEMES)), np.float32)
    rows[np.arange(len(names)), [VISEMES.index(name) for name in names]] = 1
    return rows


def _grid(pictures: NDArray[np.uint8], columns: int) -> Image.Image:
    rows = -(-len(pictures) // columns)
    blank = np.zeros((rows * columns - len(pictures), *pictures.shape[1:]), np.uint8)
    cells = np.concatenate([pictures, blank]).reshape(rows, columns, *pictures.shape[1:])
    return Image.fromarray(cells.transpose(0, 2, 1, 3, 4).reshape(rows * pictures.shape[1], -1, 3))


def _people(renderer: Renderer, seed: int, num: int, hair: str | None) -> NDArray[np.uint8]:
    pictures = []
    for k in range(num):
        rng = np.random.default_rng((seed, k))
        person = sample_person(rng, Wishes(hair=hair))
        scene = sample_scene(rng, person)
        visemes = _viseme_rows([VISEMES[int(rng.integers(len(VISEMES)))] if rng.random() < 0.5 else "sil"])
        pose = (rng.normal(size=(1, 3)) * (0.12, 0.05, 0.03)).astype(np.float32)
        pictures.append(renderer.render(person, scene, expression_from(visemes, FaceMotion.still(1)), pose).frames[0])
    return np.stack(pictures)


def _visemes(renderer: Renderer, seed: int, hair: str | None) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    person = sample_person(rng, Wishes(hair=hair))
    expression = expression_from(_viseme_rows(list(VISEMES)), FaceMotion.still(len(VISEMES)))
    clip = renderer.render(person, sample_scene(rng, person), expression, np.zeros((len(VISEMES), 3), np.float32))
    return clip.frames, clip.landmarks


def main() -> None:
    """Draw one sheet."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet of random people or of one person's visemes.")
    parser.add_argument("kind", choices=("people", "visemes", "mouths"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=12)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--hair", help="one hair style for all")
    arguments = parser.parse_args()
    renderer = Renderer(supersampling=6 if arguments.kind == "mouths" else 2)
    if arguments.kind == "people":
        pictures = _people(renderer, arguments.seed, arguments.num, arguments.hair)
    else:
        pictures, landmarks = _visemes(renderer, arguments.seed, arguments.hair)
        if arguments.kind == "mouths":
            x, y = landmarks[0, :4].mean(0).astype(int)
            crops = [Image.fromarray(p[y - 32 : y + 48, x - 48 : x + 48]).resize((288, 240)) for p in pictures]
            pictures = np.stack([np.asarray(crop) for crop in crops])
    _grid(pictures, arguments.columns).save(arguments.output)


if __name__ == "__main__":
    main()
