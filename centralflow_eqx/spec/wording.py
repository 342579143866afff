"""Plain words for what pydantic found wrong."""

import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ..errors import Problem, did_you_mean, show
from ..options import Allowed, Also, tag
from .document import KeyPath, Node, dotted

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a file path",
    dict: "a mapping",
}
_BOUNDS = ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le"))


def describe(hint: Any, metadata: tuple = ()) -> str:
    """What a type and its constraints allow: "a whole number > 0"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(args[0], (*args[1:], *metadata))
    for note in metadata:
        if isinstance(note, Allowed):
            return note.text
    if origin is Literal:
        values = [v if isinstance(v, str) else show(v) for v in args]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin in (Union, types.UnionType):
        simple = [describe(a) for a in args if a is not type(None) and not _models(a)]
        tagged = [f"{{{tag(m)[0]}: NAME, ...}}" for m in _models(hint)[:1]]
        return " or ".join(simple + tagged + ["null"] * (type(None) in args))
    if origin in (tuple, list):
        some = " of one or more" * any(isinstance(note, MinLen) for note in metadata)
        most = "".join(f" of up to {m.max_length}" for m in metadata if isinstance(m, MaxLen))
        return f"a list{some}{most}, each {describe(args[0])}"
    if _models(hint):
        return "a mapping"
    words = _WORDS.get(origin or hint, "a valid value")
    bounds = [
        f"{sign} {getattr(m, name):.15g}"
        for kind, sign, name in _BOUNDS
        for m in metadata
        if isinstance(m, kind)
    ]
    return " ".join(filter(None, (words, " and ".join(bounds))))


def _several(hint: Any) -> bool:
    """Whether a type is a union of several, null aside."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return len(set(members) - {types.NoneType}) > 1


def _models(hint: Any) -> list[type[BaseModel]]:
    """The option models among the members of a type."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    if get_origin(hint) in (Annotated, Union, types.UnionType):
        return [model for arg in get_args(hint) for model in _models(arg)]
    return []


@dataclass
class _Place:
    """Where in the schema, and where in the document, an error's `loc` leads."""

    path: KeyPath
    hint: Any
    metadata: tuple = ()

    def step(self, part: str | int, models: list[type[BaseModel]]) -> "_Place":
        if get_origin(self.hint) is dict:
            return _Place((*self.path, part), get_args(self.hint)[1])
        if isinstance(part, int):
            return _Place((*self.path, part), next(iter(get_args(self.hint)), Any))
        field = models[0].model_fields[part]
        return _Place((*self.path, part), field.annotation, tuple(field.metadata))


def _locate(root: type[BaseModel], loc: tuple) -> tuple[_Place, list[type[BaseModel]]]:
    """The place of `loc`, and the option models possible there.

    Between the keys, pydantic's `loc` names the member of a union it chose; those are no part of
    the user's path.
    """
    place, models = _Place((), root), [root]
    for part in loc:
        if not models and _several(place.hint):
            break  # none of the alternatives fits: the whole value is at fault
        chosen = [m for m in models if tag(m)[1] == part] if len(models) > 1 else []
        if chosen:
            models = chosen
        elif (
            isinstance(part, int)
            or (len(models) == 1 and part in models[0].model_fields)
            or (get_origin(place.hint) is dict and part != "[key]")
        ):
            place = place.step(part, models)
            models = _models(place.hint)
    return place, models


def _must_be(hint: Any, metadata: tuple, node: Node | None) -> str:
    if node is None:
        return f"missing, must be {describe(hint, metadata)}"
    value = node.plain()
    literal = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    names = get_args(literal) if get_origin(literal) is Literal else ()
    near = did_you_mean(value, [n for n in names if isinstance(n, str)])
    unquoted = hint is str and isinstance(value, bool | int | float)
    quote = "; quote it if it is meant as text" if unquoted else ""
    return f"must be {describe(hint, metadata)}, got {show(value)}{near}{quote}"


def problem(error: ErrorDetails, root: type[BaseModel], document: Node) -> Problem:
    """One of pydantic's errors, as a line about the document it came from."""
    kind, loc = error["type"], error["loc"]
    unknown = kind == "extra_forbidden"
    place, models = _locate(root, loc[:-1] if unknown else loc)
    path, hint, metadata = place.path, place.hint, place.metadata
    if kind.startswith("union_tag"):
        key = tag(models[0])[0]
        path = (*path, key)
        hint = Literal[tuple(tag(m)[1] for m in models)]
        also = "".join(note.text for note in place.metadata if isinstance(note, Also))
        metadata = (Allowed(describe(hint) + also),)
    elif unknown:
        path = (*path, loc[-1])

    node, found = document.find(path)
    if unknown:
        keys = tuple(models[0].model_fields)
        message = f"unknown key, must be one of {', '.join(keys)}{did_you_mean(path[-1], keys)}"
    elif kind == "worded":
        message = error["msg"]
    elif kind == "value_error":
        message = str(error.get("ctx", {})["error"])
    else:
        message = _must_be(hint, metadata, node if found else None)
    at = node.at if found and not unknown else node.key_at
    return Problem(at, dotted(path), message)
