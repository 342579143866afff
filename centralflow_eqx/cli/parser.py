"""The parser of all commands."""

import argparse
import re
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import did_you_mean
from . import catalogue, check, completion, measure, new, report, run, runs, sweep
from .commands import Commands

_EXAMPLES = """\
examples:
  centralflow_eqx run                                   a demonstration, without a spec
  centralflow_eqx new optimizer my_rule                 files to begin with
  centralflow_eqx list                                  what a spec can name
  centralflow_eqx validate specs/gd_moons.yaml          check a spec and its files
  centralflow_eqx explain specs/gd_moons.yaml           what is derived for its optimizer
  centralflow_eqx run specs/gd_moons.yaml               run it, into runs/<name>/
  centralflow_eqx run specs/gd_moons.yaml --set optimizer.lr=0.2 --set name=small_lr
  centralflow_eqx sweep specs/gd_moons.yaml --set 'sweep.grid.optimizer.lr=[0.2, 0.4]'
  centralflow_eqx resume runs/gd_moons                  go on with a run that was interrupted
  centralflow_eqx runs                                  what runs there are
  centralflow_eqx show runs/gd_moons                    what happened in one
  centralflow_eqx export runs/gd_moons                  its series as CSV
  centralflow_eqx report runs/gd_moons runs/small_lr    compare runs
  centralflow_eqx measure w.npz specs/gd_moons.yaml     where the edge is at stored weights
  centralflow_eqx schema > spec.schema.json             completion in an editor

A spec can name classes of yours: their modules are imported and run as Python code. Give
--no-user-code with a spec you do not trust.

exit codes: 0 done (also by a goal of `stop`), 1 a bug, 2 bad input, 3 numerical stop, 4 interrupted
(Ctrl-C, a cluster's time limit, a full disk, too little memory): `resume` goes on
"""
_GROUPS = run, sweep, check, measure, runs, report, new, catalogue, completion


def make_parser() -> tuple[argparse.ArgumentParser, tuple[str, ...]]:
    """The parser, and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="centralflow_eqx",
        description="Run a deep-learning optimizer beside its central flow, from a YAML spec.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"centralflow_eqx {__version__}")
    commands = Commands(parser)
    for group in _GROUPS:
        group.add(commands)
    return parser, commands.names()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command, whose function is `action`.

    What is no command and no option is told with the nearest that is. Raises `SystemExit` where
    argparse does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser, names = make_parser()
    # Before the command there are only options without a value.
    given = next((word for word in words if not word.startswith("-")), names[0])
    if given not in names:
        allowed = f"must be one of {', '.join(names)}{did_you_mean(given, names)}"
        parser.error(f"unknown command {given!r}, {allowed}")
    args, unknown = parser.parse_known_args(words)
    if unknown:
        args.command.error("; ".join(_refusal(word, args.command) for word in unknown))
    return args


def _refusal(word: str, command: argparse.ArgumentParser) -> str:
    """What is wrong with a word that the command does not take."""
    if not word.startswith("-"):
        return f"{word!r} is one argument too many"
    options = re.findall(r"--[\w-]+", command.format_usage())
    return f"unknown option {word!r}{did_you_mean(word.partition('=')[0], options)}"
