"""What took long to make and may be wanted again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Kept"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """The values that were used last.

    Args:
        num_values: How many.
    """

    def __init__(self, num_values: int) -> None:
        self._num_values = num_values
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getitem__(self, key: Key) -> Value:
        self._values.move_to_end(key)
        return self._values[key]

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Give the value of a key, made if it is not there; the one that was used longest ago makes room before.

        Args:
            key: The key.
            make: Makes its value.

        Returns:
            The value.
        """
        if key not in self._values:
            while len(self._values) >= self._num_values:
                self._values.popitem(last=False)
            self._values[key] = make()
        return self[key]

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
