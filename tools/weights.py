"""The large model's weights on the command line: what a folder holds, and fetching one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from pipeline.errors import WeightsError
from pipeline.weights.check import check_folder

__all__ = ["check", "fetch", "show"]


def check(folder: Path) -> dict[str, Any]:
    """Compare a folder with what it has to hold, without loading it.

    Args:
        folder: The official folder.

    Returns:
        Its parts and their problems.

    Raises:
        WeightsError: There is nothing to compare.
    """
    report = check_folder(folder)
    parts = [
        {
            "name": part.name,
            "purpose": part.purpose,
            "path": str(part.path),
            "num_bytes": part.num_bytes,
            "num_tensors": len(part.headers),
            "num_parameters": part.num_parameters,
            "dtypes": part.dtypes,
            "problems": [{"path": problem.path, "reason": problem.reason} for problem in part.problems],
            "remarks": part.remarks,
        }
        for part in report.parts
    ]
    return {"folder": str(folder), "is_whole": not report.problems, "parts": parts}


def show(report: dict[str, Any], console: Console) -> None:
    """Print what `check` found.

    Args:
        report: Its result.
        console: Where to.
    """
    table = Table(
        title=escape(f"weights in {report['folder']}"), title_justify="left", box=box.SIMPLE_HEAD, show_footer=True
    )
    num_gb = sum(part["num_bytes"] for part in report["parts"]) / 1e9
    table.add_column("part", "in all")
    table.add_column("type", no_wrap=True)
    for heading, footer in (("GB", f"{num_gb:.3f}"), ("tensors", ""), ("parameters", "")):
        table.add_column(heading, footer, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for part in report["parts"]:
        num_problems = len(part["problems"])
        state = "[green]whole[/]" if not num_problems else f"[red]{num_problems} problem{'s' * (num_problems > 1)}[/]"
        numbers = (f"{part['num_bytes'] / 1e9:.3f}", f"{part['num_tensors']:,}", f"{part['num_parameters']:,}")
        table.add_row(f"{part['name']}\n[dim]{part['purpose']}[/]", "\n".join(part["dtypes"]), *numbers, state)
    console.print(table)
    for part in report["parts"]:
        for problem in part["problems"]:
            console.print(f"{problem['path']}: {problem['reason']}", style="red", markup=False, highlight=False)
        for remark in part["remarks"]:
            console.print(f"{part['path']}: {remark}", style="yellow", markup=False, highlight=False)


def fetch(folder: Path, console: Console, announce: Callable[[str], None]) -> None:
    """Fetch what a folder lacks, and check it.

    Args:
        folder: The official folder; it is made.
        console: Where progress is drawn.
        announce: Tells a line: first the licences, then the state at the end.

    Raises:
        WeightsError: A library is missing, the hub or mirror cannot be reached, there is no room, or what was fetched
            is not what it has to be.
    """
    try:
        from pipeline.weights.pull import REPOSITORIES, Offer, ask, download, missing
    except ImportError as exc:
        rule = "it takes the extra `large` to fetch weights: pip install '.[large]'"
        raise WeightsError(str(folder), f"{rule} ({exc})") from exc

    def describe(offer: Offer) -> str:
        licence = offer.licence or "not stated"
        return f"{offer.repository.repo_id}: {offer.num_bytes / 1e9:.1f} GB, licence: {licence}, {offer.url}"

    def run(offers: Sequence[Offer]) -> None:
        num_lacking = sum(file.num_bytes for offer in offers for file in missing(offer, folder))
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        is_hidden = not console.is_terminal  # a file would get an empty line
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=is_hidden) as progress:
            task = progress.add_task("fetching", total=num_lacking)
            download(offers, folder, lambda num_bytes: progress.advance(task, num_bytes))

    offers = [ask(repository) for repository in REPOSITORIES]
    for offer in offers:
        announce(describe(offer))
    run(offers)
    check_folder(folder).require()
    announce(f"{folder}: the weights are whole")
