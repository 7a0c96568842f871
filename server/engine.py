"""The engine as the server needs it: the interface of pipeline.api, and a state that can be watched."""

from collections.abc import Callable
from typing import Literal, Protocol

from pipeline.api import Engine

__all__ = ["EngineState", "WatchedEngine"]

EngineState = Literal["starting", "ready", "restarting", "failed"]


class WatchedEngine(Engine, Protocol):
    """An engine whose worker may come and go."""

    @property
    def state(self) -> EngineState:
        """Where the worker stands; `failed` is final."""

    num_restarts: int
    """How often the worker was started again."""

    def watch(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Be told of every change of state.

        Args:
            listener: Called on the loop after a change.

        Returns:
            Ends it.
        """
