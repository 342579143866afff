"""Named components, and how their fields appear in a spec.

A component is a dataclass (an `equinox.Module` is one) whose fields are its options. The spec's
schema is derived from those fields, so that a new component is one new file:

    @OPTIMIZERS.register("signed_gd")
    class MyOptimizer(AbstractOptimizer):
        '''One line that `list` shows.'''

        lr: LearningRate = eqx.field(converter=as_schedule)
        power: Annotated[float, Gt(0), Doc("Exponent of the gradient.")] = 1.0
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from .errors import did_you_mean

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The components of one kind, by the name that a spec's `type` gives."""

    def __init__(self, kind: str):
        self.kind = kind
        self._components: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator; raises `ValueError` if the name is taken."""

        def add(component: C) -> C:
            if name in self._components:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._components[name] = cast(type[T], component)
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

    def summary(self, name: str) -> str:
        """First line of the component's docstring."""
        return (self[name].__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True)
class SpecType:
    """Annotates a field whose spec value differs in type from what the component holds.

    `Annotated[Schedule, SpecType(float | ScheduleOptions)]`: the component holds a `Schedule`,
    made by the field's converter from what the spec says.
    """

    type: Any


def _existing_file(path: Path, info: Any) -> Path:
    folder = (info.context or {}).get("folder", Path.cwd())
    # abspath, not resolve: a symbolic link is kept as the user wrote it.
    absolute = Path(os.path.abspath(folder / path.expanduser()))
    if not absolute.is_file():
        raise PydanticCustomError("worded", "no such file: {file}", {"file": str(absolute)})
    return absolute


InputFile = Annotated[Path, AfterValidator(_existing_file)]
"""An existing file; a relative path is relative to the spec file's folder."""
