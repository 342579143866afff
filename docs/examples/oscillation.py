"""How large the oscillation is, predicted and measured, and how far the processes part."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import centralflow_eqx as cf

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = cf.make_task(cf.data.Digits(n=100), cf.models.MLP((8, 8)), cf.losses.MSE(), dtype="float64")
rows = cf.simulate(
    task,
    cf.optimizers.RMSProp(1e-3),
    task.initial_weights,
    unravel=task.unravel,
    steps=80,
    warm_start=40,
    settings=cf.Settings(track_above=1.8, initial=3),
)
run = cf.collect(rows)
central = run["central"]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for direction, colour in enumerate(["tab:blue", "tab:orange"]):
    predicted = central["sigma_eigenvalues"].sel(direction=direction)
    measured = central["empirical_variances"].sel(direction=direction)
    left.plot(run["step"], predicted, "--", color=colour, label=f"{direction + 1}, predicted")
    average = cf.smooth(measured.values, 8)
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
