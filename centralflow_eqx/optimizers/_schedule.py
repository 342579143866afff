"""Learning rates: a number, or a function of the step count."""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

import equinox as eqx
import jax
import optax
from annotated_types import Ge, Gt
from jax.core import Tracer
from jaxtyping import Array, Float, Int
from pydantic import Discriminator, Tag, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Doc

from ..options import Section, derived
from ..registry import SpecType

Count = int | float | Int[Array, ""] | Float[Array, ""]
Rate = float | Float[Array, ""]


class Schedule(eqx.Module):
    """A learning rate as a function of the number of steps taken.

    The count may be a float: flows evaluate it between whole steps, and differentiate it.
    """

    rule: Rate | Callable[[Count], Rate]

    def __call__(self, count: Count) -> Rate:
        if not callable(self.rule):
            return self.rule
        # Optax divides some integer counts in single precision. A product with a Python float
        # is in double precision, but weakly typed: it does not promote float32 weights.
        return self.rule(count * 1.0)


class ScheduleOptions(Section):
    """An Optax schedule by name, with the arguments of Optax's function."""

    schedule: str

    def __call__(self, count: Count) -> Rate:
        return _make(self)(count)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _accepted_by_optax(self) -> "ScheduleOptions":
        try:
            _make(self)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise PydanticCustomError("worded", "{reason}", {"reason": str(error)}) from None
        return self


def _make(options: ScheduleOptions) -> Callable[[Count], Rate]:
    arguments = options.model_dump()
    return _FUNCTIONS[arguments.pop("schedule").removesuffix("_schedule")](**arguments)


def _argument_type(parameter: inspect.Parameter) -> Any:
    """The type of an Optax argument in a spec; rates and step counts are never negative."""
    if parameter.name == "boundaries_and_scales":
        return dict[int, float] | None
    if parameter.name == "interpolate_type":
        return Literal["linear", "cosine"]
    base: Any = parameter.annotation if parameter.annotation in (int, bool) else float
    if parameter.name.endswith(("value", "_steps")):
        base = Annotated[base, Ge(0)]
    return base | None if parameter.default is None else base


def _options(name: str, function: Callable) -> type[ScheduleOptions]:
    arguments = inspect.signature(function).parameters.values()
    spellings = (name, f"{name}_schedule") if name + "_schedule" in vars(optax) else (name,)
    fields: dict[str, Any] = {"schedule": (Literal[spellings], ...)}
    for a in arguments:
        fields[a.name] = (_argument_type(a), ... if a.default is a.empty else a.default)
    return derived(name, ScheduleOptions, f"Optax's {function.__name__}.", **fields)


def _kind(value: Any) -> str | None:
    if isinstance(value, ScheduleOptions):
        value = {"schedule": value.schedule}
    if not isinstance(value, Mapping):
        return "number"
    return str(value["schedule"]).removesuffix("_schedule") if "schedule" in value else None


# Schedules of other schedules (join, sgdr) take arguments that are no plain values.
_FUNCTIONS = {
    name.removesuffix("_schedule"): function
    for name, function in inspect.getmembers(optax.schedules, inspect.isfunction)
    if name.endswith(("_schedule", "_decay")) and name != "sgdr_schedule"
}
_MODELS = {name: _options(name, function) for name, function in _FUNCTIONS.items()}


def or_schedule(number: Any) -> Any:
    """The type of what a spec may give where it may give `number` or `{schedule: NAME, ...}`."""
    schedules = (Annotated[model, Tag(name)] for name, model in _MODELS.items())
    return Annotated[
        Union[(Annotated[number, Tag("number")], *schedules)],
        Discriminator(_kind),
    ]


_Value = or_schedule(Annotated[float, Gt(0)])


def as_schedule(value: Any) -> Schedule:
    """A schedule from a number > 0, `{"schedule": NAME, ...}`, or an Optax schedule.

    Of a number that JAX traces, as derivatives do, nothing is known yet. Raises `ValueError` for a
    number or arguments out of range.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, jax.Array) and value.ndim == 0:
        if isinstance(value, Tracer):
            return Schedule(value)
        value = float(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
        if not 0 < value < math.inf:
            wanted = "a number greater than 0 or a schedule"
            raise ValueError(f"a learning rate must be {wanted}, got {value:g}")
    is_rule = callable(value) and not isinstance(value, ScheduleOptions)
    rule: Any = value if is_rule else TypeAdapter(_Value).validate_python(value, strict=True)
    return Schedule(rule)


LearningRate = Annotated[
    Schedule,
    SpecType(_Value, as_schedule),
    Doc("Learning rate, or a schedule of Optax's over the optimizer's steps."),
]
"""A field for a learning rate; in a spec a number > 0 or `{schedule: NAME, ...}`."""
