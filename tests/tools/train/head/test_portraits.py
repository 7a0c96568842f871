"""Tests of the portraits that ship."""

import json

import numpy as np
import pytest
from PIL import Image

from tools.train.head.portraits import FOLDER, SITTERS, SIZE_PX, draw
from tools.train.head.renderer import Renderer

pytestmark = pytest.mark.contract


def test_the_shipped_files_are_those_of_the_sitters() -> None:
    index = json.loads((FOLDER / "index.json").read_text())
    assert index == [{"id": sitter.id, "name": sitter.name} for sitter in SITTERS]
    assert {path.stem for path in FOLDER.glob("*.png")} == {sitter.id for sitter in SITTERS}
    assert "CC0 1.0" in (FOLDER / "LICENCE.md").read_text()


def test_the_shipped_pictures_have_the_engines_size_and_differ() -> None:
    pictures = []
    for sitter in SITTERS:
        with Image.open(FOLDER / f"{sitter.id}.png") as image:
            assert image.size == SIZE_PX
            assert image.mode == "RGB"
            pictures.append(np.asarray(image, np.float32))
    for k, one in enumerate(pictures):
        for other in pictures[k + 1 :]:
            assert np.abs(one - other).mean() > 10


def test_a_sitter_looks_like_the_shipped_picture(renderer: Renderer) -> None:
    sitter = SITTERS[3]
    drawn = draw(sitter, renderer).astype(np.float32)
    with Image.open(FOLDER / f"{sitter.id}.png") as image:
        shipped = np.asarray(image.resize(renderer.size, Image.Resampling.BOX), np.float32)
    assert np.abs(drawn - shipped).mean() < 6
