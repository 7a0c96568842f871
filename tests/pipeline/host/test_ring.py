import os
import resource
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pipeline.errors import WorkerError
from pipeline.host.ring import MAX_RING_BYTES, FrameRing, SlotCredit, make_ring_file, make_temporary_file

pytestmark = pytest.mark.unit

SHAPE = (6, 4)


@pytest.fixture(params=[make_ring_file, make_temporary_file])
def ring_fd(request: pytest.FixtureRequest) -> Iterator[int]:
    """The file that this system has, and the one that every system has."""
    make: Callable[[str], int] = request.param
    ring_fd = make("visavis-test")
    yield ring_fd
    os.close(ring_fd)


def test_frames_written_by_one_side_are_read_by_the_other(ring_fd: int) -> None:
    server = FrameRing(ring_fd, num_slots=5, frame_shape=SHAPE, is_owner=True)
    worker = FrameRing(ring_fd, num_slots=5, frame_shape=SHAPE, is_owner=False)
    for slot in (3, 4, 0):
        worker.write(slot, np.full(SHAPE, 10 + slot, np.uint8))
    frames = server.read((3, 4, 0))
    assert frames.shape == (3, *SHAPE)
    assert frames[:, 0, 0].tolist() == [13, 14, 10]
    worker.write(3, np.zeros(SHAPE, np.uint8))
    assert frames[0, 0, 0] == 13, "what was read is the reader's own"
    worker.close()
    server.close()


def test_a_second_close_does_nothing(ring_fd: int) -> None:
    ring = FrameRing(ring_fd, num_slots=1, frame_shape=SHAPE, is_owner=True)
    ring.close()
    ring.close()


def test_a_ring_over_the_limit_is_refused_before_it_takes_memory(ring_fd: int) -> None:
    with pytest.raises(WorkerError, match=f"ring of 2 frames has 8589934592 bytes, but at most {MAX_RING_BYTES}"):
        FrameRing(ring_fd, num_slots=2, frame_shape=(1 << 16, 1 << 16), is_owner=True)
    assert os.fstat(ring_fd).st_size == 0


def test_a_file_that_cannot_hold_the_ring_is_an_error_with_its_size() -> None:
    with pytest.raises(WorkerError, match="frame ring of 24 bytes: "):
        FrameRing(-1, num_slots=1, frame_shape=SHAPE, is_owner=True)


def test_the_memory_has_no_name_that_could_outlive_it(ring_fd: int) -> None:
    assert os.fstat(ring_fd).st_nlink == 0
    assert not os.get_inheritable(ring_fd)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="a file system may compress zeros to nothing")
def test_all_of_the_memory_is_there_before_it_is_needed() -> None:
    ring_fd = make_ring_file("visavis-test")
    ring = FrameRing(ring_fd, num_slots=3, frame_shape=(1024, 1000), is_owner=True)
    assert os.fstat(ring_fd).st_blocks * 512 >= 3 * 1024 * 1000
    ring.close()
    os.close(ring_fd)


def test_the_file_has_the_size_of_the_ring_and_holds_zeros(ring_fd: int) -> None:
    ring = FrameRing(ring_fd, num_slots=3, frame_shape=(1024, 1000), is_owner=True)
    assert os.fstat(ring_fd).st_size == 3 * 1024 * 1000
    assert not ring.read((0, 2)).any()
    ring.close()


def test_a_disk_that_is_full_is_an_error_and_not_a_crash_when_a_frame_is_written() -> None:
    """The limit on the size of files stands in for a full disk: both end the writing half-way."""
    ring_fd = make_temporary_file("visavis-test")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, hard))
    try:
        with pytest.raises(WorkerError, match="frame ring of 3072000 bytes: .*File too large"):
            FrameRing(ring_fd, num_slots=3, frame_shape=(1024, 1000), is_owner=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.close(ring_fd)


def test_slots_go_round_within_the_part_of_the_stream() -> None:
    credit = SlotCredit(first_slot=10, num_slots=5)
    assert credit.take(4) == (10, 11, 12, 13)
    credit.release(3)
    assert credit.num_free == 4
    assert credit.take(3) == (14, 10, 11)
    assert credit.num_free == 1


def test_taking_or_releasing_more_than_there_is_breaks_an_invariant() -> None:
    credit = SlotCredit(first_slot=0, num_slots=3)
    with pytest.raises(AssertionError):
        credit.take(4)
    credit.take(2)
    with pytest.raises(AssertionError):
        credit.release(3)
