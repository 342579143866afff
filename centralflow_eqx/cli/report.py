"""`report`."""

import argparse
from pathlib import Path

from ..errors import ExitCode
from .commands import FOLDERS, Commands, complete, writing


def add(commands: Commands) -> None:
    """Declare the command."""
    report = commands.add(
        "report",
        _report,
        "write the report of a run anew, or one that compares several runs",
        "  centralflow_eqx report runs/gd_moons                     its report.html, anew\n"
        "  centralflow_eqx report runs/gd_moons runs/small_lr       compare two, in comparison/\n"
        "  centralflow_eqx report runs/my_sweep                     compare a sweep's members\n",
    )
    run_dirs = report.add_argument(
        "run_dirs",
        metavar="RUN_DIR",
        nargs="+",
        type=Path,
        help="a run directory, or a folder of run directories",
    )
    complete(run_dirs, FOLDERS)
    report.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder of the comparison (the sweep's, if all runs are of one; else ./comparison)",
    )
    report.add_argument("--title", metavar="T", help="title of the comparison")


def _report(args: argparse.Namespace) -> int:
    from ..report import summarise, summarise_comparison, write_comparison, write_report
    from ..sweep import find_runs, is_run, is_sweep

    run_dirs = find_runs(args.run_dirs)
    with writing(args.output or run_dirs[0]):
        if len(args.run_dirs) == 1 and is_run(args.run_dirs[0]):
            page, text = write_report(run_dirs[0]), summarise(run_dirs[0])
        else:
            parents = {run_dir.absolute().parent for run_dir in run_dirs}
            sweep = next(iter(parents)) if len(parents) == 1 else None
            sweep = sweep if sweep and is_sweep(sweep) else None
            folder = args.output or sweep or Path("comparison")
            title = args.title or (sweep.name if sweep else folder.absolute().name)
            page, text = write_comparison(run_dirs, folder, title), summarise_comparison(run_dirs)
    print(text)
    print(f"report: {page}")
    return ExitCode.DONE
