"""The series of a run as one table of numbers, for programs that know nothing of HDF5."""

import csv
from collections.abc import Iterator
from typing import TextIO

import numpy as np
from jaxtyping import Float

from .reader import Run

COLUMNS = "step", "process", "series", "index", "value"
"""A line is one value: of which optimizer step, of whom, which series, where in a vector, and it.

`process` is that of the series, or the pair whose distance it is; `index` is empty for scalars, and
for vectors the direction, counted from 0, the weight, or the output.
"""


def write_csv(run: Run, file: TextIO) -> int:
    """Write what a run recorded, with `COLUMNS` as the first line; the number of values.

    Values are written so that reading gives the same float64. What is NaN has no line.
    """
    table = csv.writer(file, lineterminator="\n")
    table.writerow(COLUMNS)
    written = 0
    for line in _lines(run):
        table.writerow(line)
        written += 1
    return written


def _lines(run: Run) -> Iterator[tuple]:
    for process, found in run.series.items():
        for name, values in found.items():
            if values.shape[:1] == run.steps.shape and values.ndim <= 2:
                yield from _values(run, process, name, values)
    for pair, values in run.distances.items():
        yield from _values(run, "-".join(pair), "distance", values)


def _values(run: Run, process: str, name: str, values: Float[np.ndarray, "..."]) -> Iterator[tuple]:
    labels = run.coordinates if name.endswith("_at") else ()
    for place in np.argwhere(~np.isnan(values)):
        row, *column = map(int, place)
        index = [labels[i] if labels else i for i in column] or [""]
        yield int(run.steps[row]), process, name, *index, repr(float(values[tuple(place)]))
