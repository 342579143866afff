"""A run as its directory has it. Nothing else opens `data.h5` to read it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ..errors import InputError, Location, Problem, one_line, visible
from ..spec.document import parse
from ._hdf5 import dataset
from .files import is_intact

_DEFAULT_SMOOTHING = 15.0
FLOWS = ("central", "stationary", "ablated", "rod", "edge")
"""Flows that know the oscillation and predict time averages, the one to judge first."""


@dataclass(frozen=True)
class Stop:
    """A process went no further than `row`."""

    row: int
    reason: str


@dataclass(frozen=True)
class Run:
    """Everything a report is made of. Rows that were not written are NaN in every series.

    `series` by process and name (`[T]`, or `[T, k]` over directions), `distances` by the pair of
    processes, `smoothing` the width of the Gaussian in rows, `wall_seconds` NaN if unknown,
    `coordinates` indices of the weights that series named `..._at` (`[T, c]`) are about.
    """

    steps: Int[np.ndarray, " T"]
    series: dict[str, dict[str, Float[np.ndarray, "..."]]]
    distances: dict[tuple[str, str], Float[np.ndarray, " T"]]
    stops: dict[str, Stop]
    attributes: dict[str, Any]
    name: str
    spec: str
    smoothing: float
    wall_seconds: float
    coordinates: tuple[int, ...] = ()

    def get(self, process: str, name: str) -> Float[np.ndarray, "..."] | None:
        """A series, or None if the run has nothing of it."""
        values = self.series.get(process, {}).get(name)
        return None if values is None or np.isnan(values).all() else values

    def flows(self) -> tuple[str, ...]:
        """The flows that predict time averages, the one to judge first."""
        return tuple(flow for flow in FLOWS if flow in self.series)

    def distance(self, a: str, b: str) -> Float[np.ndarray, " T"] | None:
        """The distance between two processes, in whichever order it was stored."""
        return self.distances.get((a, b), self.distances.get((b, a)))

    def recorded(self) -> Bool[np.ndarray, " T"]:
        """Rows that some process has written."""
        written = [np.isfinite(s["train_loss"]) for s in self.series.values() if "train_loss" in s]
        return np.any(written, axis=0) if written else np.zeros(self.steps.size, bool)

    def untrusted(self) -> Bool[np.ndarray, " T"]:
        """Where any process says that its prediction should not be believed."""
        flags = [s["untrusted"] == 1 for s in self.series.values() if "untrusted" in s]
        return np.any(flags, axis=0) if flags else np.zeros(self.steps.size, bool)


def load_run(run_dir: Path) -> Run:
    """Read a run directory, finished or not; `InputError` if it is none.

    Names and words are without what a terminal might obey: somebody else may have made the run.
    """
    run_dir = Path(run_dir)
    spec, name, smoothing = _read_spec(run_dir / "spec.yaml")
    with opened(run_dir) as file:
        steps = dataset(file, "step")[:]
        groups = {
            visible(name): group
            for name, group in file.items()
            if isinstance(group, h5py.Group) and name != "distance"
        }
        return Run(
            steps=steps,
            series={name: _read_series(group) for name, group in groups.items()},
            distances=_read_distances(file),
            stops={
                # A process may stop after the last row.
                name: Stop(
                    min(int(cast(int, group.attrs["stop_row"])), steps.size - 1),
                    visible(str(group.attrs["stop_reason"])),
                )
                for name, group in groups.items()
                if "stop_reason" in group.attrs
            },
            attributes={visible(k): _visible(v) for k, v in sorted(file.attrs.items())},
            name=visible(name),
            spec=spec,
            smoothing=smoothing,
            wall_seconds=_wall_seconds(run_dir / "metrics.jsonl"),
            coordinates=tuple(int(i) for i in dataset(file, "coordinate")[:])
            if "coordinate" in file
            else (),
        )


@contextlib.contextmanager
def opened(run_dir: Path) -> Iterator[h5py.File]:
    """The data of a run; `InputError` if there are none, or they turn out to be damaged."""
    path = run_dir / "data.h5"
    with contextlib.ExitStack() as stack:
        try:
            if not is_intact(path):
                raise _refused(path, "is damaged: its content is not what was written")
            # Through Python's file, HDF5 neither locks nor minds who else has it open: the run's
            # writer, or the user.
            raw = stack.enter_context(path.open("rb"))
            file = stack.enter_context(h5py.File(raw, "r"))
        except OSError as error:
            raise _refused(path, f"cannot be read: {error}; is this a run directory?") from None
        if "step" not in file:
            raise _refused(path, "has no dataset `step`; is it a run's data?")
        try:
            yield file
        except Exception as error:  # whatever HDF5 and NumPy say about what no run writes
            message = f"is not as a run writes it: {one_line(error)}"
            raise _refused(path, message) from error


class Variable(NamedTuple):
    """An array with the names of its axes, and what is known about it."""

    dims: tuple[str, ...]
    values: Shaped[np.ndarray, "..."]
    attributes: dict[str, Any]


class Group(NamedTuple):
    """A group of a run's file, without the groups in it."""

    variables: dict[str, Variable]
    attributes: dict[str, Any]


def read_groups(run_dir: Path) -> dict[str, Group]:
    """Everything in a run's file, by the paths of its groups; `InputError` if there is no run."""
    with opened(run_dir) as file:
        groups = {"/": _read_group(file)}

        def visit(_: str, item: Any) -> None:
            if isinstance(item, h5py.Group):
                groups[str(item.name)] = _read_group(item)

        file.visititems(visit)
        return groups


def _read_group(group: h5py.Group) -> Group:
    variables = {}
    for name, item in group.items():
        if isinstance(item, h5py.Dataset):
            # A scale is its own axis.
            dims = (name,) if item.is_scale else tuple(_axis_name(dim) for dim in item.dims)
            about = {key: item.attrs[key] for key in ("units", "long_name") if key in item.attrs}
            variables[name] = Variable(dims, item[()], about)
    return Group(variables, dict(group.attrs))


def _axis_name(dim: Any) -> str:
    """The name of the scale that belongs to a dimension."""
    return dim[0].name.rpartition("/")[2]


@dataclass(frozen=True)
class Ending:
    """The last weights of a process that a run stored, and their step."""

    step: int
    weights: Float[np.ndarray, " d"]


def with_weights(run_dir: Path) -> tuple[str, ...]:
    """The processes of which a run stored weights."""
    with opened(run_dir) as file:
        return tuple(str(name) for name in file if f"{name}/weights" in file)


def last_weights(run_dir: Path, process: str) -> Ending | None:
    """The last row of a process's weights that is finite, or None."""
    with opened(run_dir) as file:
        if f"{process}/weights" not in file:
            return None
        group = cast(h5py.Group, file[process])
        weights, steps = dataset(group, "weights"), dataset(group, "weights_step")
        for row in reversed(range(weights.shape[0])):
            values = weights[row]
            if np.isfinite(values).all():
                return Ending(int(steps[row]), values.astype(float))
    return None


def _refused(path: Path, message: str) -> InputError:
    return InputError([Problem(Location(str(path)), "", message)])


def _read_spec(path: Path) -> tuple[str, str, float]:
    """Text, name and smoothing. Only what the report needs is read, so old specs stay readable."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _refused(
            path, f"cannot be read: {error.strerror}; is this a run directory?"
        ) from None
    except UnicodeDecodeError:
        raise _refused(path, "not UTF-8 text") from None
    content = parse(text, str(path))[0]
    name, named = content.find(("name",))
    smoothing, given = content.find(("flow", "smoothing"))
    is_number = given and isinstance(smoothing.value, int | float)
    width = float(smoothing.value) if is_number else _DEFAULT_SMOOTHING
    return text, str(name.value if named else path.parent.name), width


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def _read_series(group: h5py.Group) -> dict[str, Float[np.ndarray, "..."]]:
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not item.is_scale and name != "weights":
            found[name] = _as_float(item[:])

    group.visititems(visit)
    if "distance_moved" not in found and "weights" in group:
        found["distance_moved"] = _distance_moved(group)
    return found


def _as_float(values: np.ndarray) -> Float[np.ndarray, "..."]:
    """Counters mark rows that were not written by -1."""
    if np.issubdtype(values.dtype, np.integer):
        return np.where(values == -1, np.nan, values)
    return values.astype(float)


def _distance_moved(group: h5py.Group) -> Float[np.ndarray, " T"]:
    """Distance from the first stored weights, at the recorded steps where weights are stored."""
    steps, weights = dataset(group.file, "step")[:], dataset(group, "weights")
    moved = np.full(steps.shape, np.nan)
    first = weights[0]
    for row, step in enumerate(dataset(group, "weights_step")[:]):
        moved[steps == step] = np.linalg.norm(weights[row] - first)
    return moved


def _read_distances(file: h5py.File) -> dict[tuple[str, str], Float[np.ndarray, " T"]]:
    names = list(cast(h5py.Group, file["distance"]).keys()) if "distance" in file else []
    pairs = {name: name.partition("-") for name in names}
    return {(a, b): dataset(file, f"distance/{name}")[:] for name, (a, _, b) in pairs.items()}


def _wall_seconds(path: Path) -> float:
    """The last wall time in `metrics.jsonl`, whose last line may be cut off."""
    if path.exists():
        for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                return float(json.loads(line)["wall_seconds"])
            except (ValueError, KeyError, TypeError):
                continue
    return float("nan")
