"""The command line."""

import argparse
import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import ExitCode, InputError, Location, Problem, exit_code

if TYPE_CHECKING:
    from rich.console import Console

    from .spec import Plan
    from .sweep import Backend

_EXAMPLES = """\
examples:
  centralflow_eqx list                                  what a spec can name
  centralflow_eqx validate specs/gd_moons.yaml          check a spec and its files
  centralflow_eqx explain specs/gd_moons.yaml           what is derived for its optimizer
  centralflow_eqx run specs/gd_moons.yaml               run it, into runs/<name>/
  centralflow_eqx run specs/gd_moons.yaml --set optimizer.lr=0.2 --set name=small_lr
  centralflow_eqx sweep specs/gd_moons.yaml --set 'sweep.grid.optimizer.lr=[0.2, 0.4]'
  centralflow_eqx resume runs/gd_moons                  go on with a run that was interrupted
  centralflow_eqx report runs/gd_moons runs/small_lr    compare runs
  centralflow_eqx schema > spec.schema.json             completion in an editor

A spec can name classes of yours: their modules are imported and run as Python code. Give
--no-user-code with a spec you do not trust.

exit codes: 0 done (also by a goal of `stop`), 1 a bug, 2 bad input, 3 numerical stop, 4 interrupted
(Ctrl-C, a cluster's time limit, a full disk, too little memory): `resume` goes on
"""
_RESUME_TEXT = """\
Go on with a run that was interrupted or killed, from the newest checkpoint in its directory, or
from its first step where there is none. Its rows are those of a run that was not interrupted. A
finished run can be extended: --steps N.

A run leaves a checkpoint about every five minutes and at its end, also when it ends by Ctrl-C or by
SIGTERM, which clusters send before their time limit; `checkpoint: {every: 1000}` in a spec has one
every so many steps.
"""
_SET_HELP = """override a key of the spec; VALUE is YAML; may be given several times. In a spec with
a sweep, KEY is what its members have in common, sweep.grid.optimizer.lr=[0.1,0.2] varies one more
key, sweep=... replaces the sweep and sweep=null drops it"""
_CACHE_HELP = """compile everything anew, and keep nothing of it: by default compiled programs are
kept in the user's cache folder (CENTRALFLOW_CACHE names another one, or is "off")"""
_USER_CODE_HELP = "refuse a spec that names classes of its own, instead of running their code"
_SWEEP_TEXT = """\
Run every member of a spec with a section `sweep`, each in a process of its own, into
<output.dir>/<name>/<member>, and compare them in <output.dir>/<name>/report.html.

  sweep:
    grid: {optimizer.lr: [0.1, 0.2], seed: [0, 1]}    # every combination is a member
    list:                                             # or one by one; with a grid, times it
      - {name: gd, optimizer: {type: gd, lr: 0.1}}
      - {name: rmsprop, optimizer: {type: rmsprop, lr: 1e-3, beta2: 0.99}, steps: 50}

Members that are done already are not run again: after an interruption or a failure the same command
runs the others, from their last checkpoint. (`run` on such a spec runs all of them anew, in one
process.)
"""
_SWEEP_EXAMPLES = """\
  centralflow_eqx sweep spec.yaml --dry-run             which members are done
  centralflow_eqx sweep spec.yaml --workers 2
  centralflow_eqx sweep spec.yaml --slurm --slurm-set timeout_min=240 \\
      --slurm-set slurm_partition=gpu --slurm-set gpus_per_node=1

--slurm needs pip install 'centralflow_eqx[slurm]'. submitit keeps what its jobs return as pickles
in the sweep's folder, which run code when they are read: do not use it with somebody else's folder.

exit codes: 0 all members are done, else the worst of theirs: 1, 2, 3, 4 in this order; 4 for Ctrl-C
"""


_CACHE_WARNING = "Error reading persistent compilation cache entry"


def _keep_programs(args: argparse.Namespace) -> None:
    from .cache import keep_programs

    if args.cache:
        keep_programs()


def _console() -> "Console":
    from .experiment.progress import Listened

    return Listened()


def _load(args: argparse.Namespace) -> "Plan":
    from .spec import load_plan

    return load_plan(args.spec, args.set, args.user_code)


def _run(args: argparse.Namespace) -> int:
    _keep_programs(args)
    plan = _load(args)
    if args.end_with_stdin:
        from .sweep import end_with_stdin

        end_with_stdin()
    if plan.folder is None:
        from .experiment.run import run_spec

        return int(run_spec(plan.specs[0], _console(), anew=args.anew, resume=args.resume))
    from .experiment.build import check
    from .sweep import conduct, in_this_process

    check(plan.specs)
    console = _console()
    go_on = "`sweep` with the same spec and settings runs the others"
    return conduct(plan, plan.specs, in_this_process(console), console, go_on)


def _resume(args: argparse.Namespace) -> int:
    _keep_programs(args)
    from .experiment.run import resume_run

    if args.end_with_stdin:
        from .sweep import end_with_stdin

        end_with_stdin()
    steps = [] if args.steps is None else [f"steps={args.steps}"]
    return resume_run(
        args.run_dir,
        _console(),
        settings=args.set + steps,
        changed=args.changed,
        user_code=args.user_code,
    )


def _sweep(args: argparse.Namespace) -> int:
    plan = _load(args)
    if plan.folder is None:
        message = "missing; `run` runs a spec without it"
        raise InputError([Problem(Location(args.spec, 1), "sweep", message)])
    from .experiment.build import check
    from .experiment.earlier import is_done
    from .sweep import conduct

    missing = [spec for spec in plan.specs if not is_done(spec)]
    if args.dry_run:
        for spec in plan.specs:
            print(f"{'to run' if spec in missing else 'done':<8}{spec.name}")
        print(f"{len(missing)} of {len(plan.specs)} to run, into {plan.folder}")
        return ExitCode.DONE
    backend, go_on = _backend(args, plan.folder)
    import jax

    # A time limit ends the members as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # This process only checks and reports; a GPU's memory is for those that run the members.
    jax.config.update("jax_platforms", "cpu")
    check(missing)
    return conduct(plan, missing, backend, _console(), go_on)


def _backend(args: argparse.Namespace, folder: Path) -> "tuple[Backend, str]":
    """What runs the members, and how to go on after an interruption."""
    from .sweep import in_workers, on_cluster, parse_settings

    if args.cluster is None:
        if args.slurm_set:
            raise InputError([Problem(Location("--slurm-set"), "", "needs --slurm")])
        workers = args.workers or 1
        return in_workers(workers, args.user_code), "The same command runs the others"
    settings = parse_settings(args.slurm_set)
    if args.workers:
        settings = {"slurm_array_parallelism": args.workers} | settings
    go_on = "Jobs go on by themselves (`scancel` ends them); the same command waits for them again"
    return on_cluster(args.cluster, settings, folder, args.user_code), go_on


def _report(args: argparse.Namespace) -> int:
    from .report import summarise, summarise_comparison, write_comparison, write_report
    from .sweep import find_runs, is_run, is_sweep

    run_dirs = find_runs(args.run_dirs)
    try:
        if len(args.run_dirs) == 1 and is_run(args.run_dirs[0]):
            page, text = write_report(run_dirs[0]), summarise(run_dirs[0])
        else:
            parents = {run_dir.absolute().parent for run_dir in run_dirs}
            sweep = next(iter(parents)) if len(parents) == 1 else None
            sweep = sweep if sweep and is_sweep(sweep) else None
            folder = args.output or sweep or Path("comparison")
            title = args.title or (sweep.name if sweep else folder.absolute().name)
            page, text = write_comparison(run_dirs, folder, title), summarise_comparison(run_dirs)
    except OSError as error:
        place = Location(str(error.filename or args.output))
        message = f"cannot be written: {error.strerror}"
        raise InputError([Problem(place, "", message)]) from None
    print(text)
    print(f"report: {page}")
    return ExitCode.DONE


def _validate(args: argparse.Namespace) -> int:
    plan = _load(args)
    from .experiment.build import check

    facts = check(plan.specs)
    if plan.folder is None:
        print(f"{args.spec}: valid; {facts[0]}; would write to {plan.specs[0].run_dir}")
        return ExitCode.DONE
    for spec, fact in zip(plan.specs, facts, strict=True):
        print(f"{spec.name}: {fact}")
    print(f"{args.spec}: valid; {len(facts)} members; would write to {plan.folder}")
    return ExitCode.DONE


def _explain(args: argparse.Namespace) -> int:
    _keep_programs(args)
    plan = _load(args)
    from .experiment.explain import explain
    from .experiment.progress import Progress

    if plan.folder is not None:
        print(f"{plan.specs[0].name}, the first of {len(plan.specs)} members:\n")
    with Progress() as progress:
        explained = explain(plan.specs[0], progress.working)
    print(explained)
    return ExitCode.DONE


def _schema(args: argparse.Namespace) -> int:
    from .spec import json_schema

    print(json.dumps(json_schema(), indent=2))
    return ExitCode.DONE


def _list(args: argparse.Namespace) -> int:
    from .data import DATASETS
    from .losses import LOSSES
    from .models import MODELS
    from .optimizers import OPTIMIZERS
    from .processes import PROCESSES

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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="centralflow_eqx",
        description="Run a deep-learning optimizer beside its central flow, from a YAML spec.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"centralflow_eqx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, action: Callable, summary: str, examples: str, description: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=description or summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(action=action)
        return command

    _add_commands_with_spec(add)
    _add_report(add)
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


def _add_commands_with_spec(add: Callable[..., argparse.ArgumentParser]) -> None:
    run = add(
        "run",
        _run,
        "run the experiment of a spec, into <output.dir>/<name>; with a sweep, all its members",
        "  centralflow_eqx run specs/gd_moons.yaml\n"
        "  centralflow_eqx run specs/gd_moons.yaml --set steps=50 --set 'processes=[central]'\n"
        "  centralflow_eqx run specs/gd_moons.yaml --set stop.loss_below=0.01\n",
    )
    run.add_argument(
        "--anew", action="store_true", help="start over, beside an unfinished run of the same spec"
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with an unfinished run of the same spec if there is one: for jobs that are "
        "started again",
    )
    resume = _add_resume(add)
    sweep = add(
        "sweep",
        _sweep,
        "run the members of a spec with a sweep in worker processes or on a cluster; restartable",
        _SWEEP_EXAMPLES,
        _SWEEP_TEXT,
    )
    validate = add(
        "validate",
        _validate,
        "check a spec, with all members of its sweep, and the files it names, without running it",
        "  centralflow_eqx validate specs/gd_moons.yaml\n"
        "  centralflow_eqx validate specs/gd_moons.yaml --set model.widths=[64,64]\n",
    )
    explain = add(
        "explain",
        _explain,
        "print what is derived for a spec's optimizer (that of a sweep's first member): its state, "
        "gains and stability threshold",
        "  centralflow_eqx explain specs/gd_moons.yaml\n"
        "  centralflow_eqx explain specs/gd_moons.yaml --set 'optimizer={type: adam, lr: 4e-3}'\n",
    )
    for command in (run, resume):
        command.add_argument("--end-with-stdin", action="store_true", help=argparse.SUPPRESS)
    for command in (run, resume, explain):
        command.add_argument("--no-cache", dest="cache", action="store_false", help=_CACHE_HELP)
    for command in (run, sweep, validate, explain):
        command.add_argument(
            "spec", metavar="SPEC", help="a YAML spec; it can import and run Python code"
        )
    for command in (run, resume, sweep, validate, explain):
        command.add_argument(
            "--set", metavar="KEY=VALUE", action="append", default=[], help=_SET_HELP
        )
        command.add_argument(
            "--no-user-code", dest="user_code", action="store_false", help=_USER_CODE_HELP
        )
    _add_sweep_options(sweep)


def _add_resume(add: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    resume = add(
        "resume",
        _resume,
        "go on with a run that was interrupted, or extend one that is done",
        "  centralflow_eqx resume runs/gd_moons\n"
        "  centralflow_eqx resume runs/gd_moons --steps 500          more steps than its spec has\n"
        "  centralflow_eqx resume runs/gd_moons --set stop.loss_below=0.01\n",
        _RESUME_TEXT,
    )
    resume.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="a run directory")
    resume.add_argument(
        "--steps", metavar="N", type=_positive, help="the number of steps of the whole run"
    )
    resume.add_argument(
        "--changed",
        action="store_true",
        help="go on although the spec is not that of the rows so far",
    )
    return resume


def _add_sweep_options(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument(
        "--dry-run", action="store_true", help="list the members and which are done; run nothing"
    )
    sweep.add_argument(
        "--workers",
        metavar="N",
        type=_positive,
        help="members run at a time (1 here, on a cluster as many as it lets)",
    )
    sweep.add_argument(
        "--slurm",
        dest="cluster",
        action="store_const",
        const="slurm",
        help="submit an array of SLURM jobs with submitit, and wait for them",
    )
    sweep.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="as --slurm; local: submitit's processes here, to try it without SLURM",
    )
    sweep.add_argument(
        "--slurm-set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a parameter of submitit: timeout_min (60), mem_gb, cpus_per_task, gpus_per_node, or "
        "slurm_ and an option of sbatch; may be given several times",
    )


def _add_report(add: Callable[..., argparse.ArgumentParser]) -> None:
    report = add(
        "report",
        _report,
        "write the report of a run anew, or one that compares several runs",
        "  centralflow_eqx report runs/gd_moons                     its report.html, anew\n"
        "  centralflow_eqx report runs/gd_moons runs/small_lr       compare two, in comparison/\n"
        "  centralflow_eqx report runs/my_sweep                     compare a sweep's members\n",
    )
    report.add_argument(
        "run_dirs",
        metavar="RUN_DIR",
        nargs="+",
        type=Path,
        help="a run directory, or a folder of run directories",
    )
    report.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder of the comparison (the sweep's, if all runs are of one; else ./comparison)",
    )
    report.add_argument("--title", metavar="T", help="title of the comparison")


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that Python adds."""

    told: set[str] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = str(message)
        kind = _CACHE_WARNING if text.startswith(_CACHE_WARNING) else text
        if kind not in told:  # a damaged cache has hundreds of entries
            print(f"warning: {text}", file=sys.stderr)
        told.add(kind)

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
            code = exit_code(lambda: int(args.action(args)))
        sys.stdout.flush()
        if code and "jax" in sys.modules:  # else there are no others
            from .hosts import leave

            leave(code)
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
