"""The command line."""

import argparse
import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator

from . import __version__
from .errors import ExitCode, InputError

_EXAMPLES = """\
examples:
  centralflow_eqx list                                  what a spec can name
  centralflow_eqx validate specs/gd_moons.yaml          check a spec and its files
  centralflow_eqx explain specs/gd_moons.yaml           what is derived for its optimizer
  centralflow_eqx run specs/gd_moons.yaml               run it, into runs/<name>/
  centralflow_eqx run specs/gd_moons.yaml --set optimizer.lr=0.2 --set name=small_lr
  centralflow_eqx schema > spec.schema.json             completion in an editor

A spec can name classes of yours: their modules are imported and run as Python code. Give
--no-user-code with a spec you do not trust.

exit codes: 0 done, 1 a bug, 2 bad input, 3 numerical stop, 4 interrupted
"""
_SET_HELP = "override a key of the spec; VALUE is YAML; may be given several times"
_USER_CODE_HELP = "refuse a spec that names classes of its own, instead of running their code"


def _run(args: argparse.Namespace) -> int:
    from .spec import load_spec

    spec = load_spec(args.spec, args.set, args.user_code)
    from rich.console import Console

    from .run import run_spec

    return int(run_spec(spec, Console()))


def _validate(args: argparse.Namespace) -> int:
    from .spec import load_spec

    spec = load_spec(args.spec, args.set, args.user_code)
    from .task import build_task

    task = build_task(spec)
    spec.optimizer.build()
    print(
        f"{args.spec}: valid; {spec.steps} steps of {spec.optimizer.type}, "
        f"{task.num_parameters} weights, {len(task.train_labels)} examples, "
        f"{', '.join(spec.processes)}; would write to {spec.run_dir}"
    )
    return ExitCode.DONE


def _explain(args: argparse.Namespace) -> int:
    from .spec import load_spec

    spec = load_spec(args.spec, args.set, args.user_code)
    from .explain import explain

    print(explain(spec))
    return ExitCode.DONE


def _schema(args: argparse.Namespace) -> int:
    from .spec import json_schema

    print(json.dumps(json_schema(), indent=2))
    return ExitCode.DONE


def _list(args: argparse.Namespace) -> int:
    from .data import DATASETS
    from .flows import PROCESSES
    from .losses import LOSSES
    from .models import MODELS
    from .optimizers import OPTIMIZERS

    for section, registry in (
        ("optimizer", OPTIMIZERS),
        ("model", MODELS),
        ("data", DATASETS),
        ("loss", LOSSES),
        ("processes", PROCESSES),
    ):
        print(f"{section}:")
        for name in registry.names():
            print(f"  {name:<16} {registry.summary(name)}")
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="centralflow_eqx",
        description="Run a deep-learning optimizer beside its central flow, from a YAML spec.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"centralflow_eqx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, action: Callable, summary: str, examples: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(action=action)
        return command

    def add_with_spec(name: str, action: Callable, summary: str, examples: str) -> None:
        command = add(name, action, summary, examples)
        command.add_argument(
            "spec", metavar="SPEC", help="a YAML spec; it can import and run Python code"
        )
        command.add_argument(
            "--set", metavar="KEY=VALUE", action="append", default=[], help=_SET_HELP
        )
        command.add_argument(
            "--no-user-code", dest="user_code", action="store_false", help=_USER_CODE_HELP
        )

    add_with_spec(
        "run",
        _run,
        "run the experiment of a spec, into <output.dir>/<name>",
        "  centralflow_eqx run specs/gd_moons.yaml\n"
        "  centralflow_eqx run specs/gd_moons.yaml --set steps=50 --set 'processes=[central]'\n",
    )
    add_with_spec(
        "validate",
        _validate,
        "check a spec and the files it names, without running it",
        "  centralflow_eqx validate specs/gd_moons.yaml\n"
        "  centralflow_eqx validate specs/gd_moons.yaml --set model.widths=[64,64]\n",
    )
    add_with_spec(
        "explain",
        _explain,
        "print what is derived for a spec's optimizer: its state, gains and stability threshold",
        "  centralflow_eqx explain specs/gd_moons.yaml\n"
        "  centralflow_eqx explain specs/gd_moons.yaml --set 'optimizer={type: adam, lr: 4e-3}'\n",
    )
    add(
        "schema",
        _schema,
        "print the JSON schema of specs, for completion and checks in an editor",
        "  centralflow_eqx schema > spec.schema.json\n"
        "then begin a spec with\n"
        "  # yaml-language-server: $schema=spec.schema.json\n",
    )
    add(
        "list",
        _list,
        "list the optimizers, models, data sets, losses and processes a spec can name",
        "  centralflow_eqx list\n",
    )
    return parser


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that Python adds."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (see `errors.ExitCode`)."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as exit_:  # argparse has printed its help, or what was wrong
        return int(exit_.code or 0)
    try:
        with _one_line_warnings():
            code = int(args.action(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except InputError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("This is a bug in centralflow_eqx: please report it with the above.", file=sys.stderr)
        return ExitCode.BUG
