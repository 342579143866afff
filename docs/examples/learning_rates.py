"""RMSProp with several learning rates from one point: larger ones end where the loss is flatter."""

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
from centralflow_eqx.task import make_task

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = make_task(Digits(n=100), MLP((8, 8)), MSE(), dtype="float64")
warm_up, duration = 0.02, 0.1  # learning rate times steps, the same for all

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for lr, colour in [(5e-4, "tab:blue"), (1e-3, "tab:orange"), (2e-3, "tab:green")]:
    rows = simulate(
        task,
        RMSProp(lr),
        task.initial_weights,
        unravel=task.unravel,
        processes=["discrete", "central"],
        steps=round(duration / lr),
        warm_start=round(warm_up / lr),
        settings=Settings(track_above=1.8, initial=3),
    )
    run = collect(rows)
    time = warm_up + lr * run["step"]
    for process, width in [("discrete", 0.5), ("central", 1.8)]:
        sharpness = run[process]["raw_eigenvalues"].sel(direction=0)
        left.plot(time, sharpness, color=colour, lw=width)
    loss = run["central/predicted_loss"]
    right.plot(time, loss, color=colour, label=f"learning rate {lr}")
left.set(xlabel="learning rate x step", ylabel="largest eigenvalue of the Hessian", ylim=(0, None))
left.set(title="thin: discrete, thick: central flow")
right.set(xlabel="learning rate x step", ylabel="predicted average of the training loss")
right.legend()
figure.savefig(folder / "learning_rates.png", dpi=120)
