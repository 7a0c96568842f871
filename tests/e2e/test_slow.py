"""The page with an engine that misses the pace and makes wide pictures: what it says, and how it shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Visitor

    Visit = Callable[..., Visitor]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

WIDTH_PX, HEIGHT_PX = 704, 384
COMPUTE_MS = 1500


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    """Three windows' time for each window, of the large engine's size."""
    values = {"compute_ms": COMPUTE_MS, "width_px": WIDTH_PX, "height_px": HEIGHT_PX}
    return tuple(part for key, value in values.items() for part in ("--set", f"engine.pattern.{key}={value}"))


def shape_of(visitor: Visitor, selector: str) -> tuple[float, float]:
    """Width over height of an element, and where it ends."""
    box = visitor.page.locator(selector).bounding_box()
    assert box is not None
    return box["width"] / box["height"], box["y"] + box["height"]


def test_a_missed_pace_is_said_before_and_during_a_conversation(visit: Visit) -> None:
    """In words in the header and on the stage, in figures in the ledger, and without going back and forth."""
    visitor = visit()
    visitor.page.wait_for_selector("#status-title:text-is('Ready, but slower than live')")
    assert f"takes {COMPUTE_MS:,} ms" in visitor.page.inner_text("#verdict")
    assert "cannot keep up" in visitor.page.inner_text("#hint")
    visitor.start()
    visitor.wait_for_message(lambda message: message["type"] == "stats" and message["windows"] >= 2, limit_s=15)
    titles = set()
    for _ in range(40):
        titles.add(visitor.page.inner_text("#status-title"))
        visitor.page.wait_for_timeout(100)
    assert titles == {"Slower than live"}
    assert "leaves some out" in visitor.page.inner_text("#hint")
    assert "steps and windows are left out" in visitor.page.inner_text("#verdict")
    assert int(visitor.page.inner_text("[data-figure=pace]")) > 480
    assert visitor.page.locator("#ledger[data-slow]").count() == 1
    visitor.shoot("slow")


@pytest.mark.parametrize("size", [(360, 740), (900, 1100), (1440, 900)], ids=str)
def test_a_wide_picture_is_shown_whole(visit: Visit, size: tuple[int, int]) -> None:
    """Portrait and video keep the shape of the engine's frame, the button stands below them, and nothing overflows."""
    width_px, height_px = size
    visitor = visit(viewport={"width": width_px, "height": height_px})
    visitor.page.wait_for_selector("body.is-wide")
    visitor.page.wait_for_function("document.querySelector('#still').naturalWidth > 0")
    for selector in ("#still", "#video"):
        shape, bottom = shape_of(visitor, selector)
        assert shape == pytest.approx(WIDTH_PX / HEIGHT_PX, rel=0.02), selector
    button = visitor.page.locator("#main").bounding_box()
    assert button is not None
    assert bottom <= button["y"]
    assert button["y"] + button["height"] <= height_px
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width_px
    visitor.shoot(f"wide-{width_px}")
