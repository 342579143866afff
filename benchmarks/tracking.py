"""How closely central flows follow their optimizers: `python -m benchmarks.tracking [SPEC ...]`.

Runs every spec (all of `specs/digits_*.yaml` unless some are named) and prints one row for each as
a Markdown table.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from centralflow_eqx.errors import NumericalStop
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.drive import drive
from centralflow_eqx.experiment.prepare import prepare
from centralflow_eqx.record.row import Row
from centralflow_eqx.report import smooth
from centralflow_eqx.spec import load_spec

from .tables import table

SPECS = Path(__file__).parents[1] / "specs"
AT_THE_EDGE = 1.98
SETTLING = 15
"""Rows after the onset that do not count for the lock."""
LEAD = 30
"""Rows at the start that the error of the predicted loss leaves aside: smoothing sees one side."""
HEADER = (
    "optimizer",
    "rows at the edge",
    "distance, % of path",
    "loss, %",
    "locked eigenvalue",
    "directions",
    "cubic",
    "quartic",
    "untrusted rows",
)


class Tracking(NamedTuple):
    """Agreement of a central flow and its optimizer over one run.

    `distance` is the mean over rows of |midpoint - flow| over |w_end - w_0| of the midpoints,
    `loss` the mean of |smoothed loss - smoothed prediction| over the mean loss, `lock` the range of
    the largest effective eigenvalue from `SETTLING` rows after the onset, wherever it is above
    `AT_THE_EDGE`.
    """

    name: str
    rows_at_edge: int
    distance: float
    loss: float
    lock: tuple[float, float]
    directions: int
    cubic: float
    quartic: float
    untrusted: int
    ended: str


def track(path: Path) -> Tracking:
    """Run the spec at `path` and measure."""
    spec = load_spec(path, ["processes=[discrete, midpoint, central]", "record.every=1"])
    rows: list[Row] = []
    midpoints: list[np.ndarray] = []
    ended = ""
    try:
        for row in drive(*prepare(spec, build_task(spec)), spec.steps):
            rows.append(row)
            midpoints.append(np.asarray(row.weights["midpoint"]))
    except NumericalStop as stop:
        ended = str(stop)

    def series(process: str, name: str) -> np.ndarray:
        return np.array([row.series[process][name] for row in rows])

    moved = np.linalg.norm(midpoints[-1] - midpoints[0])
    distance = np.array([row.comparisons["distance/midpoint-central"] for row in rows])
    loss = series("discrete", "train_loss")
    smoothed = smooth(loss, spec.flow.smoothing)
    predicted = smooth(series("central", "predicted_loss"), spec.flow.smoothing)
    largest = np.array([row.series["central"]["eigenvalues"][0] for row in rows])
    edge = largest > AT_THE_EDGE
    settled = edge & (np.arange(edge.size) >= np.argmax(edge) + SETTLING)
    lock = (largest[settled].min(), largest[settled].max()) if settled.any() else (np.nan, np.nan)

    def worst(name: str) -> float:
        return float(max(np.nanmax(row.series["central"][name]) for row in rows))

    return Tracking(
        path.stem.removeprefix("digits_"),
        int(edge.sum()),
        float(distance.mean() / moved),
        float(np.abs(smoothed - predicted)[LEAD:].mean() / loss[LEAD:].mean()),
        lock,
        int(series("central", "critical_directions").max()),
        worst("trust_cubic"),
        worst("trust_quartic"),
        int(series("central", "untrusted").sum()),
        ended,
    )


def cells(found: Tracking) -> list[str]:
    """A row of the table."""
    low, high = found.lock
    return [
        f"{found.name}{f' ({found.ended})' if found.ended else ''}",
        str(found.rows_at_edge),
        f"{100 * found.distance:.2f}",
        f"{100 * found.loss:.2f}",
        f"{low:.3f} to {high:.3f}",
        str(found.directions),
        f"{found.cubic:.2f}",
        f"{found.quartic:.3f}",
        str(found.untrusted),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("specs", nargs="*", type=Path, metavar="SPEC")
    paths = parser.parse_args().specs or sorted(SPECS.glob("digits_*.yaml"))
    rows = []
    for path in paths:
        rows.append(cells(track(path)))
        print(*rows[-1], sep="  ", flush=True)
        jax.clear_caches()  # compiled programs of many specs would fill the memory
    print("\n" + table(HEADER, rows))


if __name__ == "__main__":
    main()
