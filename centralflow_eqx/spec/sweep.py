"""The members of a sweep, each as a document of its own."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ConfigDict, ValidationError

from ..errors import Problem, show
from ..options import Section
from .document import KeyPath, Node, dotted, place
from .schema import NAME_LENGTH, NAME_PATTERN, Name, Spec, Sweep
from .wording import problem

_MOST_MEMBERS = 1000
# Beside the run directories of its members, a sweep's folder has files of its own.
_TAKEN = re.compile(r"figures|submitit|.*\.(html|yaml|json|log|csv)")


class _Setting(NamedTuple):
    """A key that a member gives, with its value, and where the sweep says so."""

    key: str
    node: Node
    path: KeyPath


class _Entry(NamedTuple):
    """What the members of one entry of the list have in common; without a list there is one."""

    name: Node | None
    settings: tuple[_Setting, ...]
    home: Node
    path: KeyPath


class _Heading(Section):
    """What members do not check: the name of the sweep, and the sweep."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    sweep: Sweep


def expand(root: Node, sweep: Node) -> tuple[list[Node], list[Problem]]:
    """The documents of the members of `sweep`, and problems of the sweep itself.

    `root` is what they have in common. Their values are located in the sweep.
    """
    heading = Node({**root.value, "sweep": sweep}, root.at, root.key_at)
    problems = []
    try:
        _Heading.model_validate_json(json.dumps(heading.plain()))
    except ValidationError as error:
        problems = [problem(details, _Heading, heading) for details in error.errors()]
    if any(found.path.startswith("sweep") for found in problems):
        return [], problems
    entries, grid = _entries(sweep), _grid(sweep)
    count = len(entries) * math.prod(len(values) for values in grid)
    if count > _MOST_MEMBERS:
        message = f"has {count} members, must be {_MOST_MEMBERS} or fewer"
        return [], [Problem(sweep.at, "sweep", message)]
    problems += _key_problems(entries, grid)
    repeated = list(_repeated_values(grid))
    members = [
        (entry, combination) for entry in entries for combination in itertools.product(*grid)
    ]
    labels = _short(
        {setting.key for entry, _ in members for setting in entry.settings}
        | {values[0].key for values in grid}
    )
    documents, names = [], set()
    for entry, combination in members:
        name, found = _name(entry, combination, labels)
        if not found and not repeated and _is_name(name.value) and name.value in names:
            found = [Problem(name.at, dotted(entry.path), f"a second member named {name.value}")]
        names.add(str(name.value))
        document, misplaced = _document(root, entry, combination, name, entries)
        documents.append(document)
        problems += found + misplaced
    problems += [*repeated, *_overridden_in_vain(root, members)]
    return documents, list(dict.fromkeys(problems))


def repetitions(specs: Sequence[Spec]) -> Iterator[Problem]:
    """Members that differ from an earlier one in nothing but the name."""
    seen: dict[str, str] = {}
    for spec in specs:
        content = spec.model_dump_json(exclude={"name"})
        if content in seen:
            yield spec.problem("name", f"{spec.name} is the same run as {seen[content]}")
        seen[content] = spec.name


def _entries(sweep: Node) -> list[_Entry]:
    found = sweep.value.get("list")
    if found is None:
        return [_Entry(None, (), sweep, ("sweep", "grid"))]
    entries = []
    for i, node in enumerate(found.value):
        path = ("sweep", "list", i)
        settings = tuple(
            _Setting(key, value, (*path, key)) for key, value in node.value.items() if key != "name"
        )
        entries.append(_Entry(node.value.get("name"), settings, node, path))
    return entries


def _grid(sweep: Node) -> list[list[_Setting]]:
    """The values of each key of the grid."""
    found = sweep.value.get("grid")
    return [
        [
            _Setting(key, Node(node.value, node.at, values.key_at), ("sweep", "grid", key, i))
            for i, node in enumerate(values.value)
        ]
        for key, values in (found.value if found else {}).items()
    ]


def _key_problems(
    entries: Sequence[_Entry], grid: Sequence[Sequence[_Setting]]
) -> Iterator[Problem]:
    """What is wrong with the keys that members give, whatever the values."""
    varied = [values[0]._replace(path=values[0].path[:-1]) for values in grid]
    for setting in [s for entry in entries for s in entry.settings] + varied:
        message = _refusal(setting.key)
        if message:
            yield Problem(setting.node.key_at, dotted(setting.path), message)
    for entry in entries:
        within: dict[str, _Setting] = {}  # the first setting of a key, or of one below it
        for setting in [*entry.settings, *varied]:
            if setting.key in within:
                message = f"replaces {dotted(within[setting.key].path)}; keep one of them"
                yield Problem(setting.node.key_at, dotted(setting.path), message)
            for upper in itertools.accumulate(setting.key.split("."), "{}.{}".format):
                within.setdefault(upper, setting)


def _refusal(key: str) -> str:
    """Why members cannot give `key`, or nothing."""
    top = key.partition(".")[0]
    if not all(key.split(".")):
        return "must be a dotted key such as optimizer.lr"
    if top in ("output", "sweep"):
        return f"{top} is shared by all members: give it outside of the sweep"
    if top == "name":
        return "members are named after their values; a list can name them, a grid cannot"
    return ""


def _repeated_values(grid: Sequence[Sequence[_Setting]]) -> Iterator[Problem]:
    for values in grid:
        texts = [json.dumps(setting.node.plain()) for setting in values]
        for i, setting in enumerate(values):
            if texts[i] in texts[:i]:
                message = "listed twice; keep one of them"
                yield Problem(setting.node.at, dotted(setting.path), message)


def _name(
    entry: _Entry, combination: Sequence[_Setting], labels: Mapping[str, str]
) -> tuple[Node, list[Problem]]:
    """The name of a member: that of its entry, and `key=value` for the rest."""
    varied = list(combination) if entry.name else [*entry.settings, *combination]
    parts = [f"{labels[setting.key]}={_text(setting.node.plain())}" for setting in varied]
    at = (entry.name or entry.home).at
    if entry.name is not None:
        if not _is_name(entry.name.value):
            return entry.name, []  # refused as any other name of a run is
        parts = [entry.name.value, *parts]
    name, message = ",".join(parts), ""
    if not name:
        message = "has no keys to name its member after; give it a name"
    elif len(name) > NAME_LENGTH:
        message = f"its member would have a name of {len(name)} letters, must be {NAME_LENGTH} or "
        message += "fewer; list the members, each with a name"
    elif _TAKEN.fullmatch(name):
        message = f"a member cannot be named {show(name)}, as files of the sweep are"
    problems = [Problem(at, dotted(entry.path), message)] if message else []
    return Node(name if not message else "refused", at, at), problems


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.match(NAME_PATTERN, value) is not None


def _text(value: Any) -> str:
    """A value as a part of a directory's name."""
    if isinstance(value, dict):
        return "+".join(_text(v) if k == "type" else f"{k}={_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        value = f"{value:g}"
    return re.sub(r"[^\w.=,+-]", "_", value if isinstance(value, str) else json.dumps(value))


def _short(keys: set[str]) -> dict[str, str]:
    """The shortest ends of dotted keys that tell them apart."""

    def end(key: str, length: int) -> str:
        return ".".join(key.split(".")[-length:])

    short = {}
    for key in keys:
        lengths = range(1, key.count(".") + 2)
        alone = (n for n in lengths if [end(k, n) for k in keys].count(end(key, n)) == 1)
        short[key] = end(key, next(alone, len(key)))
    return short


def _document(
    root: Node,
    entry: _Entry,
    combination: Sequence[_Setting],
    name: Node,
    entries: Sequence[_Entry],
) -> tuple[Node, list[Problem]]:
    """A member's document, and settings that do not fit into it."""
    given = {setting.key.partition(".")[0] for setting in entry.settings}
    elsewhere = {s.key.partition(".")[0] for other in entries for s in other.settings}
    # What only this entry lacks is missing there, not in the file as a whole.
    home = entry.home if elsewhere - given - set(root.value) else root
    document = Node(dict(root.value), home.at, home.key_at)
    problems = []
    settings = [s for s in (*entry.settings, *combination) if not _refusal(s.key)]
    for setting in settings:
        problems += place(document, setting.key.split("."), setting.node, setting.node.key_at)
    place(document, ["name"], name, name.at)
    return document, problems


def _overridden_in_vain(
    root: Node, members: Sequence[tuple[_Entry, Sequence[_Setting]]]
) -> Iterator[Problem]:
    """Keys from the command line that no member leaves as they are."""
    for path, node in root.walk():
        replaced = (
            any(f"{dotted(path)}.".startswith(f"{s.key}.") for s in (*entry.settings, *combination))
            for entry, combination in members
        )
        if node.at.line is None and all(replaced):
            message = "has no effect, every member of the sweep has its own; override sweep instead"
            yield Problem(node.at, dotted(path), message)
