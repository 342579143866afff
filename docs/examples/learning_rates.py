"""Gradient descent with several learning rates: larger ones end where the loss is flatter."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from centralflow_eqx.arrays import collect
from centralflow_eqx.curvature import EigenTracker
from centralflow_eqx.data import Digits
from centralflow_eqx.losses import MSE
from centralflow_eqx.models import MLP
from centralflow_eqx.optimizers import GD
from centralflow_eqx.simulate import simulate
from centralflow_eqx.task import make_task

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = make_task(Digits(n=100), MLP((8, 8)), MSE(), dtype="float64")
duration = 24  # learning rate times steps, the same for all

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for lr, colour in [(0.15, "tab:blue"), (0.2, "tab:orange"), (0.3, "tab:green")]:
    rows = simulate(
        task,
        GD(lr),
        task.initial_weights,
        unravel=task.unravel,
        processes=["discrete", "central"],
        steps=round(duration / lr),
        record_every=2,
        tracker=EigenTracker(track_above=1.8),
    )
    run = collect(rows)
    central, time = run["central"], lr * run["step"]
    for process, width in [("discrete", 0.5), ("central", 1.8)]:
        left.plot(time, run[process]["raw_eigenvalues"].sel(direction=0), color=colour, lw=width)
    left.axhline(2 / lr, color=colour, ls=":")
    right.plot(time, central["predicted_loss"], color=colour, label=f"learning rate {lr}")
left.set(xlabel="learning rate x step", ylabel="largest eigenvalue of the Hessian", ylim=(0, None))
left.set(title="thin: discrete, thick: central flow, dotted: 2 / learning rate")
right.set(xlabel="learning rate x step", ylabel="predicted average of the training loss")
right.legend()
figure.savefig(folder / "learning_rates.png", dpi=120)
