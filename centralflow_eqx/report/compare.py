"""Several runs side by side: a page, a table and figures."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, Problem
from ..record.reader import Run, load_run
from . import _html
from ._chart import Drawing, HeatMap
from ._labels import labels, shortened
from ._outcomes import aligned, brief, csv_rows, outcomes, text
from ._overlay import OVERLAYS, Member, members
from ._weights import Apart, distances_apart
from .figures import write_figures

_HEAT_MAP = (
    "weights_apart",
    "Distance between final weights",
    "Euclidean distance between the weights with which the runs ended.",
)


def write_comparison(run_dirs: Sequence[Path], out_dir: Path, title: str) -> Path:
    """Compare runs in `out_dir`: `report.html`, `comparison.csv`, `figures/*.png` and `.pdf`.

    Returns the path of the page, which needs no other file. Any number of runs, finished or not,
    whatever their lengths and processes. Raises `InputError` naming what is no run directory.
    """
    out_dir = Path(out_dir)
    runs, apart = _load(run_dirs), distances_apart(run_dirs)
    table, drawings = outcomes(runs), _drawings(runs, apart)
    about = [*((o.name, o.title, o.caption) for o in OVERLAYS), _HEAT_MAP]
    write_figures(drawings, (name for name, _, _ in about), out_dir / "figures")
    with (out_dir / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(csv_rows(table))
    page = out_dir / "report.html"
    content = _html.render(
        "comparison.html.j2",
        name=title,
        runs=runs,
        table=table,
        text=text,
        apart=apart,
        remarks=list(_remarks(runs, apart)),
        figures=_html.figures(about, drawings),
    )
    page.write_text(content, encoding="utf-8")
    return page


def summarise_comparison(run_dirs: Sequence[Path]) -> str:
    """The most important columns of the comparison for a terminal, one line per run."""
    if not run_dirs:
        return "There is no run to compare."
    table = brief(outcomes(_load(run_dirs)))
    return aligned([[shortened(cell) for cell in row] for row in table])


def _load(run_dirs: Sequence[Path]) -> list[Member]:
    """The runs, with all that is wrong with any of them told at once."""
    runs: list[Run] = []
    problems: list[Problem] = []
    for run_dir in run_dirs:
        try:
            runs.append(load_run(run_dir))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return members(runs, labels([run.spec for run in runs], [run.name for run in runs]))


def _drawings(runs: Sequence[Member], apart: Apart) -> dict[str, Drawing]:
    charts = {overlay.name: overlay.chart(runs) for overlay in OVERLAYS}
    drawings: dict[str, Drawing] = {n: chart for n, chart in charts.items() if chart is not None}
    if len(apart.runs) > 1:
        names = tuple(runs[i].short for i in apart.runs)
        drawings[_HEAT_MAP[0]] = HeatMap(apart.matrix, names, "distance")
    return drawings


def _remarks(runs: Sequence[Member], apart: Apart) -> Iterator[str]:
    """What the distances between weights are of, and which runs they leave out."""

    def named(indices: Sequence[int]) -> str:
        return ", ".join(runs[i].label for i in indices)

    if len(apart.runs) > 1:
        first, last = min(apart.steps), max(apart.steps)
        when = f"step {first}" if first == last else f"steps {first} to {last}"
        yield f"Between the last stored weights of the process {apart.process}, at {when}."
    if apart.without:
        yield (
            f"No weights of the process {apart.process} are stored by: {named(apart.without)}. "
            "record.weights_every in a spec stores them."
        )
    if apart.other_size:
        yield f"Another number of parameters have: {named(apart.other_size)}."
