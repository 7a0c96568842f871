"""What holds for every test: a module declares its level, and a test leaves nothing behind.

Levels are the markers unit, contract, numerics and e2e. A module says `pytestmark = pytest.mark.unit`; a module without
a level fails at collection. After each test no task, thread, child process or frame ring may be there that was not
there before it. Fixtures of a wider scope are set up before a test begins, so what they hold is not counted.
"""

import asyncio
import gc
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

LEVELS = {"unit", "contract", "numerics", "e2e"}
SETTLE_S = 3.0
"""How long what a test has let go of may take to be gone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse modules without a level, and watch the tasks of asynchronous tests."""
    unmarked = {item.path for item in items if not LEVELS & {marker.name for marker in item.iter_markers()}}
    if unmarked:
        files = ", ".join(sorted(str(path) for path in unmarked))
        raise pytest.UsageError(f"no level ({', '.join(sorted(LEVELS))}) is declared by: {files}")
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.fixturenames.insert(0, "leaves_no_tasks")


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which threads, child processes or frame rings remain."""
    before = _held()
    yield
    deadline_s = time.monotonic() + SETTLE_S
    while (left := _held() - before) and time.monotonic() < deadline_s:
        gc.collect()
        time.sleep(0.02)
    assert not left, f"{request.node.nodeid} left behind: {', '.join(sorted(left))}"


@pytest.fixture
async def leaves_no_tasks() -> AsyncIterator[None]:
    """Fail an asynchronous test that leaves tasks running in its loop."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=SETTLE_S)
    assert all(task.done() for task in left), f"tasks left behind: {[task for task in left if not task.done()]}"


def _held() -> set[str]:
    """Name every thread, child process and frame ring of this process."""
    threads = {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}
    return threads | _children() | _frame_rings()


def _children() -> set[str]:
    lists = Path("/proc/self/task").glob("*/children")  # Linux only; elsewhere there is nothing to list.
    return {f"child process {pid}" for path in lists for pid in _read(path).split()}


def _frame_rings() -> set[str]:
    links = {path: _target(path) for path in Path("/proc/self/fd").glob("*")}
    mapped = {line.split()[-1] for line in _read(Path("/proc/self/maps")).splitlines() if "memfd:visavis" in line}
    opened = {f"frame ring {path}: {target}" for path, target in links.items() if "memfd:visavis" in target}
    return opened | {f"mapped frame ring {name}" for name in mapped}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
