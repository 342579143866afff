"""How large the oscillation is, predicted and measured, and how far the processes part."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from centralflow_eqx.data import Digits
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.losses import MSE
from centralflow_eqx.models import MLP
from centralflow_eqx.optimizers import RMSProp
from centralflow_eqx.record.arrays import collect
from centralflow_eqx.report import smooth
from centralflow_eqx.task import make_task

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = make_task(Digits(n=100), MLP((8, 8)), MSE(), dtype="float64")
rows = simulate(
    task,
    RMSProp(1e-3),
    task.initial_weights,
    unravel=task.unravel,
    steps=80,
    warm_start=40,
    settings=Settings(track_above=1.8, initial=3),
)
run = collect(rows)
central = run["central"]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for direction, colour in enumerate(["tab:blue", "tab:orange"]):
    predicted = central["sigma_eigenvalues"].sel(direction=direction)
    measured = central["empirical_variances"].sel(direction=direction)
    left.plot(run["step"], predicted, "--", color=colour, label=f"{direction + 1}, predicted")
    average = smooth(measured.values, 8)
    left.plot(run["step"], average, color=colour, label=f"{direction + 1}, measured")
left.set(xlabel="step", ylabel="variance of the oscillation")
left.legend(title="direction")
for pair, distance in run["distance"].data_vars.items():
    if pair.endswith("-central") or pair == "midpoint-stable":
        right.plot(run["step"], distance, label=pair.replace("-", " to "))
right.plot(run["step"], central["distance_moved"], "k:", label="central to its start")
right.set(xlabel="step", ylabel="distance between weights", yscale="log")
right.set(ylim=(1e-3, None))
right.legend()
figure.savefig(folder / "oscillation.png", dpi=120)
