"""`runs`, `show` and `export`: what is in run directories."""

import argparse
import os
import sys
import time
from pathlib import Path

from ..errors import ExitCode, InputError, Location, Problem
from .commands import FOLDERS, Commands, add_run_dir, complete, writing

_EXPORT_TEXT = """\
Write the recorded series of a run as CSV, one value a line, for pandas and spreadsheets.

  step      optimizer step after the warm start
  process   whose series it is; for distances the pair of processes
  series    train_loss, eigenvalues, ... as in data.h5
  index     empty for a number; in a vector the direction from 0, the weight or the output
  value     in full precision; what was not recorded has no line

  pandas.read_csv("runs/gd_moons/series.csv").query("series == 'train_loss'").pivot(
      index="step", columns="process", values="value")

metrics.jsonl has the same wide, a row a line:

  pandas.read_json("runs/gd_moons/metrics.jsonl", lines=True, precise_float=True)
"""


def add(commands: Commands) -> None:
    """Declare the commands."""
    runs = commands.add(
        "runs",
        _runs,
        "list run directories: state, steps, loss, error of the prediction, age; the newest first",
        "  centralflow_eqx runs\n  centralflow_eqx runs runs/my_sweep elsewhere\n",
    )
    folders = runs.add_argument(
        "folders",
        metavar="DIR",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        help="folders of run directories, or run directories (runs)",
    )
    complete(folders, FOLDERS)
    show = commands.add(
        "show",
        _show,
        "print what happened in a run and open its report in the browser",
        "  centralflow_eqx show runs/gd_moons\n",
    )
    add_run_dir(show, "a run directory, or a sweep's folder")
    show.add_argument("--no-open", dest="open", action="store_false", help="print only")
    export = commands.add(
        "export",
        _export,
        "write the recorded series of a run as CSV",
        "  centralflow_eqx export runs/gd_moons                    into its series.csv\n"
        "  centralflow_eqx export runs/gd_moons --output a.csv\n",
        _EXPORT_TEXT,
    )
    add_run_dir(export)
    export.add_argument(
        "--output", metavar="F.csv", type=Path, help="the file (RUN_DIR/series.csv); must be new"
    )


def _runs(args: argparse.Namespace) -> int:
    from ..report import overview, tabulate
    from ..sweep import all_runs

    seen, problems = [], []
    for folder in args.folders:
        try:
            seen += [(str(path), overview(path)) for path in all_runs(folder)]
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            message = f"{what}; `run` makes runs/NAME, or give the folder of your runs"
            problems.append(Problem(Location(str(folder)), "", message))
    if problems:
        raise InputError(problems)
    print(tabulate(seen, time.time()) if seen else "no run directories")
    return ExitCode.DONE


def _show(args: argparse.Namespace) -> int:
    from ..report import summarise, summarise_comparison, write_report
    from ..sweep import find_runs, is_sweep

    page = args.run_dir / "report.html"
    if is_sweep(args.run_dir):
        print(summarise_comparison(find_runs([args.run_dir])))
    else:
        print(summarise(args.run_dir))
        if not page.exists():
            with writing(page):
                write_report(args.run_dir)
    print(f"report: {page}")
    if args.open and page.exists() and _has_display():
        import webbrowser

        webbrowser.open(page.absolute().as_uri())
    return ExitCode.DONE


def _has_display() -> bool:
    """Whether a browser would have a window: one in the terminal is no help."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _export(args: argparse.Namespace) -> int:
    from ..record.reader import load_run
    from ..record.table import write_csv

    run = load_run(args.run_dir)
    path = args.output or args.run_dir / "series.csv"
    with writing(path), path.open("x", encoding="utf-8", newline="") as file:
        number = write_csv(run, file)
    print(f"wrote {number} values to {path}")
    return ExitCode.DONE
