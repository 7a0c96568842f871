"""The face networks in numpy, and finding a face in a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.face import FaceNet, find_face, load_face_net
from pipeline.portrait import load_portrait

pytestmark = pytest.mark.unit

DATA_DIR = Path(__file__).parents[1] / "data"


def noise_picture(name: str) -> np.ndarray:
    """The two pictures were drawn one after the other."""
    rng = np.random.default_rng(0)
    pictures = {"detector": rng.uniform(-1, 1, (128, 128, 3)), "landmarks": rng.uniform(-1, 1, (192, 192, 3))}
    return pictures[name].astype(np.float32)


@pytest.mark.parametrize("name", ["detector", "landmarks"])
def test_a_network_gives_what_the_original_runtime_gives(name: str) -> None:
    """The references are outputs of the original TensorFlow Lite files for a picture of seeded noise."""
    reference = np.load(DATA_DIR / "face_nets.npz")
    for index, output in enumerate(load_face_net(name)(noise_picture(name))):
        expected = reference[f"{name}_{index}"].astype(np.float32)
        assert output.shape == expected.shape
        assert np.abs(output - expected).max() < 2e-3 * np.abs(expected).max()


def net(*operators: dict[str, object], **weights: np.ndarray) -> FaceNet:
    graph = {"input": 0, "outputs": [operators[-1]["out"]], "operators": operators}
    return FaceNet({"graph": np.frombuffer(json.dumps(graph).encode(), np.uint8), **weights})


@pytest.mark.parametrize(("stride", "same", "extent"), [(1, True, 6), (2, True, 3), (1, False, 4), (3, False, 2)])
def test_a_convolution_equals_the_sum_written_out(stride: int, same: bool, extent: int) -> None:
    rng = np.random.default_rng(0)
    picture, weight = rng.normal(size=(6, 6, 3)), rng.normal(size=(2, 3, 3, 3))
    bias = np.zeros(2)
    operator = {"op": "conv", "in": [0, 1, 2], "out": 3, "stride": stride, "same": same, "relu": False}
    [result] = net(operator, t1=weight, t2=bias)(picture)
    assert result.shape == (1, extent, extent, 2)
    # The same-padding of an even extent with stride 2 is on the far side only.
    near = {(1, True): 1, (2, True): 0}.get((stride, same), 0)
    padded = np.pad(picture, ((near, 2), (near, 2), (0, 0)))
    for y in range(extent):
        for x in range(extent):
            patch = padded[y * stride : y * stride + 3, x * stride : x * stride + 3]
            assert result[0, y, x] == pytest.approx(np.einsum("hwc,ohwc->o", patch, weight), abs=1e-4)


def test_an_unknown_operator_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="softmax"):
        net({"op": "softmax", "in": [0], "out": 1})(np.zeros((4, 4, 3), np.float32))


def test_no_face_in_noise_or_in_a_plain_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
    assert find_face(Image.fromarray(noise)) is None
    assert find_face(Image.new("RGB", (200, 300), (120, 90, 80))) is None


def face_picture() -> Image.Image:
    """A rendered head, 150x150 px; its eyes are at (51, 75) and (98, 75)."""
    return Image.open(DATA_DIR / "face.png").convert("RGB")


@pytest.mark.parametrize("scale", [0.5, 1, 4])
@pytest.mark.parametrize("size", [(150, 150), (320, 200), (200, 500)])
def test_a_face_is_found_wherever_it_is(size: tuple[int, int], scale: float) -> None:
    canvas = Image.new("RGB", size, (90, 110, 100))
    place = (size[0] - 150, (size[1] - 150) // 2)
    canvas.paste(face_picture(), place)
    face = find_face(canvas.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS))
    assert face is not None
    for eye, x in ((face.left_eye, 51), (face.right_eye, 98)):
        assert eye[0] / scale == pytest.approx(place[0] + x, abs=5)
        assert eye[1] / scale == pytest.approx(place[1] + 75, abs=5)


def test_the_suggested_crop_puts_the_eyes_in_their_place(tmp_path: Path) -> None:
    canvas = Image.new("RGB", (700, 600), (90, 110, 100))
    canvas.paste(face_picture(), (300, 200))
    canvas.save(tmp_path / "p.png")
    crop, face_found = load_portrait(tmp_path / "p.png").suggest_crop(256 / 384)
    assert face_found
    assert (300 + 74.5 - crop.x_px) / crop.width_px == pytest.approx(0.5, abs=0.04)
    assert (200 + 75 - crop.y_px) / crop.height_px == pytest.approx(0.41, abs=0.03)
    assert 47 / crop.width_px == pytest.approx(0.25, abs=0.03)


def test_a_face_too_near_for_its_place_still_gives_a_crop_inside_the_image(tmp_path: Path) -> None:
    face_picture().crop((20, 30, 130, 130)).save(tmp_path / "p.png")
    source = load_portrait(tmp_path / "p.png")
    crop, _ = source.suggest_crop(256 / 384)
    assert source.cut(crop, height_px=384, width_px=256).shape == (384, 256, 3)
