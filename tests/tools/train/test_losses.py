"""What training looks at in pictures."""

from __future__ import annotations

import math

import pytest
import torch

from tools.train.clips import NUM_LANDMARKS
from tools.train.losses import (
    PatchDiscriminator,
    crop,
    darkness_gain,
    edge_loss,
    excess_detail,
    eye_centre,
    face_weights,
    mouth_centre,
    psnr_db,
)

pytestmark = pytest.mark.numerics


def landmarks(mouth: tuple[float, float], eyes: tuple[float, float]) -> torch.Tensor:
    marks = torch.zeros(1, NUM_LANDMARKS, 2)
    marks[:, :4] = torch.tensor(mouth) + torch.tensor([[-9.0, 0], [9, 0], [0, -4], [0, 4]])
    marks[:, 4:6] = torch.tensor(eyes) + torch.tensor([[-20.0, 0], [20, 0]])
    return marks


def test_centres_are_the_means_of_their_landmarks() -> None:
    marks = landmarks((60, 150), (64, 80))
    assert mouth_centre(marks).tolist() == [[60, 150]]
    assert eye_centre(marks).tolist() == [[64, 80]]


def test_mouth_and_eyes_weigh_most_where_they_are_and_the_rest_weighs_one() -> None:
    weight = face_weights(landmarks((60, 150), (64, 80)), 256, 128)[0]
    assert weight.shape == (256, 128)
    assert divmod(int(weight.argmax()), 128) in {(y, x) for y in (149, 150) for x in (59, 60)}
    assert float(weight.max()) == pytest.approx(9, abs=0.05)
    assert float(weight[80, 64]) == pytest.approx(6, abs=0.05)
    assert float(weight[250, 5]) == pytest.approx(1, abs=0.01)


def test_weights_of_a_small_map_are_those_of_the_full_one_at_its_places() -> None:
    marks = landmarks((60, 150), (64, 80))
    small = face_weights(marks, 16, 8, scale=16.0)[0]
    full = face_weights(marks, 256, 128)[0]
    torch.testing.assert_close(small, full[8::16, 8::16], atol=0.35, rtol=0)


def test_dark_faces_count_more_and_dark_rooms_do_not() -> None:
    weight = face_weights(landmarks((60, 150), (64, 80)), 256, 128)
    on_face = (weight > 1.1)[:, None].expand(-1, 3, -1, -1)
    gains = []
    for face, room in ((0.4, -0.9), (0.0, 0.9), (-0.5, 0.9), (-0.95, 0.9)):
        picture = torch.where(on_face, face, room)
        gains.append(float(darkness_gain(picture, weight)))
    assert gains == [1.0, pytest.approx(1.0, abs=0.05), pytest.approx(2.0, abs=0.2), 3.0]


def test_psnr_is_that_of_pictures_from_zero_to_one() -> None:
    real = torch.zeros(2, 3, 8, 8)
    assert psnr_db(real + 0.02, real) == pytest.approx(40, abs=1e-3)
    weight = torch.zeros(2, 1, 8, 8)
    weight[..., :4] = 1
    made = real.clone()
    made[..., 4:] = 1
    assert psnr_db(made + 0.2 * weight, real, weight) == pytest.approx(20, abs=1e-3)


def test_edges_do_not_mind_brightness_and_mind_blur() -> None:
    real = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(1, 1, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    assert float(edge_loss(real + 0.3, real, weight)) < 1e-5
    assert float(edge_loss(blurred, real, weight)) > 0.1


def test_a_crop_is_centred_and_moved_inside_at_the_edges() -> None:
    ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(30.0), indexing="ij")
    pictures = torch.stack([xs, ys, xs + ys]).expand(3, 3, 40, 30)
    cut = crop(pictures, torch.tensor([[15.0, 20.0], [0.0, 0.0], [99.0, 99.0]]), 10)
    assert cut.shape == (3, 3, 10, 10)
    assert cut[:, :2, 0, 0].tolist() == [[10, 15], [0, 0], [20, 30]]
    assert math.isclose(float(cut[0, 2, 9, 9]), 19 + 24)


def test_the_discriminator_judges_patches_and_gives_its_features() -> None:
    torch.manual_seed(0)
    judged, features = PatchDiscriminator(3, widths=(4, 8))(torch.randn(2, 3, 32, 32))
    assert judged.shape[:2] == (2, 1)
    assert [feature.shape[1] for feature in features] == [4, 8]


def test_excess_detail_finds_a_dot_and_lets_real_detail_be() -> None:
    real = torch.zeros(1, 3, 16, 16)
    real[..., 8:] = 1.0
    made = real.clone()
    made[0, :, 4, 4] = 0.9
    found = excess_detail(made, real)
    assert float(found[0, 0, 4, 4]) == pytest.approx(0.9 * 8 / 9 - 0.04, abs=1e-4)
    assert not found[..., 7:9].any(), "the edge is the truth's, too"
    assert not excess_detail(real, made).any(), "too little detail is none too much"
