"""When a run reached the edge of stability, and what oscillates from there on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..record.reader import Run
from ._noise import knows_noise
from ._smooth import trend

EDGE_ROWS = 10
"""Rows over which the median of the largest eigenvalue must stay near 2."""
LOCK_WIDTH = 0.05
"""How near 2 counts for a central flow, and below 2 for anything."""
OSCILLATING_WIDTH = 0.5
"""How far above 2 still counts for the discrete run and its midpoints."""
OSCILLATES_ABOVE = 1e-6
"""Smallest eigenvalue of Sigma that is no rounding error, relative to the run's largest."""


@dataclass(frozen=True)
class Edge:
    """When a process reached the edge of stability, and where its largest eigenvalue was then.

    `row` and `step` are None if it never did. `median` is taken from there on, `drift` is the
    largest distance from 2 from `EDGE_ROWS` rows later on (NaN if there are none).
    """

    process: str
    row: int | None
    step: int | None
    median: float = np.nan
    drift: float = np.nan


def find_edge(
    process: str, steps: np.ndarray, largest: Float[np.ndarray, " T"], above: float
) -> Edge:
    """The first row from which the largest effective eigenvalue stays near 2.

    Near is from 2 - `LOCK_WIDTH` to 2 + `above`, for the row itself and for the median of the
    `EDGE_ROWS` rows from it (fewer at the end of the run, but half of them at least).
    """

    def near(value: float) -> bool:
        return 2 - LOCK_WIDTH <= value <= 2 + above

    rows = np.flatnonzero(np.isfinite(largest))
    values = largest[rows]
    for i in range(values.size - EDGE_ROWS // 2 + 1):
        if near(values[i]) and near(float(np.median(values[i : i + EDGE_ROWS]))):
            row, settled = int(rows[i]), values[i + EDGE_ROWS :]
            drift = float(np.max(np.abs(settled - 2))) if settled.size else np.nan
            return Edge(process, row, int(steps[row]), float(np.median(values[i:])), drift)
    return Edge(process, None, None)


def edges(run: Run) -> Iterator[Edge]:
    """The edge of the flows that stay there, the midpoints and the discrete run, where present.

    Flows that know the noise of mini-batches stay below it.
    """
    for process in ("central", "stationary", "midpoint", "discrete"):
        values = run.get(process, "eigenvalues")
        if values is not None and not knows_noise(run, process):
            above = OSCILLATING_WIDTH if process in ("midpoint", "discrete") else LOCK_WIDTH
            yield find_edge(process, run.steps, values[:, 0], above)


def first_oscillating_row(run: Run) -> int | None:
    """The row from which the discrete run oscillates; None if it never did.

    The first edge that is known, or else the first row at which a flow oscillates. A run that
    says nothing about either may oscillate from the start.
    """
    known = list(edges(run))
    rows = [edge.row for edge in known if edge.row is not None]
    rows += np.flatnonzero(oscillating(run).any(axis=1)).tolist()
    return rows[0] if rows else (None if known else 0)


def smoothed(
    run: Run, values: Float[np.ndarray, "..."], process: str = "discrete"
) -> Float[np.ndarray, "..."]:
    """`values` smoothed in time from where `process` oscillates, NaN before.

    Without oscillation there is nothing to average, and averaging would only flatten the curve.
    The noise of mini-batches is there from the start.
    """
    first = 0 if process == "discrete_minibatch" else first_oscillating_row(run)
    after = values.copy()
    after[:first] = np.nan
    return trend(after, run.smoothing)


def oscillating(run: Run, flow: str | None = None) -> Bool[np.ndarray, "T k"]:
    """Where a flow's Sigma has an eigenvalue above rounding; `[T, 0]` without a flow.

    `flow` is the first of the run's flows if it is not given.
    """
    flow = flow or next(iter(run.flows()), "")
    variances = run.get(flow, "sigma_eigenvalues")
    if variances is None:
        return np.zeros((run.steps.size, 0), bool)
    # A run without oscillation has nothing but rounding errors, or zeros.
    floor = max(float(np.nanmax(variances)) * OSCILLATES_ABOVE, 1e-30)
    return np.nan_to_num(variances) > floor
