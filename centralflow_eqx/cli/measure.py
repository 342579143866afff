"""`measure`: where the edge of stability of stored weights is."""

import argparse
import json
from pathlib import Path

from ..errors import ExitCode, InputError, Location, Problem
from .commands import (
    FILES,
    Commands,
    add_cache,
    add_settings,
    add_spec,
    complete,
    keep_programs,
    load,
    natural,
)

_TEXT = """\
Measure weights as those of a spec's model, loss and optimizer: effective sharpness and threshold,
what oscillates by the theory, the averaged loss, what is to be doubted.

WEIGHTS is an npz file, or a safetensors file (pip install 'centralflow_eqx[safetensors]'), with
  all weights in one array, named by --key or the only one: parameter after parameter in the order
  of the model's leaves, each flattened row by row, as `init` of a spec has them; or
  an array for every parameter, by name, such as layers.0.weight; what is wrong is told with all
  names of the model.

The optimizer begins as in a run, with a state that knows no gradient: of rules with averages give
--steps, which takes so many steps from the weights first.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    measure = commands.add(
        "measure",
        _measure,
        "measure the edge of stability at stored weights of a spec's model",
        "  centralflow_eqx measure w.npz specs/gd_moons.yaml\n"
        "  centralflow_eqx measure w.safetensors specs/digits_adam.yaml --steps 100 --json\n",
        _TEXT,
    )
    weights = measure.add_argument(
        "weights", metavar="WEIGHTS", type=Path, help="an npz or safetensors file"
    )
    complete(weights, FILES)
    add_spec(measure)
    measure.add_argument("--key", metavar="NAME", help="the array with all weights")
    measure.add_argument(
        "--steps", metavar="N", type=natural, default=0, help="optimizer steps from there first (0)"
    )
    measure.add_argument(
        "--at",
        choices=("midpoint", "weights"),
        default="midpoint",
        help="between the next iterates, where an oscillation cancels, or at the weights as they "
        "are (midpoint)",
    )
    measure.add_argument("--json", action="store_true", help="print JSON")
    add_settings(measure)
    add_cache(measure)


def _measure(args: argparse.Namespace) -> int:
    keep_programs(args)
    plan = load(args)
    if plan.folder is not None:
        message = "has a sweep, of which nobody knows whose weights these are; --set sweep=null"
        raise InputError([Problem(Location(str(args.spec)), "sweep", message)])
    from ..monitor.stored import measure_stored

    found = measure_stored(args.weights, plan.specs[0], key=args.key, steps=args.steps, at=args.at)
    print(json.dumps(found.as_dict(), indent=2) if args.json else found)
    return ExitCode.DONE
