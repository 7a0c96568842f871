"""Squares of four pixels: their mean stays, their differences shrink."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tools.train.subpixels import damp_subpixels

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("square", "expected"),
    [
        ([1.0, 1, 1, 1], [1.0, 1, 1, 1]),
        ([1.0, -1, 1, -1], [0.5, -0.5, 0.5, -0.5]),
        ([1.0, 1, -1, -1], [0.5, 0.5, -0.5, -0.5]),
        ([1.0, -1, -1, 1], [0.0, 0, 0, 0]),
        ([4.0, 0, 0, 0], [2.0, 1, 1, 0]),
    ],
)
def test_each_way_to_differ_is_damped_by_itself_and_only_in_colours(square: list[float], expected: list[float]) -> None:
    conv = nn.Conv2d(2, 16, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(square).repeat(4)[:, None, None, None].expand_as(conv.weight))
        conv.bias.copy_(torch.tensor(square).repeat(4))  # type: ignore[union-attr]
    damp_subpixels(conv)
    assert conv.bias is not None
    for values in (conv.bias, conv.weight[:, 1, 2, 0]):
        torch.testing.assert_close(values.detach(), torch.tensor(3 * expected + square))
