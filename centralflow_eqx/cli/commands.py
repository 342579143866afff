"""What commands are declared with, and the arguments that several of them share."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, Location, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from ..spec import Plan

DEMONSTRATION = Path(__file__).parents[1] / "demo" / "edge_of_stability.yaml"
"""What `run`, `validate` and `explain` take where no spec is given."""

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
_SET_HELP = """override a key of the spec; VALUE is YAML; may be given several times. In a spec with
a sweep, KEY is what its members have in common, sweep.grid.optimizer.lr=[0.1,0.2] varies one more
key, sweep=... replaces the sweep and sweep=null drops it"""
_CACHE_HELP = """compile everything anew, and keep nothing of it: by default compiled programs are
kept in the user's cache folder (CENTRALFLOW_CACHE names another one, or is "off")"""
_USER_CODE_HELP = "refuse a spec that names classes of its own, instead of running their code"


class Commands:
    """The commands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser):
        self._parser = parser
        self._parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def names(self) -> tuple[str, ...]:
        """Every command that was added, in this order."""
        return tuple(self._parsers.choices)

    def add(
        self,
        name: str,
        action: Callable[[argparse.Namespace], int],
        summary: str,
        examples: str,
        description: str = "",
    ) -> argparse.ArgumentParser:
        """A command that calls `action` with its arguments; returns the parser of these.

        The arguments have the parsers, too: `command`, and `parser` of all commands.
        """
        command = self._parsers.add_parser(
            name,
            help=summary,
            description=description or summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(action=action, command=command, parser=self._parser)
        return command


def complete(argument: argparse.Action, how: dict[str, str]) -> None:
    """Have shells complete an argument, in the words of shtab."""
    argument.complete = how  # pyright: ignore[reportAttributeAccessIssue]


def add_spec(command: argparse.ArgumentParser, default: Path | None = None) -> None:
    """The argument SPEC, which may be left out where there is a default."""
    words = "a YAML spec; it can import and run Python code"
    if default is None:
        spec = command.add_argument("spec", metavar="SPEC", help=words)
    else:
        words += "; without it a demonstration that comes with the package"
        spec = command.add_argument("spec", metavar="SPEC", nargs="?", default=default, help=words)
    complete(spec, FILES)


def add_run_dir(command: argparse.ArgumentParser, words: str = "a run directory") -> None:
    """The argument RUN_DIR."""
    run_dir = command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=words)
    complete(run_dir, FOLDERS)


def add_settings(command: argparse.ArgumentParser) -> None:
    """The options that say how a spec is read."""
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=_SET_HELP)
    command.add_argument(
        "--no-user-code", dest="user_code", action="store_false", help=_USER_CODE_HELP
    )


def add_cache(command: argparse.ArgumentParser) -> None:
    """The option that has nothing kept of what is compiled."""
    command.add_argument("--no-cache", dest="cache", action="store_false", help=_CACHE_HELP)


def positive(text: str) -> int:
    """A whole number >= 1, as an argument's type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    """A whole number >= 0, as an argument's type."""
    return 0 if text == "0" else positive(text)


def load(args: argparse.Namespace) -> "Plan":
    """What the spec that was given asks for."""
    from ..spec import load_plan

    if args.spec == DEMONSTRATION:
        print(f"no SPEC was given; a demonstration, to be copied: {DEMONSTRATION}")
    return load_plan(args.spec, args.set, args.user_code)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An `InputError` in place of the `OSError` of a file that cannot be written."""
    try:
        yield
    except FileExistsError:
        message = "exists already, and is left as it is; give another name, or remove it"
        raise InputError([Problem(Location(str(path)), "", message)]) from None
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        place = Location(str(error.filename or path))
        raise InputError([Problem(place, "", message)]) from None


def keep_programs(args: argparse.Namespace) -> None:
    """Keep what is compiled from here on, if that is wanted."""
    from .. import cache

    if args.cache:
        cache.keep_programs()


def console() -> "Console":
    """Where a run says how far it is."""
    from ..experiment.progress import Listened

    return Listened()
