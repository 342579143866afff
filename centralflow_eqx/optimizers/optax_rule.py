"""Optax's gradient transformations."""

import difflib
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree
from pydantic import WithJsonSchema

from ..errors import OptionError, show
from ..options import Allowed, OptionModel, Options, arguments_field, call, derived, option
from ..registry import SpecType
from ._base import AbstractOptimizer
from ._registry import OPTIMIZERS
from ._schedule import ScheduleOptions, as_schedule, or_schedule

# Optax computes with whole numbers as such, so that 1 must not become 1.0.
_Number = Annotated[int | float, Allowed("a number")]


class OptaxOptions(Options):
    """Any gradient transformation of Optax: `optax.<name>(**args)`."""

    type: Literal["optax"]
    name: Annotated[str, Allowed("a name in Optax, such as adam or contrib.muon")]
    """Name in Optax, such as adam or contrib.muon."""
    args: Annotated[Any, WithJsonSchema({"type": "object"})] = {}
    """Its arguments by name; one that may be a schedule may be {schedule: NAME, ...}."""

    @classmethod
    def specialised(cls, given: Mapping[str, Any]) -> OptionModel:
        name = given.get("name")
        if not isinstance(name, str):
            return cls
        factory = _factory(name)
        arguments = arguments_field(
            f"optax.{name}", functools.partial(_make, factory), _arguments(name, factory)
        )
        fields: dict[str, Any] = {"name": (Literal[name], ...), "args": arguments}
        return derived("Optax", cls, **fields)

    def build(self) -> Any:
        return call(self.args)


@OPTIMIZERS.register("optax", OptaxOptions)
class Optax(AbstractOptimizer):
    """Any gradient transformation of Optax; in a spec `name` and `args` say which.

    From Python, `Optax(optax.chain(...))`: schedules, masks and partitions are welcome, and a
    transformation with extra arguments if it works without them.
    """

    transformation: optax.GradientTransformation = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.transformation, optax.GradientTransformation):
            raise TypeError(
                "transformation must be an optax.GradientTransformation, such as optax.sgd(0.1), "
                f"got {self.transformation!r}"
            )

    def init(self, params: PyTree) -> Any:
        state = self.transformation.init(params)
        parts = jax.tree.leaves(state, is_leaf=_of_pairs)
        if any(map(_of_pairs, parts)):
            raise OptionError(
                "type",
                "optax.lookahead has weights in pairs, fast and slow, and pulls them together in "
                "some steps; give its fast optimizer, whose one set of weights moves in all steps",
            )
        return state

    def update(self, grad: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        return self.transformation.update(grad, state, params)


def _of_pairs(part: Any) -> bool:
    return isinstance(part, optax.LookaheadState)


class _Sample(NamedTuple):
    """Weights to try a transformation on; a mapping or a list in a spec does not match them."""

    matrix: Any = jax.ShapeDtypeStruct((3, 2), "float32")
    vector: Any = jax.ShapeDtypeStruct((2,), "float32")


def _make(factory: Callable, **arguments: Any) -> Optax:
    """The optimizer that `factory` makes, after a step of it has been traced."""
    optimizer = Optax(factory(**arguments))
    jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), _Sample())
    return optimizer


def _factory(name: str) -> Callable:
    """The function `optax.<name>`; raises `OptionError` if it makes no transformation."""
    found: Any = optax
    for part in name.split("."):
        public = inspect.ismodule(found) and _is_optax(found.__name__) and part[:1] != "_"
        found = getattr(found, part, None) if public else None
    if _makes_transformation(found):
        return found
    tails = {known.rpartition(".")[2]: known for known in _factories()}
    close = difflib.get_close_matches(name.rpartition(".")[2], tails, n=1)
    near = f" (did you mean '{tails[close[0]]}'?)" if close else ""
    wrong = f"{show(name)} makes no gradient transformation"
    if found is None:
        wrong = f"Optax has no public {show(name)}"
    raise OptionError("name", f"{wrong}, must be a name such as adam or contrib.muon{near}")


def _is_optax(module: str) -> bool:
    return module.partition(".")[0] == "optax"


def _makes_transformation(found: Any) -> bool:
    function = found.func if isinstance(found, functools.partial) else found  # nadam is partial
    if not inspect.isfunction(function) or not _is_optax(function.__module__):
        return False
    returned = _signature(found).return_annotation
    if returned is inspect.Signature.empty:
        try:
            return isinstance(found(), optax.GradientTransformation)
        except Exception:  # it needs arguments: no way to tell, and no optimizer of Optax's
            return False
    return isinstance(returned, type) and issubclass(returned, optax.GradientTransformation)


def _signature(function: Callable) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # an annotation for type checkers only
        return inspect.signature(function)


@functools.cache
def _factories() -> tuple[str, ...]:
    """Every name that makes a transformation, those at Optax's top level last."""

    def names(module: types.ModuleType, prefix: str) -> Iterator[str]:
        for name, value in vars(module).items():
            if name[:1] != "_" and _makes_transformation(value):
                yield prefix + name

    folders = {n: m for n, m in vars(optax).items() if inspect.ismodule(m) and n[:1] != "_"}
    deep = [name for n, m in folders.items() if _is_optax(m.__name__) for name in names(m, n + ".")]
    return (*deep, *names(optax, ""))


def _arguments(name: str, factory: Callable) -> dict[str, Any]:
    """Fields for the arguments of `factory`; `OptionError` if it needs what no spec can hold."""
    fields, missing = {}, []
    for parameter in _signature(factory).parameters.values():
        definition = _argument(parameter)
        required = parameter.default is parameter.empty
        if definition is not None:
            fields[parameter.name] = definition
        elif required and parameter.kind is not parameter.VAR_KEYWORD:
            missing.append(parameter.name)
    if missing:
        raise OptionError(
            "name",
            f"optax.{name} needs {', '.join(missing)}, which a spec cannot give; a class of your "
            "own can",
        )
    return fields


def _argument(parameter: inspect.Parameter) -> tuple[Any, Any] | None:
    """The field of an argument; None if a spec cannot give it."""
    named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    annotation: Any = parameter.annotation if named else None
    if parameter.default is None and annotation is not parameter.empty:
        annotation = annotation | None
    hint = _spec_type(annotation)
    default = ... if parameter.default is parameter.empty else parameter.default
    return None if hint is None else option(hint, default)


def _spec_type(annotation: Any) -> Any:
    """What a spec may give for an argument that Optax annotates so; None if it cannot."""
    origin, members = get_origin(annotation), get_args(annotation)
    is_union = origin in (Union, types.UnionType)
    if annotation in (inspect.Parameter.empty, Any) or (is_union and Any in members):
        return Any
    if annotation in (int, bool, str, types.NoneType) or origin is Literal:
        return annotation
    if annotation is float:
        return _Number
    if origin is tuple:
        parts = [part if part is ... else _spec_type(part) for part in members]
        return None if None in parts else tuple[tuple(parts)]
    if not is_union:
        return _rate(_Number) if _is_schedule(annotation) else None
    if float in members:  # of Optax's array-likes a spec has only numbers
        members = [member for member in members if member not in (int, bool)]
    parts = [_spec_type(m) for m in members if not _is_schedule(m)]
    parts = [part for part in parts if part is not None]
    if set(parts) <= {types.NoneType}:
        return None
    values = Union[tuple(parts)]  # noqa: UP007
    return _rate(values) if any(map(_is_schedule, members)) else values


def _is_schedule(annotation: Any) -> bool:
    if get_origin(annotation) is not Callable:
        return False
    inputs, output = get_args(annotation)
    numbers = set(get_args(jax.typing.ArrayLike))
    return isinstance(inputs, list) and len(inputs) == 1 and set(get_args(output)) == numbers


def _rate(number: Any) -> Any:
    """The type of `number` or a schedule, which Optax gets as a function."""

    def convert(value: Any) -> Any:
        return as_schedule(value) if isinstance(value, ScheduleOptions) else value

    return Annotated[Any, SpecType(or_schedule(number), convert)]
