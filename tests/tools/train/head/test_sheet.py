"""Tests of the contact sheets."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tools.train.head.renderer import Renderer

pytestmark = pytest.mark.contract


def test_a_sheet_of_people_is_a_grid_of_pictures(renderer: Renderer, tmp_path: Path) -> None:
    assert renderer.device
    out = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "tools.train.head.sheet", "people", "--num", "3", "--columns", "2", "-o", str(out)]
    subprocess.run([*command, "--hair", "bald"], check=True, timeout=50)
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 256, 2 * 384)
        assert sheet.getpixel((400, 700)) == (0, 0, 0)
        assert sheet.crop((0, 384, 256, 768)).getextrema()[0][1] > 50
