"""The page's modules without a browser: runs the JavaScript tests beside this file; what the page may load."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
WEB = ROOT / "client" / "web"
TESTS = sorted((Path(__file__).parent / "web").glob("*.test.mjs"))
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed; the page itself does not need it")
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name.removesuffix(".test.mjs"))
def test_the_modules_pass_their_own_tests(path: Path) -> None:
    """Every test file in tests/client/web passes under node's test runner."""
    assert NODE is not None
    result = subprocess.run(
        [NODE, "--test", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_page_loads_nothing_from_elsewhere() -> None:
    """No file of the page names another host, except the name of the SVG namespace."""
    for path in WEB.iterdir():
        hosts = set(re.findall(r"(?:https?|wss?)://([\w-]+(?:\.[\w-]+)*)", path.read_text()))
        assert hosts <= {"www.w3.org", "localhost"}, f"{path.name} names {hosts}"


def test_every_import_of_a_module_exists() -> None:
    """Each relative import, and each file that index.html loads, is there."""
    for path in WEB.glob("*.js"):
        for name in re.findall(r'from "\./([\w-]+\.js)"', path.read_text()):
            assert (WEB / name).is_file(), f"{path.name} imports {name}"
    for name in re.findall(r'(?:src|href)="([\w.-]+\.(?:js|css|svg))"', (WEB / "index.html").read_text()):
        assert (WEB / name).is_file(), f"index.html loads {name}"


def test_the_page_needs_no_inline_script_or_style() -> None:
    """So that a strict content security policy can stay: everything is a file of its own."""
    page = (WEB / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)


def test_every_element_that_the_modules_look_up_exists() -> None:
    """Each id in byId("...") and find("#...") is in index.html, exactly once."""
    page = (WEB / "index.html").read_text()
    wanted = set()
    for path in WEB.glob("*.js"):
        wanted |= set(re.findall(r'(?:byId|setText|setToggle)\("([\w-]+)"', path.read_text()))
        wanted |= set(re.findall(r'find\("#([\w-]+)"\)', path.read_text()))
    assert len(wanted) > 30
    for name in sorted(wanted):
        assert page.count(f'id="{name}"') == 1, name


def test_every_module_stays_short() -> None:
    """A module of the page has fewer than 300 lines, a style sheet fewer than 500."""
    for path in WEB.glob("*.*"):
        limit = 500 if path.suffix == ".css" else 300
        assert len(path.read_text().splitlines()) < limit, path.name


def luminance(color: str) -> float:
    """Relative luminance of a #rrggbb colour, as WCAG 2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["dark", "light"])
def test_text_has_enough_contrast(theme: int) -> None:
    """Text reaches WCAG AA (4.5) on every ground it stands on; marks of the chart reach 3 on theirs."""
    blocks = re.findall(r":root \{([^}]*)\}", (WEB / "base.css").read_text())
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[theme]))
    for ground in ("bg", "surface"):
        for ink in ("text", "muted", "accent"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, f"{ink} on {ground}"
    assert contrast(colors["text"], colors["raised"]) >= 4.5
    assert contrast(colors["accent-ink"], colors["accent"]) >= 4.5
    for ink in ("alert", "good"):
        assert contrast(colors[ink], colors["bg"]) >= 3, ink
    for stage in ("features", "steps-0", "steps-1", "copy"):
        assert contrast(colors[f"stage-{stage}"], colors["surface"]) >= 3, stage
