"""From a spec file and command-line overrides to a checked, resolved `Spec`."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InputError, OptionError, Problem, show
from ..registry import Registry
from .document import KeyPath, Node, override, read
from .options import Options, options_of
from .schema import Eigen, Flow, Spec, problem_at, registries, spec_model
from .user_class import class_options
from .wording import problem

_TOLERANCE = {"float64": 1e-6, "float32": 1e-4}


def load_spec(
    path: str | os.PathLike, overrides: Sequence[str] = (), user_code: bool = True
) -> Spec:
    """Read and check the spec at `path`, with `key.subkey=value` overrides applied.

    A component whose `type` is the dotted name of a class is imported, which runs the code of its
    module; with `user_code=False` that is refused, and nothing but this package is imported.

    Raises `InputError` with every problem found, in the order of the file's lines.
    """
    path = Path(path)
    document, problems = read(path)
    document, refused = override(document, overrides)
    problems += refused + list(_cross_checks(document))
    folder = path.absolute().parent
    special, refused = _special_models(document, folder, user_code)
    problems += refused
    model = spec_model(special)
    # JSON mode is pydantic's strict mode for data that has lists but no tuples, as YAML does.
    try:
        text = json.dumps(document.plain())
        spec = model.model_validate_json(text, context={"folder": folder})
    except ValidationError as error:
        problems += [problem(details, model, document) for details in error.errors()]
    if problems:
        raise InputError(_distinct(problems))
    return _resolve(spec, document)


def _special_models(
    document: Node, folder: Path, user_code: bool
) -> tuple[dict[str, type[Options]], list[Problem]]:
    """By section, the option model that the section's own content asks for."""
    models, problems = {}, []
    for section, registry in registries().items():
        node, found = document.find((section,))
        given = node.plain() if found else None
        if not isinstance(given, dict) or not isinstance(given.get("type"), str):
            continue
        try:
            model = _special_model(registry, given, folder, user_code)
        except OptionError as error:
            problems.append(problem_at(document, (section, error.option), error.message))
        else:
            models |= {section: model} if model else {}
    return models, problems


def _special_model(
    registry: Registry, given: dict[str, Any], folder: Path, user_code: bool
) -> type[Options] | None:
    name = given["type"]
    if name in registry.names():
        return options_of(registry, name).specialised(given)
    if "." not in name or registry.base is None:
        return None
    if not user_code:
        message = f"{show(name)} would import code, which --no-user-code refuses"
        raise OptionError("type", f"{message}; must be one of {', '.join(registry.names())}")
    return class_options(registry, given, folder)


def _distinct(problems: list[Problem]) -> list[Problem]:
    """One problem per key: each member of a union has its own, and so has a list of bad items."""
    first: dict[Any, Problem] = {}
    for found in problems:
        first.setdefault((found.location, found.path), found)
    lists = {found.path.rpartition("[")[0] for found in problems if found.path.endswith("]")}
    return [found for found in first.values() if found.path not in lists]


def _cross_checks(document: Node) -> Iterator[Problem]:
    """Problems between keys that are each valid; looked for even if others are not."""
    processes = document.find(("processes",))[0].plain()
    if isinstance(processes, list):
        for i, process in enumerate(processes):
            if process in processes[:i]:
                yield problem_at(document, ("processes", i), "listed twice; keep one of them")
    track, given = _number(document, ("eigen", "track_above"), Eigen)
    critical, _ = _number(document, ("flow", "critical_above"), Flow)
    if track is not None and critical is not None and track > critical:
        if given:
            path = ("eigen", "track_above")
            message = f"must be <= flow.critical_above = {critical:g}, got {track:g}"
        else:
            path = ("flow", "critical_above")
            message = f"must be >= eigen.track_above = {track:g}, got {critical:g}"
        yield problem_at(document, path, message)


def _number(document: Node, path: KeyPath, section: Any) -> tuple[float | None, bool]:
    """The number at `path` or its default, and whether it was given; None if it is no number."""
    node, found = document.find(path)
    value = node.value if found else section.model_fields[path[-1]].default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    in_range = is_number and abs(value) < 1e300  # a long integer is no float
    return (float(value) if in_range else None), found


def _resolve(spec: Spec, document: Node) -> Spec:
    """`spec` with defaults that depend on other keys, and absolute paths."""
    tol = spec.eigen.tol or _TOLERANCE[spec.precision]
    folder = os.path.abspath(os.path.expanduser(spec.output.dir))
    resolved = spec.model_copy(
        update={
            "eigen": spec.eigen.model_copy(update={"tol": tol}),
            "output": spec.output.model_copy(update={"dir": folder}),
        }
    )
    resolved._document = document
    return resolved
