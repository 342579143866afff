"""`completion`: what a shell completes."""

import argparse

from ..errors import ExitCode, InputError, Location, Problem
from .commands import Commands

_SHELLS = "bash", "zsh", "tcsh"
_TEXT = """\
Print a script with which a shell completes commands, options and files of `centralflow_eqx`. Needs
pip install 'centralflow_eqx[completion]', once: the script itself needs nothing.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    completion = commands.add(
        "completion",
        _completion,
        "print a script for completion in a shell",
        "  centralflow_eqx completion bash > ~/.local/share/bash-completion/completions/"
        "centralflow_eqx\n"
        "  centralflow_eqx completion zsh > ~/.zfunc/_centralflow_eqx     fpath has ~/.zfunc\n",
        _TEXT,
    )
    completion.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))


def _completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        message = "needs shtab: pip install 'centralflow_eqx[completion]'"
        raise InputError([Problem(Location("completion"), "", message)]) from None
    print(shtab.complete(args.parser, shell=args.shell))
    return ExitCode.DONE
