"""The page that tells what happened in a run, and the same for a terminal."""

import textwrap
from pathlib import Path

from ..record.reader import load_run
from . import _html
from .facts import gather
from .figures import PLOTS, charts, write_figures
from .narrative import DEFINITION, QUANTITIES, describe

_WIDTH = 100


def write_report(run_dir: Path) -> Path:
    """Draw `figures/*.png` and `.pdf`, write `report.html`, which needs no other file; its path.

    Works on finished, stopped and running runs with any set of processes. Raises `InputError` if
    `run_dir` is not a run directory.
    """
    run_dir = Path(run_dir)
    run = load_run(run_dir)
    facts, drawings = gather(run), charts(run)
    write_figures(drawings, (plot.name for plot in PLOTS), run_dir / "figures")
    text = _html.render(
        "page.html.j2",
        name=run.name,
        chapters=describe(facts),
        errors=facts.errors,
        quantities=QUANTITIES,
        definition=DEFINITION,
        smoothing=f"{run.smoothing:g}",
        figures=_html.figures(((p.name, p.title, p.caption) for p in PLOTS), drawings),
        spec=run.spec,
        attributes=run.attributes,
    )
    page = run_dir / "report.html"
    page.write_text(text, encoding="utf-8")
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
