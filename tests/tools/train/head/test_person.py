"""Tests of random people and scenes."""

import numpy as np
import pytest

from tools.train.head.person import SKINS, Wishes, sample_person, srgb
from tools.train.head.scene import sample_scene

pytestmark = pytest.mark.unit


def test_the_same_seed_gives_the_same_person_and_scene() -> None:
    def draw() -> tuple[object, ...]:
        rng = np.random.default_rng(11)
        person = sample_person(rng)
        scene = sample_scene(rng, person)
        return person.vertices.tobytes(), person.paint, person.hair_style, scene

    assert draw() == draw()


def test_wishes_are_granted() -> None:
    wishes = Wishes(gender=1.0, age=0.7, ancestry=(0.0, 1.0, 0.0), hair="buzz", glasses=True, beard=0.9, darkness=1.0)
    person = sample_person(np.random.default_rng(0), wishes)
    assert person.hair_style.name == "buzz"
    assert person.shape.age == 0.7
    assert person.frame is not None
    assert person.paint["stubble"] == 0.9
    skin = np.array(person.paint["skin_colour"])
    np.testing.assert_allclose(skin, srgb(*SKINS[-1]), rtol=0.15)


def test_people_vary_in_hair_and_few_wear_glasses() -> None:
    people = [sample_person(np.random.default_rng((1, seed))) for seed in range(40)]
    assert len({person.hair_style.name for person in people}) >= 6
    assert 1 <= sum(person.frame is not None for person in people) <= 12


def test_colours_are_light_between_black_and_white() -> None:
    assert srgb(0, 0, 0) == (0, 0, 0)
    assert srgb(255, 255, 255) == (1, 1, 1)
    for seed in range(10):
        person = sample_person(np.random.default_rng(seed), Wishes(hair="bald"))
        for name, value in person.paint.items():
            if name.endswith("colour"):
                assert min(value) >= 0, name
                assert max(value) <= 1, name
