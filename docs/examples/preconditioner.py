"""RMSProp's preconditioner beside the stationary one that its averages tend to.

The averages of squared gradients would settle at a value that depends on the weights alone, if the
weights stood still. The stationary flow has them there at all times; the ablated flow lets the
oscillation act on the averages, but does not let it push the weights to flatter regions.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt

from centralflow_eqx.data import Digits
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.losses import MSE
from centralflow_eqx.models import MLP
from centralflow_eqx.optimizers import RMSProp
from centralflow_eqx.processes.probes import Preconditioners
from centralflow_eqx.record.arrays import collect
from centralflow_eqx.task import make_task

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = make_task(Digits(n=100), MLP((8, 8)), MSE(), dtype="float64")
run = collect(
    simulate(
        task,
        RMSProp(1e-3),
        task.initial_weights,
        unravel=task.unravel,
        processes=["central", "stationary", "ablated"],
        steps=48,
        warm_start=40,
        settings=Settings(track_above=1.8, initial=3),
        probes=[Preconditioners(indices=jnp.array([600]), every=6)],
    )
)
measured = run["central/stationary"].dataset.dropna("step", how="all")

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
left.plot(measured["step"], measured["cosine"], "k.-")
left.set(xlabel="step", ylabel="cosine of nu and its stationary value")
names = {
    "efficacy": "RMSProp's",
    "efficacy_stationary": "stationary",
    "efficacy_stability": "for stability alone",
    "efficacy_scalar": "best scalar",
}
for name, label in names.items():
    middle.plot(measured["step"], measured[name], ".-", label=label)
middle.set(xlabel="step", ylabel="efficacy of the preconditioner", yscale="log")
middle.legend()
for process in ("central", "stationary", "ablated"):
    right.plot(run["step"], run[process]["train_loss"], label=f"{process} flow")
right.set(xlabel="step", ylabel="training loss")
right.legend()
figure.savefig(folder / "preconditioner.png", dpi=120)
