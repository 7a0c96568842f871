"""How the arithmetic's threads wait for each other, settled before the libraries are loaded."""

from __future__ import annotations

import os

__all__ = ["share_cores"]


SPIN_COUNT = 3000


def share_cores() -> None:
    """Let waiting threads spin for a moment only, then sleep; call it before torch is imported.

    A window is hundreds of short parallel pieces. Threads that spin between them for as long as it takes are ruinous
    on busy cores: two threads on two cores that a browser used as well took 3 to 16 s per window. Threads that sleep
    at once wake up late on idle cores (415 ms instead of 235). This much spinning gives 240 ms on idle cores, and
    540 ms beside two busy loops. A user's own setting wins.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
