"""The rows of a simulation, or a run on disk, as labelled arrays."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from ..errors import NumericalStop
from .quantities import ZERO_PADDED, axis, quantity, versions
from .reader import Group, Variable, read_groups
from .row import Row

if TYPE_CHECKING:
    import xarray as xr

Seen = dict[int, Shaped[np.ndarray, "..."]]
"""A series: what was recorded, by step."""


class _Key(NamedTuple):
    """Whose series it is, and its name; comparisons are nobody's."""

    process: str
    name: str

    @property
    def node(self) -> str:
        """The path of the node that has it."""
        return "/" + "/".join([*filter(None, [self.process]), *self.name.split("/")[:-1]])

    @property
    def variable(self) -> str:
        """What it is called there."""
        return self.name.split("/")[-1]


def collect(
    rows: Iterable[Row],
    *,
    coordinates: Sequence[int] | Int[np.ndarray, " c"] | None = None,
    weights: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> "xr.DataTree":
    """Run a simulation to its end and return everything that it recorded.

    The tree has the layout of a run's `data.h5`: a node for each process with its series over
    `step`, or `step` and `direction`, `coordinate` or `output`; their nodes `state` and
    `stationary`, if there are any; and a node `distance`. Where a process recorded nothing there
    is NaN, and so it is beyond the directions that a row knows, except that the oscillation's
    variances are zero there. Counters are integers where they have no gaps.

    `coordinates` are the weights' indices that a probe `Coordinates` was given, `weights=True`
    adds the flat weights `[step, parameter]` of each process, `attributes` are kept at the root
    beside the versions. A `NumericalStop` ends the tree with a warning, and the attribute `status`
    says so; a process that stopped has the attributes `stop_reason` and `stop_row`.
    """
    _xarray()  # before anything is computed
    series: dict[_Key, Seen] = {}
    stops: dict[str, tuple[int, str]] = {}
    stopping: dict[int, bool] = {}
    status = "done"
    try:
        for row in rows:
            stopping[row.step] = bool(row.stops)
            for process, halt in row.stops.items():
                stops[process] = row.step, halt.reason
                status = "numerical stop" if halt.numerical else status
            for key, value in _values(row, weights):
                series.setdefault(key, {})[row.step] = value
    except NumericalStop as stop:
        warnings.warn(str(stop), stacklevel=2)
        status, stops[stop.process] = "numerical stop", (stop.step, stop.reason)
    interval = _interval(stopping)
    steps = [step for step in stopping if step % interval == 0]
    kept = {key: {t: seen[t] for t in steps if t in seen} for key, seen in series.items()}
    nodes = _nodes(kept, steps, coordinates, [*stops])
    known = {f"version_{package}": version for package, version in versions().items()}
    about = {"/": known | {"status": status} | dict(attributes or {})}
    for process, (step, reason) in stops.items():
        about[f"/{process}"] = {"stop_reason": reason, "stop_row": step // interval}
    return _tree({path: Group(node, about.get(path, {})) for path, node in nodes.items()})


def open_run(run_dir: str | Path) -> "xr.DataTree":
    """The data of a run directory, in memory, as `collect` would have it.

    Weights, where the run stored any, are over `weights_step` and `parameter`. A run that ended
    early has NaN in the rows that it did not reach. Raises `InputError` if there is no run.
    """
    _xarray()
    groups = read_groups(Path(run_dir))
    for group in groups.values():
        for name, (dims, values, about) in group.variables.items():
            group.variables[name] = Variable(dims, _without_gaps(values), about)
    return _tree(groups)


def _tree(groups: Mapping[str, Group]) -> "xr.DataTree":
    """Groups by path as xarray has them."""
    xr = _xarray()
    return xr.DataTree.from_dict(
        {path: xr.Dataset(variables, attrs=about) for path, (variables, about) in groups.items()}
    )


def _xarray() -> Any:
    """The package that labels arrays; raises `ImportError` that says what installs it."""
    try:
        import xarray  # takes a while, which a run need not wait for
    except ImportError:
        remedy = "install it with pip install 'centralflow_eqx[arrays]'"
        raise ImportError(f"labelled arrays need xarray: {remedy}") from None
    return xarray


def _without_gaps(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Counters mark rows that were not written by -1."""
    if np.issubdtype(values.dtype, np.integer) and (values == -1).any():
        return np.where(values == -1, np.nan, values)
    return values


def _values(row: Row, weights: bool) -> Iterator[tuple[_Key, Shaped[np.ndarray, "..."]]]:
    for process, values in row.series.items():
        for name, value in values.items():
            yield _Key(process, name), np.asarray(value)
        if weights:
            yield _Key(process, "weights"), np.asarray(row.weights[process])
    for name, value in row.comparisons.items():
        yield _Key("", name), np.asarray(value)


def _interval(stopping: Mapping[int, bool]) -> int:
    """The distance of recorded steps, from all steps and whether a process stopped there.

    A process that stops between recorded steps adds a row, whose series are not all meaningful.
    Recorded steps are those of an arithmetic progression that has all rows without a stop.
    """
    certain = [step for step, stops in stopping.items() if not stops]
    for interval in sorted(step for step in stopping if step > 0):
        recorded = range(0, max(stopping) + 1, interval)
        if all(step in stopping for step in recorded) and all(t in recorded for t in certain):
            return interval
    return 1


def _nodes(
    series: Mapping[_Key, Seen],
    steps: Sequence[int],
    coordinates: Sequence[int] | Int[np.ndarray, " c"] | None,
    stopped: Sequence[str],
) -> dict[str, dict[str, Variable]]:
    """The tree's variables by path, with a node for every process."""
    processes = dict.fromkeys([*(key.process for key in series), *stopped])
    nodes: dict[str, dict[str, Variable]] = {f"/{process}": {} for process in ("", *processes)}
    nodes["/"]["step"] = _variable("step", ["step"], np.array(steps, np.int64))
    widths = _widths(series)
    for (process, along), width in widths.items():
        labels = np.arange(width)
        if along == "coordinate" and coordinates is not None:
            labels = np.asarray(coordinates, np.int64)
        nodes[f"/{process}"][along] = _variable(along, [along], labels)
    for key, seen in series.items():
        width = widths.get((_owner(key), _axis(key.name)), 0)
        values = _filled(key.name, seen, steps, width)
        dims = ["step", _axis(key.name)][: values.ndim]
        nodes.setdefault(key.node, {})[key.variable] = _variable(key.name, dims, values)
    return nodes


def _axis(name: str) -> str:
    return "parameter" if name == "weights" else axis(name)


def _owner(key: _Key) -> str:
    """The process to which the labels of a series' second axis belong; empty: all share them."""
    return key.process if _axis(key.name) == "direction" else ""


def _widths(series: Mapping[_Key, Seen]) -> dict[tuple[str, str], int]:
    """How long axes are, by owner and name."""
    widths: dict[tuple[str, str], int] = {}
    for key, seen in series.items():
        sizes = [value.size for value in seen.values() if value.ndim]
        if sizes:
            place = _owner(key), _axis(key.name)
            widths[place] = max(widths.get(place, 0), *sizes)
    return widths


def _filled(name: str, seen: Seen, steps: Sequence[int], width: int) -> Shaped[np.ndarray, "T ..."]:
    """A series over all steps, `[T]` or `[T, width]`."""
    first = next(iter(seen.values()))
    real = np.issubdtype(first.dtype, np.floating)
    shape = (len(steps), width) if first.ndim else (len(steps),)
    values = np.full(shape, np.nan, first.dtype if real else np.float64)
    for row, step in enumerate(steps):
        if step in seen and first.ndim:
            values[row] = 0 if name in ZERO_PADDED else np.nan
            values[row, : seen[step].size] = seen[step]
        elif step in seen:
            values[row] = seen[step]
    return values if real or np.isnan(values).any() else values.astype(np.int64)


def _variable(name: str, dims: list[str], values: Shaped[np.ndarray, "..."]) -> Variable:
    return Variable(tuple(dims), values, asdict(quantity(name)))
