"""From a spec file and command-line overrides to a checked, resolved `Spec`."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InputError, Problem
from .document import KeyPath, Node, override, read
from .schema import Eigen, Flow, Spec, problem_at, spec_model
from .wording import problem

_TOLERANCE = {"float64": 1e-6, "float32": 1e-4}


def load_spec(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Spec:
    """Read and check the spec at `path`, with `key.subkey=value` overrides applied.

    Raises `InputError` with every problem found, in the order of the file's lines.
    """
    path = Path(path)
    document, problems = read(path)
    document, refused = override(document, overrides)
    problems += refused + list(_cross_checks(document))
    model = spec_model()
    # JSON mode is pydantic's strict mode for data that has lists but no tuples, as YAML does.
    try:
        text = json.dumps(document.plain())
        spec = model.model_validate_json(text, context={"folder": path.absolute().parent})
    except ValidationError as error:
        problems += [problem(details, model, document) for details in error.errors()]
    if problems:
        raise InputError(_distinct(problems))
    return _resolve(spec, document)


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
