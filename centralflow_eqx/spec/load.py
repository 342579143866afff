"""From a spec file and command-line overrides to a checked, resolved `Spec`."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from ..engine.settings import Settings
from ..errors import InputError, Location, OptionError, Problem, did_you_mean, show
from ..options import Options, Section, options_of
from ..registry import Registry
from ..task import REACHED
from .document import KeyPath, Node, override, read
from .schema import COMPONENTS, Eigen, Flow, Spec, problem_at, spec_model
from .sweep import expand, repetitions
from .user_class import FunctionOptions, class_options, function_options
from .wording import problem


class Plan(NamedTuple):
    """What a spec file asks to be run: one run, or the members of its sweep.

    `folder` is where the run directories of a sweep go; None without a sweep.
    """

    specs: tuple[Spec, ...]
    folder: Path | None

    @property
    def name(self) -> str:
        """The name in the file."""
        return self.specs[0].name if self.folder is None else self.folder.name


def load_spec(
    path: str | os.PathLike, overrides: Sequence[str] = (), user_code: bool = True
) -> Spec:
    """Read and check the spec at `path`, with `key.subkey=value` overrides applied.

    A component whose `type` is the dotted name of a class is imported, which runs the code of its
    module; with `user_code=False` that is refused, and nothing but this package is imported.

    Raises `InputError` with every problem found, in the order of the file's lines. A spec with a
    `sweep` is refused: `load_plan` has its members.
    """
    plan = load_plan(path, overrides, user_code)
    if plan.folder is not None:
        message = "describes several runs where one is expected; override it with sweep=null"
        raise InputError([Problem(Location(str(path)), "sweep", message)])
    return plan.specs[0]


def load_plan(
    path: str | os.PathLike, overrides: Sequence[str] = (), user_code: bool = True
) -> Plan:
    """Like `load_spec`, for a spec that may have a `sweep`: all of its members, checked.

    Overrides apply to what the members have in common, and to `sweep` itself.
    """
    path = Path(path)
    document, problems = read(path)
    document, refused = override(document, overrides)
    sweep = document.value.pop("sweep", None)
    documents, found = [document], []
    if sweep is not None and sweep.value is not None:
        documents, found = expand(document, sweep)
    shared = problems + refused
    problems = _distinct(shared + found)
    folder, specs = path.absolute().parent, []
    for member in documents:
        spec, found = _check(member, folder, user_code)
        specs.append(spec)
        # What a member is wrong about may be known of the file already, or of another member.
        problems = list(dict.fromkeys(problems + _distinct(shared + found)))
    if problems:
        raise InputError(problems)
    if sweep is None or sweep.value is None:
        return Plan(tuple(specs), None)
    repeated = list(repetitions(specs))
    if repeated:
        raise InputError(repeated)
    goal = Path(specs[0].output.dir) / document.value["name"].value
    return Plan(tuple(_moved(spec, goal) for spec in specs), goal)


def _check(document: Node, folder: Path, user_code: bool) -> tuple[Spec | None, list[Problem]]:
    """The resolved spec of a document with one run, or every problem found in it."""
    problems = list(_cross_checks(document))
    chosen, refused = _chosen_models(document, folder, user_code)
    problems += refused
    model = spec_model(chosen)
    # JSON mode is pydantic's strict mode for data that has lists but no tuples, as YAML does.
    try:
        text = json.dumps(document.plain())
        spec = model.model_validate_json(text, context={"folder": folder})
    except ValidationError as error:
        problems += [problem(details, model, document) for details in error.errors()]
        return None, problems
    return _resolve(spec, document), problems


def _chosen_models(
    document: Node, folder: Path, user_code: bool
) -> tuple[dict[str, type[Section]], list[Problem]]:
    """By section, the option model that the section's `type` asks for."""
    models: dict[str, type[Section]] = {}
    problems = []
    for section, registry in COMPONENTS.items():
        node, found = document.find((section,))
        given = node.plain() if found else None
        if not isinstance(given, dict) or not isinstance(given.get("type"), str):
            continue
        try:
            model = _chosen_model(registry, given, folder, user_code)
        except OptionError as error:
            problems.append(problem_at(document, (section, error.option), error.message))
        else:
            models |= {section: model} if model else {}
    try:
        models |= _chosen_task(document, folder, user_code)
    except OptionError as error:
        models["task"] = FunctionOptions
        problems.append(problem_at(document, ("task", error.option), error.message))
    return models, problems


def _chosen_task(document: Node, folder: Path, user_code: bool) -> dict[str, type[Section]]:
    """The option model of a `task`, if there is one; raises `OptionError`."""
    node, found = document.find(("task",))
    if not found or node.value is None:
        return {}
    given = node.plain()
    if not isinstance(given, dict) or not isinstance(given.get("function"), str):
        return {"task": FunctionOptions}
    if not user_code:
        message = f"{show(given['function'])} would import code, which --no-user-code refuses"
        raise OptionError("function", message)
    return {"task": function_options(given, folder)}


def _chosen_model(
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
        seen: set[str] = set()
        for i, process in enumerate(map(json.dumps, processes)):
            if process in seen:
                yield problem_at(document, ("processes", i), "listed twice; keep one of them")
            seen.add(process)
    process, given = document.find(("stop", "process"))
    if given and isinstance(process.value, str) and isinstance(processes, list):
        names = [name for name in processes if isinstance(name, str)]
        if process.value not in names:
            near = did_you_mean(process.value, names)
            message = f"must be one of the processes {', '.join(names)}, got {show(process.value)}"
            yield problem_at(document, ("stop", "process"), message + near)
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
    flow = spec.flow
    tol = Settings(
        method=flow.method, step_tol=flow.tol, state_rate=flow.state_rate, tol=spec.eigen.tol
    ).residual
    if spec.eigen.tol is None:
        tol = max(tol, REACHED[spec.forward.precision])
    folder = os.path.abspath(os.path.expanduser(spec.output.dir))
    resolved = spec.model_copy(
        update={
            "eigen": spec.eigen.model_copy(update={"tol": tol}),
            "output": spec.output.model_copy(update={"dir": folder}),
        }
    )
    resolved._document = document
    return resolved


def _moved(spec: Spec, folder: Path) -> Spec:
    """`spec` with its run directory in `folder`."""
    return spec.model_copy(update={"output": spec.output.model_copy(update={"dir": str(folder)})})
