"""The training loss of an oscillating optimizer, and the time average that the flow predicts."""

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
    processes=["discrete", "central"],
    steps=80,
    warm_start=40,
    settings=Settings(track_above=1.8, initial=3),
)
run = collect(rows)
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
right.plot(step, smooth(excess.values, 8), color="tab:blue", label="discrete, smoothed")
right.plot(step, predicted - own, color="black", ls="--", label="predicted average")
right.set(xlabel="step", ylabel="training loss above the central flow's own", ylim=(0, None))
right.legend()
figure.savefig(folder / "loss.png", dpi=120)
