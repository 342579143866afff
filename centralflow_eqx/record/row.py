"""A recorded step."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Halt(NamedTuple):
    """Why a process goes no further, and whether for a numerical reason: then it has no row."""

    reason: str
    numerical: bool


class Weights(Mapping[str, Float[Array, " d"]]):
    """The weights of processes at one step, read from the rows of a chunk when asked for."""

    def __init__(self, rows: Mapping[str, Float[Array, "rows d"]], row: Mapping[str, int]):
        self._rows, self._row = rows, row

    def __getitem__(self, name: str) -> Float[Array, " d"]:
        return self._rows[name][self._row[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


class Row(NamedTuple):
    """What one recorded step showed.

    `series` by process and name, `comparisons` between processes, the weights `[d]` of each
    process, and for processes that go no further the reason.
    """

    step: int
    series: dict[str, dict[str, np.ndarray]]
    comparisons: dict[str, float]
    weights: Mapping[str, Float[Array, " d"]]
    stops: dict[str, Halt]
