"""What tells runs apart."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import visible
from ..spec.document import parse

LONGEST = 40  # letters of a label in a figure or a terminal

# Where a run went and how it was computed; told only if nothing else differs.
_HOUSEKEEPING = (
    "name",
    "output",
    "checkpoint",
    "devices",
    "distributed",
    "memory",
    "processes",
    "record",
    "shard",
)
_NEVER = ("name", "output")


def labels(specs: Sequence[str], names: Sequence[str]) -> list[str]:
    """A different label for every run, such as `optimizer.lr=0.1`.

    `specs` are the texts of the runs' specs, `names` what the runs are called. A label has the
    keys that differ and that all specs have; if those leave runs alike, also keys that only some
    have, then settings that do not change the result, then the run's name, then a number. Where
    keys would take more letters than a figure has room for, different names stand alone.
    """
    trees = [parse(text, "spec.yaml")[0].plain() for text in specs]
    flat = [dict(_leaves(tree if isinstance(tree, dict) else {})) for tree in trees]
    tiers = _differing(flat)
    told = [""] * len(flat)
    for end in range(1, len(tiers) + 1):
        keys = [key for tier in tiers[:end] for key in tier]
        told = [", ".join(f"{k}={_text(f[k])}" for k in keys if k in f) for f in flat]
        if len(set(told)) == len(told):
            break
    if max(map(len, told), default=0) > LONGEST and len(set(names)) == len(names):
        return list(names)
    return numbered(_named(told, names))


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield visible(f"{prefix}{key}"), value


def _differing(flat: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Keys whose values differ: those of all specs, those of some, and of housekeeping."""
    everywhere, somewhere, housekeeping = [], [], []
    for key in dict.fromkeys(key for spec in flat for key in spec):
        section = key.partition(".")[0]
        values = {_text(spec[key]) if key in spec else None for spec in flat}
        if len(values) == 1 or section in _NEVER:
            continue
        if section in _HOUSEKEEPING:
            housekeeping.append(key)
        elif None in values:
            somewhere.append(key)
        else:
            everywhere.append(key)
    return everywhere, somewhere, housekeeping


def _text(value: Any) -> str:
    """A value as a spec has it, on one line."""
    if isinstance(value, str):
        return value if value.isprintable() else json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)


def _named(told: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names where labels are empty, and beside labels that are not unique."""
    count = Counter(told)
    return [
        name if not label else (label if count[label] == 1 else f"{label} ({name})")
        for label, name in zip(told, names, strict=True)
    ]


def shortened(label: str, longest: int = LONGEST) -> str:
    """A label of at most `longest` letters, without its middle if it is too long."""
    if len(label) <= longest:
        return label
    return f"{label[: longest // 2]}...{label[3 - longest // 2 :]}"


def numbered(told: Sequence[str]) -> list[str]:
    """Labels that are not unique, with a number."""
    count, seen = Counter(told), Counter()
    numbered = []
    for label in told:
        seen[label] += 1
        numbered.append(label if count[label] == 1 else f"{label} #{seen[label]}")
    return numbered
