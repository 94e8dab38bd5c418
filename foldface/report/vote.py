"""The section of a run's report.html on an ensemble."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foldface.report import html
from foldface.task import Task


def agreement(task: Task, found: dict[str, np.ndarray]) -> tuple[list[str], list[list[str]]]:
    """How far members agree, as a header and rows: the share of photos that two answer alike, or of numbers how far
    they are apart on average. found: {name: (n, k) or (n,)}."""
    answers = {str(k + 1): task.decide(one) for k, one in enumerate(found.values())}
    rows = []
    for (number, mine), name in zip(answers.items(), found, strict=True):
        cells = [abs(mine - other).mean() if task.numeric else (mine == other).mean() for other in answers.values()]
        rows.append([f"{number} {name.removesuffix('.csv')}", *(f"{cell:.3f}" for cell in cells)])
    return ["", *answers], rows


def show(
    task: Task, run: Path | str, output: Path | str, found: dict[str, np.ndarray], lines: Sequence[str], spread: str
) -> None:
    """Put the ensemble into the report of a run, if it has one; the page is written into the folder `output`."""
    report = Path(run) / "report.html"
    if not report.with_suffix(".json").is_file():
        if report.is_file():
            print(f"{report}: is of an earlier version and gets no section on the ensemble (python -m tools.report)")
        return
    alike = (
        "How far two members are apart on average:"
        if task.numeric
        else "Share of photos that two members answer alike:"
    )
    pieces = [
        *map(html.text, lines),
        html.text(alike),
        html.table(*agreement(task, found)),
        html.columns(spread),
    ]
    html.add_section(report, "Ensemble", pieces, Path(output) / "report.html")
