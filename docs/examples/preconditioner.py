"""RMSProp's preconditioner beside the stationary one that its averages tend to.

The averages of squared gradients would settle at a value that depends on the weights alone, if the
weights stood still. The stationary flow has them there at all times; the ablated flow lets the
oscillation act on the averages, but does not let it push the weights to flatter regions.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt

import centralflow_eqx as cf

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = cf.make_task(cf.data.Digits(n=100), cf.models.MLP((8, 8)), cf.losses.MSE(), dtype="float64")
run = cf.collect(
    cf.simulate(
        task,
        cf.optimizers.RMSProp(1e-3),
        task.initial_weights,
        unravel=task.unravel,
        processes=["central", "stationary", "ablated"],
        steps=48,
        warm_start=40,
        settings=cf.Settings(track_above=1.8, initial=3),
        probes=[cf.probes.Preconditioners(indices=jnp.array([600]), every=6)],
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
