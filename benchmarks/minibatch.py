"""Central flows with mini-batch noise beside their optimizers: `python -m benchmarks.minibatch`.

Digits, 200 examples, five optimizers with mini-batches of their own, for mini-batches from all
examples to a twentieth of them. Prints a row for each as a Markdown table; means are over the rows
after the first third.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from centralflow_eqx.errors import NumericalStop
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.drive import drive
from centralflow_eqx.experiment.prepare import prepare
from centralflow_eqx.record.row import Row
from centralflow_eqx.spec import load_spec

from .tables import table

SPEC = """
name: minibatch
precision: float64
data: {type: digits, n: 200}
model: {type: mlp, widths: [10, 10], activation: tanh}
loss: {type: mse}
optimizer: {type: gd, lr: 0.3}
processes: [central, discrete_minibatch]
steps: 60
warm_start: 100
minibatch: {size: 200, noise: on, seeds: 5, sharpness_every: 5}
"""
OPTIMIZERS = {
    "gd": "optimizer={type: gd, lr: 0.3}",
    "rmsprop": "optimizer={type: rmsprop, lr: 0.002, beta2: 0.95, bias_correction: true}",
}
SIZES = 200, 50, 25, 10
HEADER = (
    "optimizer",
    "mini-batches",
    "gap, predicted",
    "measured",
    "variance, predicted",
    "measured",
    "loss, predicted",
    "without oscillation",
    "measured",
    "batch sharpness",
    "untrusted rows",
)


class Series:
    """The recorded series of a run, by process and name, after the rows that do not count."""

    def __init__(self, rows: list[Row]):
        self._rows = rows[len(rows) // 3 :]

    def __call__(self, process: str, name: str) -> Float[np.ndarray, "rows ..."]:
        values = [np.asarray(row.series[process].get(name, np.nan)) for row in self._rows]
        room = max((value.size for value in values if value.ndim), default=0)
        return np.array([np.pad(v, (0, room - v.size)) if v.ndim else v for v in values])


def measure(optimizer: str, size: int, draw: str, steps: int) -> list[str]:
    """A row of the table."""
    sets = [
        OPTIMIZERS[optimizer],
        f"minibatch.size={size}",
        f"minibatch.draw={draw}",
        f"steps={steps}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "minibatch.yaml"
        path.write_text(SPEC)
        spec = load_spec(path, sets)
    rows, ended = [], ""
    try:
        for row in drive(*prepare(spec, build_task(spec)), spec.steps):
            if row.series.keys() >= {"central", "discrete_minibatch"}:
                rows.append(row)
            ended = ended or "; ".join(f"{p}: {h.reason}" for p, h in row.stops.items())
    except NumericalStop as stop:
        ended = str(stop)
    return [f"{optimizer}{f' ({ended})' if ended else ''}", f"{size}, {draw}", *cells(Series(rows))]


def cells(series: Series) -> list[str]:
    """What is predicted and measured."""
    flow, optimizers = "central", "discrete_minibatch"
    predicted = series(flow, "sigma_eigenvalues").sum(axis=1)
    theta = series(optimizers, "ensemble_eigenvalues")
    oscillates = np.nan_to_num(theta) > 1
    measured = np.where(oscillates, series(optimizers, "ensemble_variances"), 0).sum(axis=1)

    def weighted(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
        known = np.isfinite(values) & (weights > 1e-12)
        return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan

    numbers = [
        weighted(series(flow, "sharpness_gap"), predicted),
        weighted(series(optimizers, "ensemble_gap"), measured),
        predicted.mean(),
        measured.mean(),
        series(flow, "predicted_loss").mean(),
        series(flow, "train_loss").mean(),
        series(optimizers, "ensemble_loss").mean(),
        np.nanmean(series(optimizers, "batch_sharpness")),
    ]
    return [*(f"{x:.3g}" for x in numbers), str(int(series(flow, "untrusted").sum()))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minibatch", description=__doc__)
    parser.add_argument("optimizers", nargs="*", metavar="OPTIMIZER", help=", ".join(OPTIMIZERS))
    parser.add_argument("--draw", choices=("epochs", "fresh"), default="epochs")
    parser.add_argument("--steps", type=int, default=60, help="recorded steps (default: 60)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    given = parser.parse_args()
    rows = []
    for optimizer in given.optimizers or OPTIMIZERS:
        for size in given.sizes:
            rows.append(measure(optimizer, size, given.draw, given.steps))
            print(*rows[-1], sep="  ", flush=True)
            jax.clear_caches()  # compiled programs of many runs would fill the memory
    print("\n" + table(HEADER, rows))


if __name__ == "__main__":
    main()
