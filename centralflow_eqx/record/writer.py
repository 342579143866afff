"""What a run leaves on disk: `spec.yaml`, `data.h5` and `metrics.jsonl` in a run directory."""

import contextlib
import json
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int, Shaped

from ._data_file import DataFile
from .files import set_aside, write_sealed, write_whole
from .owner import Owner, check_free
from .quantities import versions
from .reader import opened

Value = Shaped[np.ndarray, "..."] | float | int

PUBLISH_SECONDS = 1.0
_PUBLISH_SHARE = 0.05
"""Seconds between two times that rows are brought to disk, and the share of a run that this may
take: large files are written less often."""
_LINE_VALUES = 64  # vectors longer than this stay out of metrics.jsonl


@dataclass(frozen=True)
class Layout:
    """What a run directory is begun with.

    `steps` are the step numbers of the rows, `weights_steps` those at which weights will be stored,
    `attributes` (device, precision, seed, ...) are kept beside the versions. `axes` has the values
    along "coordinate" and "output", for series over them.
    """

    spec_yaml: str
    steps: Int[np.ndarray, " T"]
    weights_steps: Int[np.ndarray, " rows"]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Int[np.ndarray, " n"]] = field(default_factory=dict)

    def data_file(self) -> DataFile:
        """The data of a run that has no rows yet."""
        about = {"status": "running", "platform": f"{platform.system()} {platform.machine()}"}
        about |= {f"version_{package}": version for package, version in versions().items()}
        weights_steps = np.asarray(self.weights_steps, np.int64)
        return DataFile(self.steps, weights_steps, about | dict(self.attributes), self.axes)


@dataclass(frozen=True)
class Earlier:
    """What is kept of a run that goes on: its rows before step `step`, and what had stopped.

    `stops` has the row and the reason by process.
    """

    step: int
    stops: Mapping[str, tuple[int, str]]


class Recorder:
    """Writes a run directory; a context manager that leaves it readable however the run ends.

    Rows appear on disk about once a second, in `data.h5` and then in `metrics.jsonl`. `data.h5` is
    replaced as a whole, so that it can be read at any time, also after the process was killed. It
    depends on nothing but what was written: two runs with the same results have the same bytes.
    Wall times go to `metrics.jsonl` only. What cannot be written raises `OSError`.
    """

    def __init__(self, run_dir: Path, backup: Path | None, layout: Layout, owner: Owner):
        self.run_dir = run_dir
        self.backup = backup
        """Where a run directory of the same name went; None if there was none."""
        self._owner = owner
        self._layout = layout
        self._data = layout.data_file()
        self._lines: list[str] = []
        self._published, self._cost = -np.inf, 0.0

    @classmethod
    def create(cls, run_dir: Path, layout: Layout) -> Self:
        """Start the run directory, setting an existing one aside.

        Raises `DirectoryInUse` if another process writes it.
        """
        check_free(run_dir)
        backup = set_aside(run_dir)
        run_dir.mkdir(parents=True)
        owner = Owner(run_dir).__enter__()
        try:
            recorder = cls(run_dir, backup, layout, owner)
            recorder._write_spec()
            (run_dir / "metrics.jsonl").write_bytes(b"")
            recorder.publish()
        except BaseException:
            owner.__exit__()
            raise
        return recorder

    @classmethod
    def reopen(cls, run_dir: Path, layout: Layout, earlier: Earlier) -> Self:
        """Go on in a run directory; its rows from `earlier.step` on are forgotten.

        Raises `DirectoryInUse` if another process writes it, `InputError` if its data cannot be
        read: then nothing has been changed.
        """
        owner = Owner(run_dir).__enter__()
        try:
            recorder = cls(run_dir, None, layout, owner)
            rows = int(np.searchsorted(layout.steps, earlier.step))
            weights_rows = int(np.searchsorted(layout.weights_steps, earlier.step))
            with opened(run_dir) as file:
                recorder._data.restore(file, rows, weights_rows)
            for process, (row, reason) in earlier.stops.items():
                recorder._data.set_stop(process, row, reason)
            recorder._keep_lines(earlier.step)
            recorder._write_spec()
            recorder.publish()
        except BaseException:
            owner.__exit__()
            raise
        return recorder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None or not issubclass(kind, OSError):
                if kind is not None and self._data.attributes["status"] == "running":
                    self.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")
                self.publish()
            elif not self.run_dir.exists():
                self._rescue()
        finally:
            self._data.close()
            self._owner.__exit__()

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
        line: dict[str, Any] = {"step": int(self._layout.steps[row]), "wall_seconds": wall_seconds}
        for process, series in everything.items():
            for name, value in series.items():
                array = np.asarray(value)
                self._data.set(process, name, row, array)
                if array.size <= _LINE_VALUES:
                    line[f"{process}/{name}" if process else name] = _plain(array)
        self._lines.append(json.dumps(line, allow_nan=False) + "\n")

    def write_weights(self, row: int, weights: Mapping[str, Float[np.ndarray, " d"]]) -> None:
        """Store the weights of each process, at step `weights_steps[row]`."""
        for process, w in weights.items():
            self._data.set_weights(process, row, np.asarray(w))

    def stop(self, process: str, row: int, reason: str) -> None:
        """Note that `process` went no further than `row`, and why."""
        self._data.set_stop(process, row, reason)

    def finish(self, status: str, stop_goal: str = "") -> None:
        """Note how the run ended, and which goal ended it early, if one did."""
        self._data.attributes["status"] = status
        if stop_goal:
            self._data.attributes["stop_goal"] = stop_goal

    def publish(self) -> None:
        """Bring every row to disk."""
        begun = time.monotonic()
        if not self._owner.holds():
            raise OSError(f"{self.run_dir} has been taken by another process")
        image = self._data.image()
        write_whole(self.run_dir / "data.h5", lambda file: write_sealed(file, image))
        if self._lines:
            with (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write("".join(self._lines))
            self._lines.clear()
        self._published = time.monotonic()
        self._cost = self._published - begun

    def settle(self) -> None:
        """Bring rows to disk if it is time to."""
        pause = max(PUBLISH_SECONDS, self._cost / _PUBLISH_SHARE)
        if time.monotonic() - self._published >= pause:
            self.publish()

    def _rescue(self) -> None:
        """Write what is in memory, all but older lines, in place of a directory that vanished."""
        with contextlib.suppress(OSError):
            self.run_dir.mkdir(parents=True)
            self.finish("failed")
            self._write_spec()
            self.publish()

    def _write_spec(self) -> None:
        text = self._layout.spec_yaml.encode()
        write_whole(self.run_dir / "spec.yaml", lambda file: file.write(text))

    def _keep_lines(self, step: int) -> None:
        """Forget the lines of `metrics.jsonl` from `step` on, and one that was cut off."""
        path = self.run_dir / "metrics.jsonl"
        found = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in found if _step_of(line) < step]
        if len({_step_of(line) for line in kept}) < np.sum(self._layout.steps < step):
            warnings.warn(f"{path} lacks rows; data.h5 has them", stacklevel=3)
        write_whole(path, lambda file: file.writelines(kept))


def _step_of(line: bytes) -> float:
    """The step of a line; infinite if it is none."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else np.inf
    except (ValueError, KeyError, TypeError):
        return np.inf


def _plain(array: np.ndarray) -> Any:
    """`array` as JSON has it, which knows no NaN."""
    missing = ~np.isfinite(array)
    if missing.any():
        array = array.astype(object)
        array[missing] = None
    return array.tolist()
