"""A run as its directory has it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import correlate1d

from ..errors import InputError, Location, Problem
from ..spec.document import parse
from .writer import dataset

_DEFAULT_SMOOTHING = 15.0
FLOWS = ("central", "stationary", "ablated")
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


def smooth(values: Float[np.ndarray, "..."], width: float) -> Float[np.ndarray, "..."]:
    """Gaussian average over rows; `width` is the Gaussian's standard deviation in rows.

    `smoothing: 15` in a spec is a width of 15 recorded steps. The weights are cut off at four
    widths and renormalised over the rows that exist, so the ends see one side only. NaN stay NaN
    and do not spread. A width of 0 leaves the values as they are.
    """
    if width == 0:
        return values
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        average = _moment(values, known, width, 0) / _moment(1.0, known, width, 0)
    return np.where(known, average, np.nan)


def trend(values: Float[np.ndarray, "..."], width: float) -> Float[np.ndarray, "..."]:
    """Like `smooth`, without its shift at the ends of a curve that rises or falls.

    At each row, the value of the straight line that is fitted with the weights of `smooth`, held
    within the range of the values. Away from ends and gaps the two agree; at ends, this is noisier.
    """
    known = np.isfinite(values)
    if width == 0 or not known.any():
        return values
    w0, w1, w2 = (_moment(1.0, known, width, power) for power in range(3))
    y0, y1 = (_moment(values, known, width, power) for power in range(2))
    spread = w0 * w2 - w1**2
    with np.errstate(invalid="ignore", divide="ignore"):
        line = np.where(spread > 1e-9 * w0 * w2, (w2 * y0 - w1 * y1) / spread, y0 / w0)
    lowest = np.where(known, values, np.inf).min(axis=0)
    highest = np.where(known, values, -np.inf).max(axis=0)
    return np.where(known, np.clip(line, lowest, highest), np.nan)


def _moment(
    values: Float[np.ndarray, "..."] | float,
    known: Bool[np.ndarray, "..."],
    width: float,
    power: int,
) -> Float[np.ndarray, "..."]:
    """Gaussian-weighted sums, at each row, of the known values times a power of their offset."""
    radius = min(int(np.ceil(4 * width)), len(known))
    offset = np.arange(-radius, radius + 1.0)
    kernel = np.exp(-0.5 * (offset / width) ** 2) * offset**power
    return correlate1d(np.where(known, values, 0.0), kernel, axis=0, mode="constant")


def ranges(mask: Bool[np.ndarray, " T"]) -> list[tuple[int, int]]:
    """First and last row of every stretch where `mask` holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def load_run(run_dir: Path) -> Run:
    """Read a run directory, finished or not; `InputError` if it is none."""
    run_dir = Path(run_dir)
    spec, name, smoothing = _read_spec(run_dir / "spec.yaml")
    try:
        # A run in progress may be looked at; its writer holds no lock.
        file = h5py.File(run_dir / "data.h5", "r", locking=False)
    except OSError as error:
        raise _refused(run_dir / "data.h5", f"cannot be read: {error}") from None
    with file:
        if "step" not in file:
            raise _refused(run_dir / "data.h5", "has no dataset `step`; is it a run's data?")
        steps = dataset(file, "step")[:]
        groups = {k: g for k, g in file.items() if isinstance(g, h5py.Group) and k != "distance"}
        return Run(
            steps=steps,
            series={name: _read_series(group) for name, group in groups.items()},
            distances=_read_distances(file),
            stops={
                # A process may stop after the last row.
                name: Stop(
                    min(int(cast(int, group.attrs["stop_row"])), steps.size - 1),
                    str(group.attrs["stop_reason"]),
                )
                for name, group in groups.items()
                if "stop_reason" in group.attrs
            },
            attributes=dict(sorted(file.attrs.items())),
            name=name,
            spec=spec,
            smoothing=smoothing,
            wall_seconds=_wall_seconds(run_dir / "metrics.jsonl"),
            coordinates=tuple(int(i) for i in dataset(file, "coordinate")[:])
            if "coordinate" in file
            else (),
        )


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
    content = parse(text, str(path))[0].plain() or {}
    smoothing = content.get("flow", {}).get("smoothing", _DEFAULT_SMOOTHING)
    return text, str(content.get("name", path.parent.name)), float(smoothing)


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
        for line in reversed(path.read_text(encoding="utf-8").splitlines()):
            try:
                return float(json.loads(line)["wall_seconds"])
            except (ValueError, KeyError):
                continue
    return float("nan")
