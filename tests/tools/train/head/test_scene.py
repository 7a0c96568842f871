"""Tests of light, background and camera."""

import numpy as np
import pytest

from tools.train.head.person import Wishes, sample_person
from tools.train.head.scene import sample_scene

pytestmark = pytest.mark.unit


def test_every_scene_lights_the_face_from_the_front_and_frames_it_canonically() -> None:
    person = sample_person(np.random.default_rng(0), Wishes(hair="bald"))
    for seed in range(30):
        scene = sample_scene(np.random.default_rng(seed), person)
        key, rim = (np.array(scene.light[name]) for name in ("key_direction", "rim_direction"))
        assert np.linalg.norm(key) == pytest.approx(1)
        assert key[2] > 0.4
        assert rim[2] < 0
        assert 0.40 <= scene.camera.eye_y <= 0.42
        assert 0.235 <= scene.camera.eye_distance <= 0.265


def test_the_fill_never_leaves_half_of_the_face_in_the_dark() -> None:
    person = sample_person(np.random.default_rng(0), Wishes(hair="bald"))
    for seed in range(30):
        light = sample_scene(np.random.default_rng(seed), person).light
        shade = np.mean(light["fill_colour"]) + np.mean(light["sky_colour"])
        assert shade > 0.2 * np.mean(light["key_colour"])


def test_dark_skin_gets_more_light() -> None:
    fair, dark = (
        sample_person(np.random.default_rng(0), Wishes(hair="bald", darkness=darkness)) for darkness in (0.0, 1.0)
    )
    scenes = [sample_scene(np.random.default_rng(1), person) for person in (fair, dark)]
    assert scenes[1].light["key_colour"] > scenes[0].light["key_colour"]
