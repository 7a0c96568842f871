"""The leak checks and the rule about levels, tried on tests that break them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

LEAKS = """
import asyncio, os, subprocess, threading
import pytest

pytestmark = pytest.mark.unit
kept = []

def test_clean():
    thread = threading.Thread(target=lambda: None)
    thread.start()

async def test_clean_task():
    asyncio.create_task(asyncio.sleep(0.01))

def test_thread():
    kept.append(threading.Event())
    threading.Thread(target=kept[-1].wait, daemon=True, name="forgotten").start()

def test_child():
    kept.append(subprocess.Popen(["sleep", "20"]))

def test_ring():
    kept.append(os.memfd_create("visavis-forgotten"))

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(60), name="forgotten-task"))

def test_end():
    kept[1].kill()
    kept[1].wait()
    kept[0].set()
"""


def run_pytest(folder: Path) -> str:
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nmarkers =\n    unit\n    contract\n")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--color=no", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return finished.stdout + finished.stderr


def test_what_a_test_leaves_behind_fails_that_test_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    output = run_pytest(tmp_path)
    errors = {line.split("::")[1].split(" ")[0] for line in output.splitlines() if line.startswith("ERROR ")}
    assert errors == {"test_thread", "test_child", "test_ring", "test_task"}, output
    for left in ("thread forgotten", "child process", "frame ring", "forgotten-task"):
        assert left in output


def test_a_module_without_a_level_stops_the_collection(tmp_path: Path) -> None:
    (tmp_path / "test_levelless.py").write_text("def test_nothing():\n    pass\n")
    output = run_pytest(tmp_path)
    assert "no level (contract, e2e, numerics, unit) is declared by" in output
    assert "test_levelless.py" in output
