"""Effective eigenvalues at the edge of stability: the central flow locks at 2."""

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
    processes=["discrete", "midpoint", "central"],
    steps=80,
    warm_start=40,
    settings=cf.Settings(track_above=1.8, initial=3),
)
run = cf.collect(rows)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
looks = {"discrete": ("tab:blue", 0.6), "midpoint": ("tab:cyan", 1.2), "central": ("tab:red", 1.6)}
for process, (colour, width) in looks.items():
    effective = run[process]["eigenvalues"]
    # The discrete run's smaller eigenvalues swing around the midpoints'.
    shown = effective[:, :1] if process == "discrete" else effective
    lines = left.plot(run["step"], shown, color=colour, lw=width)
    lines[0].set_label(process)
    sharpness = run[process]["raw_eigenvalues"].sel(direction=0)
    right.plot(run["step"], sharpness, color=colour, lw=width, label=process)
left.axhline(2, color="black", ls=":", label="critical value 2")
left.set(xlabel="step", ylabel="effective eigenvalues", ylim=(1, 2.8))
right.set(xlabel="step", ylabel="largest eigenvalue of the Hessian")
left.legend()
figure.savefig(folder / "eigenvalues.png", dpi=120)
