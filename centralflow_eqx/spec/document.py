"""YAML that remembers where each value was written.

The subset and the scalars are those of YAML 1.2's core schema, where PyYAML follows 1.1:
`1e-3` is a number, `off`, `on`, `yes` and `no` are text, and keys are text as written. Merge keys
(`<<: *defaults`), which 1.2 has dropped and everybody uses, are understood.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, Location, Problem, did_you_mean_file, one_line, show

_CORE_SCHEMA = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
_PATTERNS = {name: re.compile(f"(?:{pattern})") for name, pattern, _ in _CORE_SCHEMA}
# Aliases are expanded; a few lines of nested aliases could otherwise fill the memory.
_MAX_NODES = 30_000
_MAX_DEPTH = 100
_MAX_BYTES = 2**20
# Of an integer; Python does not print ones of more than 14 000 or so.
_MAX_BITS = 8192

_LONGEST_KEY = 60  # letters of a key that messages have in full

_TOO_LARGE = f"too large, more than {_MAX_NODES} keys and values are not allowed"
_TOO_DEEP = "nested too deeply"
_NO_TEXT = "has a character that stands for none (U+0000, or half of a surrogate pair)"
_COLLECTIONS = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"

KeyPath = tuple[str | int, ...]


class _NotYaml(Exception):
    def __init__(self, line: int, message: str):
        self.line = line
        self.message = message
        super().__init__(message)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.count += 1
        if self.count > _MAX_NODES:
            raise _NotYaml(self.line + 1, _TOO_LARGE)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first)
        )


@dataclass
class Node:
    """A value, where it starts, and where its key stands (the value itself in a list)."""

    value: Any  # a scalar, dict[str, Node] or list[Node]
    at: Location
    key_at: Location

    def plain(self) -> Any:
        """The value without locations."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def walk(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, "Node"]]:
        """Every value in here that is no mapping, with its path."""
        if isinstance(self.value, dict):
            for key, child in self.value.items():
                yield from child.walk((*path, key))
        else:
            yield path, self

    def find(self, path: KeyPath) -> tuple["Node", bool]:
        """The node at `path`, or its nearest ancestor; and whether it is the node itself."""
        node = self
        for part in path:
            if not _has(node.value, part):
                return node, False
            node = node.value[part]
        return node, True


def _has(value: Any, part: str | int) -> bool:
    """Whether `value` has children, and one of this key or at this index."""
    if isinstance(value, list):
        return isinstance(part, int) and 0 <= part < len(value)
    return isinstance(value, dict) and part in value


def _is_plain(key: str) -> bool:
    """Whether a message can have the key without quotes."""
    return key.isprintable() and key.strip() == key and 0 < len(key) <= _LONGEST_KEY


def dotted(path: KeyPath) -> str:
    """`("processes", 1)` as `processes[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            part = part if _is_plain(part) else show(part)
            text += f".{part}" if text else part
    return text


def _is_text(text: str) -> bool:
    """Whether files have it, and their names: no zero, and no half of a surrogate pair."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text)


def _value(kind: str, text: str) -> Any:
    """What the core schema makes of `text`, which matches the pattern of its `kind`."""
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            number = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
            if number.bit_length() > _MAX_BITS:
                raise ValueError(text)
            return number
        case "float":
            return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
    return text


def _tag_refused(node: yaml.Node) -> str:
    return f"tag {show(node.tag)} is not allowed, write a plain value"


class _Builder:
    """Turns PyYAML's nodes into ours, collecting duplicate keys and refused values."""

    def __init__(self, source: str, has_lines: bool):
        self.source = source
        self.has_lines = has_lines
        self.problems: list[Problem] = []
        self._count = 0
        self._open: set[int] = set()

    def _location(self, node: yaml.Node) -> Location:
        return Location(self.source, node.start_mark.line + 1 if self.has_lines else None)

    def _report(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self._location(node), dotted(path), message))

    def build(self, node: yaml.Node, path: KeyPath = (), key_at: Location | None = None) -> Node:
        at = self._location(node)
        self._count += 1
        if self._count > _MAX_NODES or id(node) in self._open:
            endless = "an alias that contains itself, which is not allowed"
            message = endless if id(node) in self._open else _TOO_LARGE
            raise InputError([Problem(at, dotted(path), message)])
        if len(self._open) == _MAX_DEPTH:
            raise InputError([Problem(at, "", _TOO_DEEP)])
        self._open.add(id(node))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            self._report(node, path, _tag_refused(node))
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        else:
            value = self._scalar(node, path)
        self._open.discard(id(node))
        return Node(value, at, key_at or at)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Node]:
        children: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.value, key.style) == ("<<", None):
                merged = self._merge_key(value, path) | merged
                continue
            if not isinstance(key, yaml.ScalarNode):
                self._report(key, path, "a key must be text, not a list or a mapping")
                continue
            where = (*path, key.value)
            if not _is_text(key.value):
                self._report(key, where, _NO_TEXT)
                continue
            if key.value in children:
                first = children[key.value].key_at.line
                also = "" if first is None else f", first on line {first}"
                self._report(key, where, f"key given twice{also}; keep one of them")
                continue
            children[key.value] = self.build(value, where, self._location(key))
        return merged | children

    def _merge_key(self, node: yaml.Node, path: KeyPath) -> dict[str, Node]:
        """What `<<: *alias` or `<<: [*alias, ...]` adds; of several the first has the word."""
        found: dict[str, Node] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.build(source, path).value
            if isinstance(value, dict):
                found = value | found
            else:
                self._report(source, (*path, "<<"), "must be a mapping or a list of mappings")
        return found

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        if kind != "str" and kind not in _PATTERNS:
            self._report(node, path, _tag_refused(node))
        elif kind != "str" and not _PATTERNS[kind].fullmatch(text):  # a tag says that it does
            self._report(node, path, f"{show(text)} is no {kind}, write it without a tag")
        elif not _is_text(text):
            self._report(node, path, f"{show(text)} {_NO_TEXT}")
        else:
            try:
                return _value(kind, text)
            except ValueError:
                self._report(node, path, f"not a number that can be read: {show(text)}")
        return None


def parse(text: str, source: str, has_lines: bool = True) -> tuple[Node, list[Problem]]:
    """The document in `text`, and problems that leave it readable (such as duplicate keys).

    Raises `InputError` if `text` is not YAML.
    """
    first, builder = Location(source, 1 if has_lines else None), _Builder(source, has_lines)
    try:
        root = _compose(text)
    except _NotYaml as error:
        location = Location(source, error.line if has_lines else None)
        raise InputError([Problem(location, "", error.message)]) from None
    node = Node(None, first, first) if root is None else builder.build(root)
    return Node(node.value, node.at, first), builder.problems


def _compose(text: str) -> yaml.Node | None:
    """PyYAML's nodes; raises `_NotYaml`, and nothing else."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except RecursionError:
        raise _NotYaml(1, _TOO_DEEP) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        said = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise _NotYaml(line + 1, f"not valid YAML: {said}") from None
    except (ValueError, OverflowError) as error:  # an escape that stands for no character
        line = loader.line + 1 if loader else 1
        raise _NotYaml(line, f"not valid YAML: {one_line(error)}") from None


def read(path: Path) -> tuple[Node, list[Problem]]:
    """The document in a file; `InputError` if it cannot be read or is not a mapping."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        near = did_you_mean_file(path) if isinstance(error, FileNotFoundError) else ""
        message = f"cannot be read: {error.strerror}{near}"
        raise InputError([Problem(Location(str(path)), "", message)]) from None
    if len(content) > _MAX_BYTES:
        message = f"has more than {_MAX_BYTES >> 20} MiB, which is no spec"
        raise InputError([Problem(Location(str(path), 1), "", message)])
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        location = Location(str(path), line)
        raise InputError([Problem(location, "", "not UTF-8 text")]) from None
    root, problems = parse(text.removeprefix("\ufeff"), str(path))
    if not isinstance(root.value, dict):
        found = "the file is empty" if root.value is None else "the file is not a mapping"
        message = f"{found}, expected `key: value` lines such as `name: my_run`"
        raise InputError([Problem(Location(str(path), 1), "", message)])
    return root, problems


def override(root: Node, settings: Sequence[str], flag: str = "--set") -> tuple[Node, list]:
    """`root` with every `a.b=value` of `settings` applied, and what was wrong with them."""
    root, here, problems = replace(root, value=dict(root.value)), Location(flag), []
    for setting in settings:
        name, equals, text = setting.partition("=")
        keys = _keys(name.strip())
        if not equals or not all(keys):
            message = f"{show(setting)} is not of the form key.subkey=value"
            problems.append(Problem(here, "", message))
            continue
        try:
            node, found = parse(text, flag, has_lines=False)
        except InputError as error:
            problems += [Problem(here, dotted(tuple(keys)), p.message) for p in error.problems]
            continue
        for inner in found:
            path = dotted(tuple(keys)) + (f".{inner.path}" if inner.path else "")
            problems.append(Problem(here, path, inner.message))
        problems += place(root, keys, node, here)
    return root, problems


def _keys(name: str) -> list[str]:
    """`a.b` as two keys; below `sweep.grid` what remains is one key, dots and all."""
    keys = name.split(".")
    return [*keys[:2], ".".join(keys[2:])] if name.startswith("sweep.grid.") else keys


def place(root: Node, keys: Sequence[str], node: Node, here: Location) -> list[Problem]:
    """Put `node` at the place `keys` of `root`, replacing what is there; or what is wrong.

    Mappings on the way are made, and located `here`, where there are none; those that are there
    are copied, so that documents may share what does not differ.
    """
    parent = root
    for depth, key in enumerate(keys[:-1], start=1):
        there = parent.value.get(key, Node({}, here, here))
        if not isinstance(there.value, dict):
            upper = dotted(tuple(keys[:depth]))
            message = f"{upper} is not a mapping; give a value for {upper} itself"
            return [Problem(here, dotted(tuple(keys)), message)]
        own = replace(there, value=dict(there.value))
        parent.value[key] = own
        parent = own
    parent.value[keys[-1]] = node
    return []


def dump(data: Any) -> str:
    """YAML text that `parse` reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)
