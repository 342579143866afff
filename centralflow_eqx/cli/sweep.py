"""`sweep`."""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ExitCode, InputError, Location, Problem
from .commands import Commands, add_settings, add_spec, console, load, positive

if TYPE_CHECKING:
    from ..sweep import Backend

_TEXT = """\
Run every member of a spec with a section `sweep`, each in a process of its own, into
<output.dir>/<name>/<member>, and compare them in <output.dir>/<name>/report.html.

  sweep:
    grid: {optimizer.lr: [0.1, 0.2], seed: [0, 1]}    # every combination is a member
    list:                                             # or one by one; with a grid, times it
      - {name: gd, optimizer: {type: gd, lr: 0.1}}
      - {name: rmsprop, optimizer: {type: rmsprop, lr: 1e-3, beta2: 0.99}, steps: 50}

Members that are done already, or have stopped numerically, are not run again: after an interruption
or a failure the same command runs the others, from their last checkpoint. (`run` on such a spec
runs all of them anew, in one process.)
"""
_EXAMPLES = """\
  centralflow_eqx sweep spec.yaml --dry-run             which members are done
  centralflow_eqx sweep spec.yaml --workers 2
  centralflow_eqx sweep spec.yaml --slurm --slurm-set timeout_min=240 \\
      --slurm-set slurm_partition=gpu --slurm-set gpus_per_node=1

--slurm needs pip install 'centralflow_eqx[slurm]'. submitit keeps what its jobs return as pickles
in the sweep's folder, which run code when they are read: do not use it with somebody else's folder.

exit codes: 0 all members are done, else the worst of theirs: 1, 2, 3, 4 in this order; 4 for Ctrl-C
"""

_LISTED = {None: "to run", "done": "done", "numerical stop": "stopped"}


def add(commands: Commands) -> None:
    """Declare the command."""
    sweep = commands.add(
        "sweep",
        _sweep,
        "run the members of a spec with a sweep in worker processes or on a cluster; restartable",
        _EXAMPLES,
        _TEXT,
    )
    add_spec(sweep)
    add_settings(sweep)
    sweep.add_argument(
        "--dry-run", action="store_true", help="list the members and which have ended; run nothing"
    )
    sweep.add_argument(
        "--workers",
        metavar="N",
        type=positive,
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


def _sweep(args: argparse.Namespace) -> int:
    plan = load(args)
    if plan.folder is None:
        message = "missing; `run` runs a spec without it"
        raise InputError([Problem(Location(args.spec, 1), "sweep", message)])
    from ..experiment.build import check
    from ..experiment.earlier import ending
    from ..sweep import conduct

    endings = [(spec, ending(spec)) for spec in plan.specs]
    missing = [spec for spec, how in endings if how is None]
    if args.dry_run:
        for spec, how in endings:
            print(f"{_LISTED[how]:<8}{spec.name}")
        print(f"{len(missing)} of {len(plan.specs)} to run, into {plan.folder}")
        return ExitCode.DONE
    backend, go_on = _backend(args, plan.folder)
    import jax

    # A time limit ends the members as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # This process only checks and reports; a GPU's memory is for those that run the members.
    jax.config.update("jax_platforms", "cpu")
    check(missing)
    return conduct(plan, missing, backend, console(), go_on)


def _backend(args: argparse.Namespace, folder: Path) -> "tuple[Backend, str]":
    """What runs the members, and how to go on after an interruption."""
    from ..sweep import in_workers, on_cluster, parse_settings

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
