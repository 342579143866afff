"""The page that tells what happened in a run, and the same for a terminal."""

import base64
import textwrap
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ._data import Run, load_run
from .figures import PLOTS, write_figures
from .narrative import DEFINITION, describe, gather

_WIDTH = 100


def write_report(run_dir: Path) -> Path:
    """Draw `figures/*.png` and write `report.html`, which needs no other file; return its path.

    Works on finished, stopped and running runs with any set of processes. Raises `InputError` if
    `run_dir` is not a run directory.
    """
    run = load_run(run_dir)
    figures = write_figures(run, Path(run_dir) / "figures")
    page = Path(run_dir) / "report.html"
    page.write_text(_render(run, figures), encoding="utf-8")
    return page


def summarise(run_dir: Path) -> str:
    """The report's text for a terminal."""
    run = load_run(run_dir)
    lines = [run.name]
    for heading, sentences in describe(gather(run)).items():
        lines += ["", heading]
        for sentence in sentences:
            lines += textwrap.wrap(sentence, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def _render(run: Run, figures: dict[str, Path]) -> str:
    environment = Environment(
        loader=PackageLoader("centralflow_eqx", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [
        (plot, base64.b64encode(figures[plot.name].read_bytes()).decode())
        for plot in PLOTS
        if plot.name in figures
    ]
    return environment.get_template("page.html.j2").render(
        name=run.name,
        chapters=describe(gather(run)),
        definition=DEFINITION,
        smoothing=f"{run.smoothing:g}",
        figures=shown,
        spec=run.spec,
        attributes=run.attributes,
    )
