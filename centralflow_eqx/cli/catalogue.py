"""`list` and `schema`: what a spec can say."""

import argparse
import json

from ..errors import ExitCode
from .commands import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    commands.add(
        "schema",
        _schema,
        "print the JSON schema of specs, for completion and checks in an editor",
        "  centralflow_eqx schema > spec.schema.json\n"
        "then begin a spec with\n"
        "  # yaml-language-server: $schema=spec.schema.json\n",
    )
    commands.add(
        "list",
        _list,
        "list the optimizers, models, data sets, losses and processes a spec can name",
        "  centralflow_eqx list\n",
    )


def _schema(args: argparse.Namespace) -> int:
    from ..spec import json_schema

    print(json.dumps(json_schema(), indent=2))
    return ExitCode.DONE


def _list(args: argparse.Namespace) -> int:
    from ..data import DATASETS
    from ..losses import LOSSES
    from ..models import MODELS
    from ..optimizers import OPTIMIZERS
    from ..processes import PROCESSES

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
