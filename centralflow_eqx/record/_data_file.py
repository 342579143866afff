"""The content of `data.h5`, in memory: what grows while a run goes on, and what it looks like."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Self

import h5py
import numpy as np
from jaxtyping import Float, Int

from ._hdf5 import dataset
from .quantities import ZERO_PADDED, axis, quantity

_CHUNK_ROWS = 1024
_BLOCK_BYTES = 2**20
_NAMES = itertools.count()


def _missing(dtype: np.dtype) -> float:
    """What stands where nothing was written."""
    return np.nan if np.issubdtype(dtype, np.floating) else -1


class _Series:
    """A dataset with one row per recorded step, and the rows that are not in the file yet.

    Single rows cost HDF5 as much as a discrete optimizer step; they are written in blocks.
    """

    def __init__(self, group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype):
        self.zero_padded = name in ZERO_PADDED
        self.values = np.full(shape, _missing(dtype), dtype)
        # Handing over the values allocates the whole dataset, so that rows written later leave
        # the structure of the file alone.
        self.dataset = group.create_dataset(
            name,
            data=self.values,
            maxshape=(shape[0], *(None for _ in shape[1:])),
            chunks=(min(shape[0], _CHUNK_ROWS), *shape[1:]),
            track_times=False,
        )
        self.written = np.zeros(shape[0], bool)
        self._unsaved = (shape[0], 0)

    def set(self, row: int, value: np.ndarray) -> None:
        if value.ndim:
            padding = 0 if self.zero_padded else _missing(self.values.dtype)
            self.values[row] = padding
            self.values[row, : value.size] = value
        else:
            self.values[row] = value
        self._touched(row, row + 1)

    def restore(self, rows: np.ndarray) -> None:
        """The first rows as they were recorded earlier."""
        self.values[: len(rows)] = rows
        self._touched(0, len(rows))
        if self.zero_padded:
            self.written[: len(rows)] = ~np.isnan(rows[:, 0])

    def _touched(self, first: int, end: int) -> None:
        self.written[first:end] = True
        self._unsaved = (min(self._unsaved[0], first), max(self._unsaved[1], end))

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


class DataFile:
    """An HDF5 file in memory: its bytes depend on nothing but what was recorded.

    `steps` are the step numbers of its rows, `weights_steps` those at which weights are stored,
    `axes` the values along "coordinate" and "output".
    """

    def __init__(
        self,
        steps: Int[np.ndarray, " T"],
        weights_steps: Int[np.ndarray, " rows"],
        attributes: Mapping[str, Any],
        axes: Mapping[str, Int[np.ndarray, " n"]],
    ):
        # The oldest format that can be read everywhere. Nothing is on disk by this name.
        self._file = h5py.File(
            f"data-{next(_NAMES)}.h5",
            "w",
            driver="core",
            backing_store=False,
            block_size=_BLOCK_BYTES,
            libver="earliest",
        )
        self.attributes = self._file.attrs
        for key, value in attributes.items():
            self.attributes[key] = value
        for scale, values in {"step": steps, **axes}.items():
            _create_scale(self._file, scale, np.asarray(values, np.int64))
        self._steps, self._weights_steps = steps, weights_steps
        self._series: dict[tuple[str, str], _Series] = {}
        self._settle()

    def image(self) -> bytes:
        """The file, with everything that was recorded."""
        for series in self._series.values():
            series.save()
        self._file.flush()
        return self._file.id.get_file_image()

    def close(self) -> None:
        """Free its memory."""
        self._file.close()

    def set(self, process: str, name: str, row: int, value: np.ndarray) -> None:
        """Record a scalar, or a vector over directions, of a process or, with no name, of none."""
        self._require(process, name, value).set(row, value)

    def set_weights(self, process: str, row: int, w: Float[np.ndarray, " d"]) -> None:
        """Store the weights of a process, at step `weights_steps[row]`."""
        group = self._file.require_group(process)
        if "weights" not in group:
            self._create_weights(group, w)
        dataset(group, "weights")[row] = w
        self._settle()

    def set_stop(self, process: str, row: int, reason: str) -> None:
        """Note that `process` went no further than `row`, and why."""
        group = self._file.require_group(process)
        group.attrs["stop_reason"] = reason
        group.attrs["stop_row"] = row
        self._settle()

    def restore(self, earlier: h5py.File, rows: int, weights_rows: int) -> Self:
        """Take over the first rows of an earlier file, and so many of its weights."""
        for process, name, item in _series_in(earlier):
            values = item[:rows]
            if np.issubdtype(item.dtype, np.floating):
                untouched = np.isnan(values).all()
            else:
                untouched = (values == _missing(item.dtype)).all()
            if name == "weights":
                for row, w in enumerate(item[:weights_rows]):
                    self.set_weights(process, row, w)
            elif not untouched:  # else it belongs to rows that are recorded anew
                self._require(process, name, values[0]).restore(values)
        self._settle()
        return self

    def _settle(self) -> None:
        """Bring a new structure to the file before anything else is written.

        Then the file's layout does not depend on when somebody asked for its image.
        """
        for series in self._series.values():
            series.save()
        self._file.flush()

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
            self._settle()
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
        self._settle()

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


def _series_in(file: h5py.File) -> Iterator[tuple[str, str, h5py.Dataset]]:
    """Process, name and dataset of everything that has a row for a step, in order of creation."""
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not item.is_scale:
            found.append((path, item))

    file.visititems(visit)
    for path, item in found:
        process, _, name = path.partition("/")
        yield ("", path, item) if process == "distance" else (process, name, item)


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
