"""The frame ring: shared memory in which the worker leaves frames for the server.

The memory is a file without a name, so it cannot leak, and ends with the last process that holds it: one in memory only
where the system has such files (Linux), else a temporary file. The server makes the (empty) file, the worker inherits
it; when the frame size is known the server fills it to its size.

The ring is cut into one part per stream place. In its part a stream writes round and round; it may hold at most
`frame_slots` unreleased slots, counted by `SlotCredit` in the worker. Only the worker writes, only the server reads,
and a slot belongs to exactly one of them at any time, so there is no lock.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import WorkerError

__all__ = ["MAX_RING_BYTES", "FrameRing", "SlotCredit", "make_ring_file", "make_temporary_file"]

_FILL_BYTES = 1 << 20

MAX_RING_BYTES = 1 << 32
"""The ring is real memory from the start, so a slip of the pen in the configuration must not take all there is."""


def make_ring_file(name: str) -> int:
    """Make the file of a ring, in the best way that the system knows.

    Args:
        name: What a process listing shows where the system has such names.

    Returns:
        Its file descriptor, not inheritable; the caller closes it.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    return make_temporary_file(name)


def make_temporary_file(name: str) -> int:
    """Make the file of a ring in the folder for temporary files, as every system can.

    Args:
        name: What the folder shows until the file loses its name, which is at once.

    Returns:
        Its file descriptor, not inheritable; the caller closes it.
    """
    with tempfile.TemporaryFile(prefix=f"{name}-") as file:
        return os.dup(file.fileno())


class FrameRing:
    """One process's view of the ring.

    Args:
        ring_fd: The file; it stays the caller's.
        num_slots: Slots of all streams together.
        frame_shape: Shape of a frame: (height_px * 3 // 2, width_px).
        is_owner: Whether this process gives the file its size.

    Raises:
        WorkerError: The ring is over its limit, or there is not enough memory for it.
    """

    def __init__(self, ring_fd: int, *, num_slots: int, frame_shape: tuple[int, int], is_owner: bool) -> None:
        ring_bytes = num_slots * frame_shape[0] * frame_shape[1]
        if ring_bytes > MAX_RING_BYTES:
            raise WorkerError(
                f"frame ring of {num_slots} frames has {ring_bytes} bytes, but at most {MAX_RING_BYTES} are allowed; "
                "lower max_streams or frame_slots"
            )
        try:
            if is_owner:
                _fill(ring_fd, ring_bytes)
            self._map = mmap.mmap(ring_fd, ring_bytes)
        except OSError as exc:
            raise WorkerError(f"frame ring of {ring_bytes} bytes: {exc}") from exc
        self._frames: NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8).reshape(num_slots, *frame_shape)

    def write(self, slot: int, frame: NDArray[np.uint8]) -> None:
        """Put a frame into a slot (worker).

        Args:
            slot: Index of the slot; it has to be free.
            frame: I420, of the ring's frame shape.
        """
        assert self._frames is not None, "the ring is closed"
        self._frames[slot] = frame

    def read(self, slots: tuple[int, ...]) -> NDArray[np.uint8]:
        """Copy frames out (server).

        Args:
            slots: Indices of the slots, in order.

        Returns:
            The frames, (len(slots), height_px * 3 // 2, width_px), the caller's own.
        """
        assert self._frames is not None, "the ring is closed"
        return self._frames[list(slots)]

    def close(self) -> None:
        """Unmap the memory; a second call does nothing."""
        self._frames = None
        self._map.close()


def _fill(ring_fd: int, ring_bytes: int) -> None:
    """Write zeros, so that all of the memory is there before it is needed: a file that only has a size may lack it."""
    zeros = memoryview(bytes(min(_FILL_BYTES, ring_bytes)))
    num_filled = 0
    while num_filled < ring_bytes:
        num_filled += os.pwrite(ring_fd, zeros[: ring_bytes - num_filled], num_filled)


class SlotCredit:
    """Which slots of its part a stream may write next. Pure.

    Args:
        first_slot: First slot of the stream's part.
        num_slots: Slots of the part.
    """

    def __init__(self, *, first_slot: int, num_slots: int) -> None:
        self._first_slot = first_slot
        self._num_slots = num_slots
        self._num_taken = 0
        self._num_released = 0

    @property
    def num_free(self) -> int:
        """Slots that can be taken now."""
        return self._num_slots - (self._num_taken - self._num_released)

    def take(self, num_slots: int) -> tuple[int, ...]:
        """Take slots to write to.

        Args:
            num_slots: How many; at most `num_free`.

        Returns:
            Their indices.
        """
        assert num_slots <= self.num_free, (num_slots, self.num_free)
        taken = range(self._num_taken, self._num_taken + num_slots)
        self._num_taken += num_slots
        return tuple(self._first_slot + index % self._num_slots for index in taken)

    def release(self, num_slots: int) -> None:
        """Take back the oldest slots.

        Args:
            num_slots: How many.
        """
        self._num_released += num_slots
        assert self._num_released <= self._num_taken, (self._num_released, self._num_taken)
