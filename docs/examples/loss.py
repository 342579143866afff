"""The training loss of an oscillating optimizer, and the time average that the flow predicts."""

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
    processes=["discrete", "central"],
    steps=80,
    warm_start=40,
    settings=cf.Settings(track_above=1.8, initial=3),
)
run = cf.collect(rows)
step = run["step"]
loss, own = run["discrete/train_loss"], run["central/train_loss"]
predicted = run["central/predicted_loss"]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.plot(step, loss, color="tab:blue", label="discrete")
left.plot(step, own, color="tab:orange", label="central flow, its own")
left.plot(step, predicted, color="black", ls="--", label="central flow, predicted average")
left.set(xlabel="step", ylabel=loss.attrs["long_name"])
left.legend()
excess = loss - own
right.plot(step, excess, color="tab:blue", lw=0.6, alpha=0.6, label="discrete")
right.plot(step, cf.smooth(excess.values, 8), color="tab:blue", label="discrete, smoothed")
right.plot(step, predicted - own, color="black", ls="--", label="predicted average")
right.set(xlabel="step", ylabel="training loss above the central flow's own", ylim=(0, None))
right.legend()
figure.savefig(folder / "loss.png", dpi=120)
