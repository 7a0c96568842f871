"""One small renderer for all tests of rendered pictures."""

from collections.abc import Iterator

import pytest

from tools.train.head.renderer import Renderer


@pytest.fixture(scope="session")
def renderer() -> Iterator[Renderer]:
    """Draws 128x192; skips where no EGL driver is installed."""
    try:
        made = Renderer(size=(128, 192), supersampling=1)
    except Exception as exc:  # noqa: BLE001 - moderngl raises no narrower type without a driver.
        pytest.skip(f"no EGL driver for the head generator: {exc}")
    yield made
    made.close()
