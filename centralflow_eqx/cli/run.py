"""`run` and `resume`."""

import argparse

from .commands import (
    DEMONSTRATION,
    Commands,
    add_cache,
    add_run_dir,
    add_settings,
    add_spec,
    console,
    keep_programs,
    load,
    positive,
)

_RESUME_TEXT = """\
Go on with a run that was interrupted or killed, from the newest checkpoint in its directory, or
from its first step where there is none. Its rows are those of a run that was not interrupted. A
finished run can be extended: --steps N.

A run leaves a checkpoint about every five minutes and at its end, also when it ends by Ctrl-C or by
SIGTERM, which clusters send before their time limit; `checkpoint: {every: 1000}` in a spec has one
every so many steps.
"""


def add(commands: Commands) -> None:
    """Declare the commands."""
    _add_run(commands)
    _add_resume(commands)


def _add_run(commands: Commands) -> None:
    run = commands.add(
        "run",
        _run,
        "run the experiment of a spec, into <output.dir>/<name>; with a sweep, all its members",
        "  centralflow_eqx run                                       a demonstration\n"
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
    _add_end_with_stdin(run)
    add_cache(run)
    add_spec(run, DEMONSTRATION)
    add_settings(run)


def _add_resume(commands: Commands) -> None:
    resume = commands.add(
        "resume",
        _resume,
        "go on with a run that was interrupted, or extend one that is done",
        "  centralflow_eqx resume runs/gd_moons\n"
        "  centralflow_eqx resume runs/gd_moons --steps 500          more steps than its spec has\n"
        "  centralflow_eqx resume runs/gd_moons --set stop.loss_below=0.01\n",
        _RESUME_TEXT,
    )
    add_run_dir(resume)
    resume.add_argument(
        "--steps", metavar="N", type=positive, help="the number of steps of the whole run"
    )
    resume.add_argument(
        "--changed",
        action="store_true",
        help="go on although the spec is not that of the rows so far",
    )
    _add_end_with_stdin(resume)
    add_cache(resume)
    add_settings(resume)


def _add_end_with_stdin(command: argparse.ArgumentParser) -> None:
    """The option with which a sweep's members end when the sweep does."""
    command.add_argument("--end-with-stdin", action="store_true", help=argparse.SUPPRESS)


def _run(args: argparse.Namespace) -> int:
    keep_programs(args)
    plan = load(args)
    _listen(args)
    if plan.folder is None:
        from ..experiment.run import run_spec

        return int(run_spec(plan.specs[0], console(), anew=args.anew, resume=args.resume))
    from ..experiment.build import check
    from ..sweep import conduct, in_this_process

    for spec in plan.specs:
        if spec.distributed != "off":
            message = "several processes share a run, not a sweep: `sweep --slurm` starts a job"
            raise spec.error(
                "distributed", f"{message} for each member, --set distributed=off none"
            )
    check(plan.specs)
    here = console()
    go_on = "`sweep` with the same spec and settings runs the others"
    return conduct(plan, plan.specs, in_this_process(here), here, go_on)


def _resume(args: argparse.Namespace) -> int:
    keep_programs(args)
    from ..experiment.run import resume_run

    _listen(args)
    steps = [] if args.steps is None else [f"steps={args.steps}"]
    return resume_run(
        args.run_dir,
        console(),
        settings=args.set + steps,
        changed=args.changed,
        user_code=args.user_code,
    )


def _listen(args: argparse.Namespace) -> None:
    if args.end_with_stdin:
        from ..sweep import end_with_stdin

        end_with_stdin()
