"""How the arithmetic's threads wait for each other, settled before the libraries are loaded."""

from __future__ import annotations

import os

__all__ = ["share_cores"]


def share_cores() -> None:
    """Let waiting threads sleep instead of spin; call it before torch is imported.

    A window is hundreds of short parallel pieces. Threads that spin between them are a little faster on idle cores,
    but ruinous on busy ones: two threads on two cores that a browser used as well took 3 to 16 s per window, sleeping
    ones 0.5 s. A user's own setting wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
