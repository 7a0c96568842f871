"""House rules that a machine can check, over the files that git tracks."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
MAX_LINES, MAX_MODEL_LINES, MAX_TEST_LINES = 500, 800, 800
# Tests of what is not one Python module: contracts, pages, the rules themselves.
TESTS_WITHOUT_A_SOURCE = {
    "tests/test_conftest.py",
    "tests/test_house.py",
    "tests/pipeline/host/test_engine_restart.py",
    "tests/pipeline/models/test_golden.py",
    "tests/pipeline/worker/test_large_gpu.py",
}
FOLDERS_WITHOUT_A_SOURCE = ("tests/client/", "tests/e2e/")
# Folders of one machine, or of one person.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|Users|home/\w+)/")


def tracked(*patterns: str) -> list[str]:
    """Files that git knows and that are there, relative to the root."""
    # Reading a checkout of somebody else's is no danger.
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z", "--", *patterns]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


if not (ROOT / ".git").exists() or shutil.which("git") is None:
    pytest.skip("the house rules are about files in a git checkout, and git tells which", allow_module_level=True)

SOURCES = [name for name in tracked("server/*.py", "pipeline/*.py", "tools/*.py") if not name.endswith("__init__.py")]
MODULES = [name for name in SOURCES if not name.endswith("__main__.py")]


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) or ""


def anchor(heading: str) -> str:
    """The anchor that a heading gets on the usual forges."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(name: str) -> list[str]:
    """Relative links of a Markdown file that lead nowhere."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists():
            broken.append(link)
        elif fragment and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.M)
            if fragment not in map(anchor, headings):
                broken.append(link)
    return broken


@pytest.mark.parametrize("name", tracked("*.md"))
def test_links_in_markdown_lead_somewhere(name: str) -> None:
    assert broken_links(name) == []


def test_files_stay_short() -> None:
    limits = {"tests/": MAX_TEST_LINES, "pipeline/models/": MAX_MODEL_LINES}
    too_long = {}
    for name in tracked("*.py", "client/*.js"):
        limit = next((limit for start, limit in limits.items() if name.startswith(start)), MAX_LINES)
        num_lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        if num_lines > limit:
            too_long[name] = num_lines
    assert too_long == {}


def test_package_files_are_empty() -> None:
    assert [name for name in tracked("*__init__.py") if (ROOT / name).read_bytes().strip()] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_and_what_it_offers(name: str) -> None:
    """It has a docstring, and a sorted `__all__` of names that exist."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    ]
    assert len(lists) == 1, "__all__ is missing"
    offered = ast.literal_eval(lists[0])
    # CONSTANTS, then Classes, then functions; whether case counts within a kind is left open.
    orders = [
        sorted(offered, key=lambda word, fold=fold: (not word.isupper(), not word[0].isupper(), fold(word)))
        for fold in (str, str.casefold)
    ]
    assert offered in orders
    defined = {
        node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert set(offered) <= defined


def test_every_test_has_its_module() -> None:
    orphans = []
    for name in tracked("tests/*.py"):
        path = Path(name)
        if not path.name.startswith("test_") or name in TESTS_WITHOUT_A_SOURCE:
            continue
        source = Path(*path.parts[1:-1]) / path.name.removeprefix("test_")
        if not name.startswith(FOLDERS_WITHOUT_A_SOURCE) and not (ROOT / source).is_file():
            orphans.append(name)
    assert orphans == []


def test_modules_that_call_themselves_pure_have_their_own_test() -> None:
    pure = [name for name in MODULES if re.search(r"\bpure\b", docstring(name), flags=re.I)]
    assert "server/pacing.py" in pure
    untested = [name for name in pure if not (ROOT / "tests" / Path(name).parent / f"test_{Path(name).name}").is_file()]
    assert untested == []


def test_an_installed_copy_has_every_file_that_the_code_reads() -> None:
    """What lies beside the modules and is neither Python nor written for readers of the source is package data."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = {
        str(path.relative_to(ROOT))
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    data = [name for name in tracked("server", "pipeline", "client/web", "tools") if not name.endswith((".py", ".md"))]
    assert "client/web/index.html" in data
    assert [name for name in data if name not in packaged] == []


def test_the_constraints_pin_every_dependency_to_a_version_in_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = map(Requirement, sum(extras.values(), project["dependencies"]))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    assert [str(need) for need in needed if not need.specifier.contains(versions[canonicalize_name(need.name)])] == []
    assert not any("+" in version for version in versions.values()), "a local version binds everybody to one build"


def test_no_tracked_file_knows_a_machine() -> None:
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if name == "tests/test_house.py" or b"\0" in data:
            continue
        found += [f"{name}: {match}" for match in MACHINE_PATHS.findall(data.decode("utf-8", "replace"))]
    assert found == []
