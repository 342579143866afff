"""RMSProp with several learning rates from one point: larger ones end where the loss is flatter."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import centralflow_eqx as cf

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = cf.make_task(cf.data.Digits(n=100), cf.models.MLP((8, 8)), cf.losses.MSE(), dtype="float64")
warm_up, duration = 0.02, 0.1  # learning rate times steps, the same for all

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for lr, colour in [(5e-4, "tab:blue"), (1e-3, "tab:orange"), (2e-3, "tab:green")]:
    rows = cf.simulate(
        task,
        cf.optimizers.RMSProp(lr),
        task.initial_weights,
        unravel=task.unravel,
        processes=["discrete", "central"],
        steps=round(duration / lr),
        warm_start=round(warm_up / lr),
        settings=cf.Settings(track_above=1.8, initial=3),
    )
    run = cf.collect(rows)
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
