"""The command line in a process of its own, as somebody calls it whose shell sets nothing of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
ENVIRONMENT = {name: os.environ[name] for name in _INHERITED if name in os.environ} | {
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "200",
    "TERM": "dumb",
}
"""What it sees of ours: colours, proxies and settings of whoever runs the tests would change what it prints."""


def visavis_command(*arguments: str | Path) -> list[str]:
    """Make the command."""
    return [sys.executable, "-m", "tools.cli", *map(str, arguments)]


def visavis(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command, variables = visavis_command(*arguments), ENVIRONMENT | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=55, cwd=cwd, env=variables, check=False)
