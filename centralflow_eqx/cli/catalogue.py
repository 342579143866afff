"""`list` and `schema`: what a spec can say."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ExitCode, InputError, Location, Problem, did_you_mean, show
from .commands import Commands

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ..registry import Registry


def add(commands: Commands) -> None:
    """Declare the commands."""
    listing = commands.add(
        "list",
        _list,
        "list the optimizers, models, data sets, losses and processes a spec can name",
        "  centralflow_eqx list\n"
        "  centralflow_eqx list --verbose adam mlp                 their options\n",
    )
    listing.add_argument("names", metavar="NAME", nargs="*", help="only these")
    listing.add_argument(
        "--verbose", action="store_true", help="with options: what they may be, default, meaning"
    )
    commands.add(
        "schema",
        _schema,
        "print the JSON schema of specs, for completion and checks in an editor",
        "  centralflow_eqx schema > spec.schema.json\n"
        "then begin a spec with\n"
        "  # yaml-language-server: $schema=spec.schema.json\n",
    )


def _schema(args: argparse.Namespace) -> int:
    from ..spec import json_schema

    print(json.dumps(json_schema(), indent=2))
    return ExitCode.DONE


def _list(args: argparse.Namespace) -> int:
    registries = _registries()
    known = list(dict.fromkeys(name for found in registries.values() for name in found.names()))
    unknown = [name for name in args.names if name not in known]
    if unknown:
        here, words = Location("NAME"), "is nothing that a spec can name"
        raise InputError(
            Problem(here, "", f"{name!r} {words}{did_you_mean(name, known)}") for name in unknown
        )
    for section, registry in registries.items():
        names = [name for name in registry.names() if not args.names or name in args.names]
        if names:
            print(f"{section}:")
        for name in names:
            print(f"  {name:<16} {registry.summary(name)}")
            if args.verbose and section != "processes":
                print("".join(f"    {line}\n" for line in _options(registry, name)), end="")
    return ExitCode.DONE


def _registries() -> "dict[str, Registry]":
    """What the sections of a spec name."""
    from ..processes import PROCESSES
    from ..spec.schema import COMPONENTS

    return {**COMPONENTS, "processes": PROCESSES}


def _options(registry: "Registry", name: str) -> Iterator[str]:
    """A line for each option of a component: what it may be, its default, its meaning."""
    from ..options import options_of
    from ..spec.wording import describe

    fields = options_of(registry, name).model_fields
    for key, field in fields.items():
        if key != "type":
            allowed = describe(field.annotation, tuple(field.metadata))
            meaning = f": {' '.join(field.description.split())}" if field.description else ""
            yield f"{key:<14} {allowed}; {_default(field)}{meaning}"


def _default(field: "FieldInfo") -> str:
    from pydantic_core import to_jsonable_python

    if field.is_required():
        return "required"
    if field.exclude_if is not None:  # only the component can make it
        return "its own by default"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    return f"{show(to_jsonable_python(value))} by default"
