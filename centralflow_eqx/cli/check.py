"""`validate` and `explain`: what is known of a spec before it runs."""

import argparse

from ..errors import ExitCode
from .commands import (
    DEMONSTRATION,
    Commands,
    add_cache,
    add_settings,
    add_spec,
    keep_programs,
    load,
)


def add(commands: Commands) -> None:
    """Declare the commands."""
    validate = commands.add(
        "validate",
        _validate,
        "check a spec, with all members of its sweep, and the files it names, without running it",
        "  centralflow_eqx validate specs/gd_moons.yaml\n"
        "  centralflow_eqx validate specs/gd_moons.yaml --set model.widths=[64,64]\n",
    )
    explain = commands.add(
        "explain",
        _explain,
        "print what is derived for a spec's optimizer (that of a sweep's first member): its state, "
        "gains and stability threshold",
        "  centralflow_eqx explain specs/gd_moons.yaml\n"
        "  centralflow_eqx explain specs/gd_moons.yaml --set 'optimizer={type: adam, lr: 4e-3}'\n",
    )
    add_cache(explain)
    for command in (validate, explain):
        add_spec(command, DEMONSTRATION)
        add_settings(command)


def _validate(args: argparse.Namespace) -> int:
    plan = load(args)
    from ..experiment.build import check, lacking

    facts = check(plan.specs)
    for line in filter(None, dict.fromkeys(map(lacking, plan.specs))):
        print(f"{args.spec}: would not run on this machine: {line}")
    if plan.folder is None:
        print(f"{args.spec}: valid; {facts[0]}; would write to {plan.specs[0].run_dir}")
        return ExitCode.DONE
    for spec, fact in zip(plan.specs, facts, strict=True):
        print(f"{spec.name}: {fact}")
    print(f"{args.spec}: valid; {len(facts)} members; would write to {plan.folder}")
    return ExitCode.DONE


def _explain(args: argparse.Namespace) -> int:
    keep_programs(args)
    plan = load(args)
    from ..experiment.explain import explain
    from ..experiment.progress import Progress

    if plan.folder is not None:
        print(f"{plan.specs[0].name}, the first of {len(plan.specs)} members:\n")
    with Progress() as progress:
        explained = explain(plan.specs[0], progress.working)
    print(explained)
    return ExitCode.DONE
