"""Rival models of the edge of stability, side by side: `python -m benchmarks.rivals [NAME ...]`.

Runs an optimizer with its central, rod, edge and stable flow from the same place, and prints a row
for each as a Markdown table. Without names, all of `CASES`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from centralflow_eqx.experiment import advance as programs
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.drive import drive
from centralflow_eqx.experiment.prepare import prepare
from centralflow_eqx.experiment.state import Experiment, RunState
from centralflow_eqx.record.row import Row
from centralflow_eqx.report import smooth
from centralflow_eqx.spec import load_spec

from .tables import table

SPECS = Path(__file__).parents[1] / "specs"
MODELS = "central", "rod", "edge", "stable"
LEAD = 30
"""Rows at the start that the error of the predicted loss leaves aside: smoothing sees one side."""
VISIBLE = 0.01
"""Share of the loss at which an oscillation counts as having set in."""
HEADER = (
    "optimizer",
    "model",
    "rows",
    "distance, % of path",
    "at the end",
    "loss, %",
    "onset",
    "first burst",
    "gradients",
    "products",
    "third derivatives",
)


class Case(NamedTuple):
    """What is run: a spec, with some of its keys replaced."""

    spec: str
    overrides: tuple[str, ...] = ()


CASES = {
    "gd": Case("digits_gd"),
    "heavy_ball": Case("digits_heavy_ball"),
    "rmsprop": Case("digits_rmsprop"),
    "adam": Case("digits_adam"),
    "gd, 4 rods": Case("digits_gd", ("flow.rods=4",)),
    "rmsprop, 4 rods": Case("digits_rmsprop", ("flow.rods=4",)),
    "gd, large steps": Case("digits_gd", ("optimizer.lr=0.6", "warm_start=20", "steps=120")),
    "rmsprop, stiff start": Case("digits_rmsprop", ("warm_start=12", "steps=120")),
}


class Outcome(NamedTuple):
    """How one model compares with the optimizer.

    `distance` is the mean over rows of |midpoint - model| over the path of the midpoints, `end` the
    last one; `loss` the mean of |smoothed loss - smoothed prediction| over the mean loss. `onset`
    is the first step at which the oscillation's share of the loss is `VISIBLE`, `burst` that share
    at its first peak after it. Costs are means over steps, without what observers add.
    """

    rows: int
    distance: float
    end: float
    loss: float
    onset: int | None
    burst: float
    cost: tuple[float, float, float]
    ended: str


def run(case: Case) -> tuple[dict[str, Outcome], tuple[int | None, float]]:
    """What became of every model, and onset and burst of the optimizer itself."""
    processes = f"processes=[discrete, midpoint, {', '.join(MODELS)}]"
    overrides = [processes, "record.raw_spectra=false", *case.overrides]
    spec = load_spec(SPECS / f"{case.spec}.yaml", overrides)
    experiment, state = prepare(spec, build_task(spec))
    costs = {name: own_cost(experiment, state, name, spec.steps) for name in MODELS}
    rows = list(drive(experiment, state, spec.steps))
    midpoints = [np.asarray(row.weights["midpoint"]) for row in rows]
    moved = float(np.linalg.norm(midpoints[-1] - midpoints[0]))
    loss = series(rows, "discrete", "train_loss")
    own = series(rows, "midpoint", "train_loss")
    found = {}
    for name in MODELS:
        key = f"distance/midpoint-{name}"
        distance = np.array([row.comparisons.get(key, np.nan) for row in rows]) / moved
        predicted = series(rows, name, "predicted_loss" if name != "stable" else "train_loss")
        known = np.isfinite(predicted) & np.isfinite(distance)
        off = np.abs(smooth(loss, spec.flow.smoothing) - smooth(predicted, spec.flow.smoothing))
        begun = first_burst(predicted, series(rows, name, "train_loss"), own)
        found[name] = Outcome(
            int(known.sum()),
            float(np.mean(distance[known])),
            float(distance[known][-1]),
            float(np.mean(off[known][LEAD:]) / np.mean(loss[known][LEAD:])),
            *begun,
            costs[name],
            next((row.stops[name].reason for row in rows if name in row.stops), ""),
        )
    return found, first_burst(loss, own, own)


def series(rows: Sequence[Row], process: str, name: str) -> Float[np.ndarray, " T"]:
    """A scalar series, NaN where its process has ended."""
    return np.array([row.series.get(process, {}).get(name, np.nan) for row in rows], float)


def first_burst(
    swinging: Float[np.ndarray, " T"],
    still: Float[np.ndarray, " T"],
    loss: Float[np.ndarray, " T"],
) -> tuple[int | None, float]:
    """The step of the onset and the oscillation's largest share of the loss soon after it."""
    share = np.nan_to_num((swinging - still) / loss)
    above = np.flatnonzero(share > VISIBLE)
    if not above.size:
        return None, float("nan")
    onset = int(above[0])
    return onset, float(share[onset : onset + LEAD].max())


def own_cost(
    experiment: Experiment, state: RunState, name: str, steps: int
) -> tuple[float, float, float]:
    """Gradients, products and third derivatives of a process alone, a step."""
    count = min(steps, experiment.longest)
    moved = programs.move(
        experiment.members[name],
        state.processes[name],
        state.stops[name],
        state.step,
        jnp.asarray(count, jnp.int32),
        experiment.every,
        experiment.loss_limit,
        experiment.rows,
    )
    found: Any = jax.device_get(moved.views.series)
    kept = int(moved.count)

    def mean(what: str) -> float:
        return float(np.mean(found[what][:kept])) if what in found else 0.0

    return mean("gradients"), mean("hvps"), mean("third_derivatives")


def cells(case: str, model: str, found: Outcome) -> list[str]:
    """A row of the table."""
    return [
        case,
        f"{model}{f' ({found.ended})' if found.ended else ''}",
        str(found.rows),
        f"{100 * found.distance:.2f}",
        f"{100 * found.end:.2f}",
        f"{100 * found.loss:.2f}",
        "" if found.onset is None else str(found.onset),
        "" if found.onset is None else f"{100 * found.burst:.1f}",
        *(f"{count:.1f}" for count in found.cost),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *CASES])
    rows = []
    for name in parser.parse_args().names or CASES:
        found, (onset, burst) = run(CASES[name])
        shown = "" if onset is None else str(onset)
        rows.append([name, "the optimizer", *[""] * 4, shown, f"{100 * burst:.1f}", *[""] * 3])
        rows += [cells(name, model, outcome) for model, outcome in found.items()]
        print(*("  ".join(row) for row in rows[-1 - len(found) :]), sep="\n", flush=True)
        jax.clear_caches()  # compiled programs of many specs would fill the memory
    print("\n" + table(HEADER, rows))


if __name__ == "__main__":
    main()
