"""What a run leaves on disk: `spec.yaml`, `data.h5` and `metrics.jsonl` in a run directory."""

import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import h5py
import numpy as np
from jaxtyping import Float, Int, Shaped

from ._hdf5 import dataset
from .quantities import ZERO_PADDED, axis, quantity, versions

Value = Shaped[np.ndarray, "..."] | float | int

FLUSH_SECONDS = 1.0
_LINE_VALUES = 64  # vectors longer than this stay out of metrics.jsonl
_CHUNK_ROWS = 1024


def set_aside(path: Path) -> Path | None:
    """Rename `path`, if it exists, to the first free of `path`.1, `path`.2, ... and return that."""
    if not os.path.lexists(path):
        return None
    number = 1
    while os.path.lexists(backup := path.with_name(f"{path.name}.{number}")):
        number += 1
    path.rename(backup)
    return backup


def _missing(dtype: np.dtype) -> float:
    """What stands where nothing was written."""
    return np.nan if np.issubdtype(dtype, np.floating) else -1


class _Series:
    """A dataset with one row per recorded step, and the rows that are not on disk yet.

    Single rows cost HDF5 as much as a discrete optimizer step; they are written in blocks.
    """

    def __init__(self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype):
        self.zero_padded = name in ZERO_PADDED
        self.values = np.full(shape, _missing(dtype), dtype)
        layout: dict[str, Any] = {}
        if len(shape) == 2:
            chunks = (min(shape[0], _CHUNK_ROWS), shape[1])
            layout = {"maxshape": (shape[0], None), "chunks": chunks}
        # Handing over the values allocates the whole dataset, so that rows written later leave
        # the structure of the file alone: a killed process then leaves a readable file.
        self.dataset = group.create_dataset(name, data=self.values, track_times=False, **layout)
        self.written = np.zeros(shape[0], bool)
        self._unsaved = (shape[0], 0)

    def set(self, row: int, value: np.ndarray) -> None:
        if value.ndim:
            padding = 0 if self.zero_padded else _missing(self.values.dtype)
            self.values[row] = padding
            self.values[row, : value.size] = value
        else:
            self.values[row] = value
        self.written[row] = True
        self._unsaved = (min(self._unsaved[0], row), max(self._unsaved[1], row + 1))

    def widen(self, size: int) -> None:
        rows, old = self.values.shape
        more = np.full((rows, size - old), _missing(self.values.dtype), self.values.dtype)
        if self.zero_padded:
            more[self.written] = 0
        self.values = np.concatenate([self.values, more], axis=1)
        self.dataset.resize(size, axis=1)
        self.dataset[:, old:] = more

    def save(self) -> None:
        first, end = self._unsaved
        if first < end:
            self.dataset[first:end] = self.values[first:end]
            self._unsaved = (self.values.shape[0], 0)


class Recorder:
    """Writes a run directory; a context manager that leaves it readable however the run ends.

    Rows appear on disk about once a second. `data.h5` depends on nothing but what was written:
    two runs with the same results have the same bytes. Wall times go to `metrics.jsonl` only.
    """

    def __init__(
        self,
        run_dir: Path,
        backup: Path | None,
        file: h5py.File,
        lines: TextIO,
        weights_steps: Int[np.ndarray, " rows"],
    ):
        self.run_dir = run_dir
        self.backup = backup
        """Where a run directory of the same name went; None if there was none."""
        self._file = file
        self._lines = lines
        self._steps = dataset(file, "step")[:]
        self._weights_steps = weights_steps
        self._series: dict[tuple[str, str], _Series] = {}
        self._restructured = True
        self._flushed = -np.inf

    @classmethod
    def create(
        cls,
        output_dir: Path,
        name: str,
        spec_yaml: str,
        steps: Int[np.ndarray, " T"],
        weights_steps: Int[np.ndarray, " rows"],
        attributes: Mapping[str, Any],
        axes: Mapping[str, Int[np.ndarray, " n"]] | None = None,
    ) -> Self:
        """Start the run directory `output_dir/name`, setting an existing one aside.

        `steps` are the step numbers of the rows, `weights_steps` those at which weights will be
        stored, `attributes` (device, precision, seed, ...) are kept beside the versions. `axes`
        has the values along "coordinate" and "output", for series over them.
        """
        run_dir = Path(output_dir) / name
        backup = set_aside(run_dir)
        run_dir.mkdir(parents=True)
        (run_dir / "spec.yaml").write_text(spec_yaml, encoding="utf-8")
        # Newer file formats mark a file that is being written and refuse it after a crash.
        # Nobody else writes here, and cluster file systems often lack locks.
        file = h5py.File(run_dir / "data.h5", "w", libver="earliest", locking=False)
        file.attrs["status"] = "running"
        file.attrs["platform"] = f"{platform.system()} {platform.machine()}"
        for package, version in versions().items():
            file.attrs[f"version_{package}"] = version
        for key, value in attributes.items():
            file.attrs[key] = value
        for scale, values in {"step": steps, **(axes or {})}.items():
            _create_scale(file, scale, np.asarray(values, np.int64))
        lines = (run_dir / "metrics.jsonl").open("w", encoding="utf-8", buffering=1)
        recorder = cls(run_dir, backup, file, lines, np.asarray(weights_steps, np.int64))
        recorder._settle()
        return recorder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and self._file.attrs["status"] == "running":
            self.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")
        self.flush()
        self._file.close()
        self._lines.close()

    def write(
        self,
        row: int,
        processes: Mapping[str, Mapping[str, Value]],
        comparisons: Mapping[str, float],
        wall_seconds: float,
    ) -> None:
        """Write a row: scalars, and vectors over directions, of each process and between them.

        `wall_seconds` is the time since the run started. Rows may come in any order, and the
        processes of one row in several calls; each call adds a line to `metrics.jsonl`.
        """
        everything = {**processes, "": comparisons}
        line: dict[str, Any] = {"step": int(self._steps[row]), "wall_seconds": wall_seconds}
        for process, series in everything.items():
            for name, value in series.items():
                array = np.asarray(value)
                self._require(process, name, array).set(row, array)
                if array.size <= _LINE_VALUES:
                    line[f"{process}/{name}" if process else name] = _plain(array)
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._settle()

    def write_weights(self, row: int, weights: Mapping[str, Float[np.ndarray, " d"]]) -> None:
        """Store the weights of each process, at step `weights_steps[row]`."""
        for process, w in weights.items():
            w = np.asarray(w)
            group = self._file.require_group(process)
            if "weights" not in group:
                self._create_weights(group, w)
            dataset(group, "weights")[row] = w
        self._restructured = True
        self._settle()

    def stop(self, process: str, row: int, reason: str) -> None:
        """Note that `process` went no further than `row`, and why."""
        group = self._file.require_group(process)
        group.attrs["stop_reason"] = reason
        group.attrs["stop_row"] = row
        self._restructured = True
        self._settle()

    def finish(self, status: str, stop_goal: str = "") -> None:
        """Note how the run ended, and which goal ended it early, if one did."""
        self._file.attrs["status"] = status
        if stop_goal:
            self._file.attrs["stop_goal"] = stop_goal

    def flush(self) -> None:
        """Bring every row to disk."""
        for series in self._series.values():
            series.save()
        self._file.flush()
        self._flushed = time.monotonic()
        self._restructured = False

    def _settle(self) -> None:
        """Flush if the file's structure changed or the last flush is long ago.

        Changes of structure are flushed at once: a process killed later then loses rows, not
        the file, and the file's layout does not depend on when the clock asked for a flush.
        """
        if self._restructured or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def _require(self, process: str, name: str, value: np.ndarray) -> _Series:
        """The series `process/name` (or top-level `name`), made wide enough for `value`."""
        if value.ndim > 1:
            raise ValueError(
                f"{process}/{name} has shape {value.shape}: expected a scalar or a vector"
            )
        series = self._series.get((process, name))
        directed = value.ndim and axis(name) == "direction"
        if directed and (series is None or value.size > series.values.shape[1]):
            self._widen(process, max(1, value.size))
        if series is None:
            series = self._series[process, name] = self._create_series(process, name, value)
        return series

    def _widen(self, process: str, size: int) -> None:
        """Room for `size` directions in `process`, in all of its vectors at once."""
        group = self._file.require_group(process)
        if "direction" not in group:
            _create_scale(group, "direction", np.arange(size), maxshape=(None,), chunks=(64,))
        scale = dataset(group, "direction")
        if size > scale.shape[0]:
            scale.resize(size, axis=0)
            scale[:] = np.arange(size)
            for (owner, name), series in self._series.items():
                if owner == process and series.values.ndim == 2 and axis(name) == "direction":
                    series.widen(size)
        self._restructured = True

    def _create_series(self, process: str, name: str, value: np.ndarray) -> _Series:
        group = self._file.require_group(process) if process else self._file
        dtype = value.dtype if np.issubdtype(value.dtype, np.floating) else np.dtype(np.int64)
        scales = [dataset(self._file, "step")]
        if value.ndim:
            along = axis(name)
            scales.append(dataset(group if along == "direction" else self._file, along))
        shape = tuple(scale.shape[0] for scale in scales)
        series = _Series(group, name, shape, dtype)
        _describe(series.dataset, name, scales)
        self._restructured = True
        return series

    def _create_weights(self, group: h5py.Group, w: np.ndarray) -> None:
        if "parameter" not in self._file:
            _create_scale(self._file, "parameter", np.arange(w.size))
        steps = _create_scale(group, "weights_step", self._weights_steps)
        weights = group.create_dataset(
            "weights",
            shape=(self._weights_steps.size, w.size),
            chunks=(1, w.size),
            dtype=w.dtype,
            fillvalue=np.nan,
            track_times=False,
        )
        _describe(weights, "weights", [steps, dataset(self._file, "parameter")])


def _create_scale(group: h5py.Group, name: str, values: np.ndarray, **layout: Any) -> h5py.Dataset:
    scale = group.create_dataset(name, data=values, track_times=False, **layout)
    scale.make_scale(name)
    _describe(scale, name, [])
    return scale


def _describe(item: h5py.Dataset, name: str, scales: list[h5py.Dataset]) -> None:
    about = quantity(name)
    item.attrs["units"] = about.units
    item.attrs["long_name"] = about.long_name
    for i, scale in enumerate(scales):
        item.dims[i].attach_scale(scale)


def _plain(array: np.ndarray) -> Any:
    """`array` as JSON has it, which knows no NaN."""
    missing = ~np.isfinite(array)
    if missing.any():
        array = array.astype(object)
        array[missing] = None
    return array.tolist()
