"""Reading TensorFlow Lite files, from one written by hand."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from pipeline.face import FaceNet
from tools.facenets import convert

pytestmark = pytest.mark.unit


Node = dict[int, object] | list[object] | np.ndarray
"""A table (fields by number: an integer or another node), a vector of tables, or a vector of numbers."""


def flatbuffer(root: Node) -> bytes:
    """Write nodes one after another, each before what it points at: offsets are forward."""
    data, waiting = bytearray(4), [(0, root)]
    while waiting:
        slot, node = waiting.pop(0)
        if isinstance(node, dict):
            count = max(node, default=-1) + 1
            offsets = [4 + 4 * sorted(node).index(number) if number in node else 0 for number in range(count)]
            vtable = len(data)
            data += struct.pack(f"<HH{count}H", 4 + 2 * count, 4 + 4 * len(node), *offsets) + bytes(2 * (count % 2))
            struct.pack_into("<I", data, slot, len(data) - slot)
            data += struct.pack("<i", len(data) - vtable)
            children = [node[number] for number in sorted(node)]
        else:
            struct.pack_into("<I", data, slot, len(data) - slot)
            data += struct.pack("<I", len(node))
            children = node if isinstance(node, list) else []
        for child in children:
            if not isinstance(child, int):
                waiting.append((len(data), child))
            data += struct.pack("<i", child if isinstance(child, int) else 0)
        if isinstance(node, np.ndarray):
            data += node.tobytes() + bytes(-node.nbytes % 4)
    return bytes(data)


def ints(*values: int) -> np.ndarray:
    return np.array(values, "<i4")


def model(weight: np.ndarray, bias: np.ndarray, *, operator: int = 3) -> bytes:
    """A network of one operator: stride 2, same padding, ReLU; its weight is stored as float16 and dequantised."""
    raw = [weight.astype("<f2"), bias.astype("<f4")]
    buffers: list[object] = [{}, *({0: np.frombuffer(array.tobytes(), "u1")} for array in raw)]
    shapes = [
        ((1, 4, 4, 3), 0, 0),
        (weight.shape, 1, 1),
        (weight.shape, 0, 0),
        (bias.shape, 0, 2),
        ((1, 2, 2, 2), 0, 0),
    ]
    tensors: list[object] = [{0: ints(*shape), 1: kind, 2: buffer} for shape, kind, buffer in shapes]
    options = {0: 0, 1: 2, 2: 2, 3: 1}
    operators: list[object] = [{0: 0, 1: ints(1), 2: ints(2)}, {0: 1, 1: ints(0, 2, 3), 2: ints(4), 4: options}]
    graph = {0: tensors, 1: ints(0), 2: ints(4), 3: operators}
    return flatbuffer({1: [{0: 6}, {0: operator}], 2: [graph], 4: buffers})


def test_a_converted_network_computes_what_the_file_says() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(2, 3, 3, 3)), rng.normal(size=2)
    arrays = convert(model(weight, bias))
    graph = json.loads(arrays["graph"].tobytes())
    assert (graph["input"], graph["outputs"]) == (0, [4])
    expected = {"op": "conv", "in": [0, 2, 3], "out": 4, "same": True, "stride": 2, "relu": True}
    assert graph["operators"] == [expected]
    assert arrays["t2"].dtype == np.float16
    picture = rng.normal(size=(4, 4, 3))
    [result] = FaceNet(arrays)(picture)
    padded = np.pad(picture, ((0, 1), (0, 1), (0, 0)))
    for y in range(2):
        for x in range(2):
            patch = padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
            wanted = np.maximum(np.einsum("hwc,ohwc->o", patch, weight) + bias, 0)
            assert result[0, y, x] == pytest.approx(wanted, abs=0.02)


def test_an_operator_that_the_networks_do_not_have_is_refused() -> None:
    with pytest.raises(KeyError):
        convert(model(np.zeros((2, 3, 3, 3)), np.zeros(2), operator=99))
