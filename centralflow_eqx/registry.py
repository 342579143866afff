"""Named components, and how their fields appear in a spec.

A component is a dataclass (an `equinox.Module` is one) whose fields are its options. The spec's
schema is derived from those fields, so that a new component is one new file:

    @OPTIMIZERS.register("signed_gd")
    class MyOptimizer(AbstractOptimizer):
        '''One line that `list` shows.'''

        lr: LearningRate = eqx.field(converter=as_schedule)
        power: Annotated[float, Gt(0), Doc("Exponent of the gradient.")] = 1.0

A component whose options are no fields of its own registers a model of them too.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from .errors import did_you_mean, did_you_mean_file

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The components of one kind, by the name that a spec's `type` gives.

    With a `base`, a spec's `type` may also be the dotted name of a class of the user's own that
    extends it. Option models derived from fields extend `options_base` where it suits them.
    (Option models are `options.Options`; a registry only keeps them.)
    """

    def __init__(
        self,
        kind: str,
        base: type[T] | None = None,
        options_base: type | None = None,
    ):
        self.kind = kind
        self.base = base
        self.options_base = options_base
        self._components: dict[str, type[T]] = {}
        self._options: dict[str, type] = {}

    def register(self, name: str, options: type | None = None) -> Callable[[C], C]:
        """Class decorator; raises `ValueError` if the name is taken.

        `options` is the model of the component's options, where fields do not say them.
        """

        def add(component: C) -> C:
            if name in self._components:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._components[name] = cast(type[T], component)
            if options is not None:
                self._options[name] = options
            return component

        return add

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted(self._components))

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._components:
            raise KeyError(
                f"unknown {self.kind} '{name}', must be one of {', '.join(self.names())}"
                + did_you_mean(name, self.names())
            )
        return self._components[name]

    def options(self, name: str) -> type | None:
        """The model that `name` was registered with, if there is one."""
        return self._options.get(name)

    def summary(self, name: str) -> str:
        """First line of the component's docstring."""
        return (self[name].__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True)
class SpecType:
    """Annotates a field whose spec value differs in type from what the component holds.

    `Annotated[Schedule, SpecType(float | ScheduleOptions, as_schedule)]`: the component holds a
    `Schedule`, which `as_schedule` makes from what the spec says.
    """

    type: Any
    convert: Callable[[Any], Any]


def absolute_path(folder: Path, written: str | os.PathLike) -> Path:
    """A path that a spec in `folder` gives.

    A symbolic link is kept as the user wrote it.
    """
    return Path(os.path.abspath(folder / os.path.expanduser(written)))


def _absolute(path: Path, info: Any) -> Path:
    return absolute_path((info.context or {}).get("folder", Path.cwd()), path)


def _existing_file(path: Path, info: Any) -> Path:
    absolute = _absolute(path, info)
    if not os.path.isfile(absolute):  # unlike pathlib's, says no to a name that is too long
        words = {"file": str(absolute), "near": did_you_mean_file(absolute)}
        raise PydanticCustomError("worded", "no such file: {file}{near}", words)
    return absolute


InputFile = Annotated[Path, AfterValidator(_existing_file)]
"""An existing file; a relative path is relative to the spec file's folder."""

InputFolder = Annotated[Path, AfterValidator(_absolute)]
"""A folder; a relative path is relative to the spec file's folder."""
