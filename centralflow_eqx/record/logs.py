"""The numbers of a run, for the tools in which people watch theirs."""

import abc
import contextlib
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Shaped

from ..errors import OptionError, one_line
from .quantities import axis

Scalars = Mapping[str, Mapping[str, float]]
"""Numbers of a row by process and name; those between processes are under ""."""


class About(NamedTuple):
    """A run as a log sees it: where it is, its name, its spec, and the first step to come."""

    run_dir: Path
    name: str
    config: Mapping[str, Any]
    since: int


class AbstractLog(abc.ABC):
    """Takes the scalars of a run; a step that it was given before a `resume` counts once."""

    @abc.abstractmethod
    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars of a row."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Bring what was taken to where it is kept: a checkpoint will have these rows."""

    @abc.abstractmethod
    def close(self, failed: bool) -> None:
        """Take no more; `failed` says that an error ended the run."""


class _Client(NamedTuple):
    """A kind of log: the package that it needs, and the module beside this one that has it."""

    package: str
    module: str


_CLIENTS = {
    "tensorboard": _Client("tensorboardX", "_tensorboard"),
    "wandb": _Client("wandb", "_wandb"),
}


def missing(names: Sequence[str]) -> str:
    """Which of the clients are not installed, and the remedy; empty if all are."""
    for name in names:
        try:
            importlib.import_module(_CLIENTS[name].package)
        except ImportError:
            package = _CLIENTS[name].package
            return f"{name} needs {package}: install it with pip install 'centralflow_eqx[{name}]'"
    return ""


def log_in(names: Sequence[str]) -> None:
    """Meet the services, before anything is computed; raises `OptionError` for one that refuses."""
    if why := missing(names):
        raise OptionError("log_to", why)
    for name in names:
        why = _module(name).refusal()
        if why:
            raise OptionError("log_to", why)


class Logs:
    """The logs of a run, often none; a context manager that closes them.

    One that fails is told of and left out from there on: the run is worth more.
    """

    def __init__(self, logs: Mapping[str, AbstractLog]):
        self._logs = dict(logs)

    @classmethod
    def open(cls, names: Sequence[str], about: About) -> Self:
        """Begin the logs `names`, or go on with those that the run directory has."""
        logs = cls({})
        for name in dict.fromkeys(names):
            with logs._surviving(name):
                logs._logs[name] = _module(name).open_log(about)
        return logs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._each(lambda log: log.close(failed=kind is not None))

    def write(
        self,
        step: int,
        processes: Mapping[str, Mapping[str, Shaped[np.ndarray, "..."]]],
        comparisons: Mapping[str, float],
    ) -> None:
        """Write the scalars of a row."""
        if self._logs:
            found = {name: _scalars(series) for name, series in processes.items()}
            found[""] = _scalars(comparisons)
            self._each(lambda log: log.write(step, found))

    def flush(self) -> None:
        """Bring what was written to where it is kept."""
        self._each(lambda log: log.flush())

    def _each(self, action: Callable[[AbstractLog], None]) -> None:
        for name, log in list(self._logs.items()):
            with self._surviving(name):
                action(log)

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of whatever kind the client raises
            self._logs.pop(name, None)
            warnings.warn(f"no more is logged to {name}: {one_line(error)}", stacklevel=2)


def _module(name: str) -> Any:
    return importlib.import_module(f".{_CLIENTS[name].module}", __package__)


def _scalars(series: Mapping[str, Any]) -> dict[str, float]:
    """Numbers, and the largest of a series over directions as `NAME/0`; what is NaN is left out."""
    found = {}
    for name, value in series.items():
        array = np.asarray(value)
        if array.ndim == 0:
            found[name] = float(array)
        elif axis(name) == "direction" and array.size:
            found[f"{name}/0"] = float(array[0])
    return {name: value for name, value in found.items() if not math.isnan(value)}
