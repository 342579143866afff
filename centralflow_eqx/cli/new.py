"""`new`: files to begin with."""

import argparse
import importlib.util
import json
import keyword
import re
import sys
from pathlib import Path

from ..errors import ExitCode, InputError, Location, Problem
from .commands import Commands, writing

SCHEMA = "spec.schema.json"
"""The schema that a new spec names, beside it."""
_SECTIONS = {
    "data": "{type: moons, n: 100}",
    "model": "{type: mlp, widths: [16, 16], activation: gelu}",
    "loss": "{type: mse}",
    "optimizer": "{type: gd, lr: 0.7}",
}
_OPTIONS = {"data": "n: 40", "model": "width: 16", "loss": "width: 1.0", "optimizer": "lr: 1.5"}
"""What a spec says of a new class."""
_KINDS = ("spec", *_SECTIONS)
_MOST_LETTERS = 100
_TEXT = f"""\
Write files to begin with into the working directory: NAME.yaml, a spec that can be run as it is;
for a class also NAME.py with a working one, which the spec names, and test_NAME.py with its tests.
{SCHEMA}, for completion in an editor, comes beside them. Nothing is overwritten.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    new = commands.add(
        "new",
        _new,
        "write a spec, or an optimizer, a model, a data set or a loss of your own, to begin with",
        "  centralflow_eqx new spec my_run\n"
        "  centralflow_eqx new optimizer my_rule         the class MyRule in my_rule.py\n",
        _TEXT,
    )
    new.add_argument("kind", metavar="KIND", choices=_KINDS, help=f"one of {', '.join(_KINDS)}")
    new.add_argument("name", metavar="NAME", help="a name as modules have, such as my_rule")


def _new(args: argparse.Namespace) -> int:
    kind, name = args.kind, args.name
    problems = [*_wrong_with(kind, name)] or [
        Problem(Location(file), "", "exists already, and is left as it is; give another name")
        for file in _files(kind, name)
        if Path(file).exists()
    ]
    if problems:
        raise InputError(problems)
    written = {file: _render(template, kind, name) for file, template in _files(kind, name).items()}
    if not Path(SCHEMA).exists():
        from ..spec import json_schema

        written[SCHEMA] = json.dumps(json_schema(), indent=2) + "\n"
    for file, text in written.items():
        with writing(Path(file)), open(file, "x", encoding="utf-8") as new:
            new.write(text)
        print(f"wrote {file}")
    print(_next_steps(kind, name))
    return ExitCode.DONE


def _files(kind: str, name: str) -> dict[str, str]:
    """The files that are written, and their templates."""
    spec = {f"{name}.yaml": "spec.yaml.j2"}
    if kind == "spec":
        return spec
    return {f"{name}.py": f"{kind}.py.j2", f"test_{name}.py": f"{kind}_test.py.j2"} | spec


def _wrong_with(kind: str, name: str) -> list[Problem]:
    """Why a spec or a module cannot have this name."""
    here = Location("NAME")
    if kind == "spec":
        from ..spec.schema import NAME_PATTERN

        if re.fullmatch(NAME_PATTERN, name) and len(name) <= _MOST_LETTERS:
            return []
        return [Problem(here, "", f"must be a plain file name, got {name!r}")]
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        words = "must be a name that Python takes, letters, digits and _, such as my_rule"
        return [Problem(here, "", f"{words}, got {name!r}")]
    if not _class_name(name).isidentifier() or keyword.iskeyword(_class_name(name)):
        return [Problem(here, "", f"must have a letter first, got {name!r}")]
    if len(name) > _MOST_LETTERS:
        return [Problem(here, "", f"must have {_MOST_LETTERS} or fewer letters")]
    if not Path(f"{name}.py").exists() and _is_taken(name):
        return [Problem(here, "", f"{name!r} is a module already, which yours would hide")]
    return []


def _is_taken(name: str) -> bool:
    """Whether Python has a module of this name."""
    return name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None


def _class_name(module: str) -> str:
    """`MyRule` for `my_rule`, and what has capitals as it is."""
    parts = [part for part in module.split("_") if part]
    return "".join(part[0].upper() + part[1:] for part in parts)


def _render(template: str, kind: str, name: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("centralflow_eqx.cli"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    sections = dict(_SECTIONS)
    if kind in sections:
        sections[kind] = f"{{type: {name}.{_class_name(name)}, args: {{{_OPTIONS[kind]}}}}}"
    words = sections | {"module": name, "name": _class_name(name)}
    return environment.get_template(template).render(words)


def _next_steps(kind: str, name: str) -> str:
    command = "python -m centralflow_eqx"
    steps = [f"{command} validate {name}.yaml", f"{command} run {name}.yaml"]
    if kind == "optimizer":
        steps.insert(1, f"{command} explain {name}.yaml")
    if kind != "spec":
        steps.insert(0, f"python -m pytest test_{name}.py")
    return "\n".join(["next:", *(f"  {step}" for step in steps)])
