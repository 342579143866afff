"""What the central flow predicts for single weights and for the network's outputs.

RMSProp keeps an average `nu` of squared gradients. Where weights oscillate, their squared gradients
are larger on average than on the smooth path, and the network's outputs shift a little: the flow
predicts both to second order in the oscillation.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt

import centralflow_eqx as cf
from centralflow_eqx.task import Examples

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
task = cf.make_task(cf.data.Digits(n=100), cf.models.MLP((8, 8)), cf.losses.MSE(), dtype="float64")
chosen = [528, 600, 673, 677]  # a weight of each later layer, and two biases
run = cf.collect(
    cf.simulate(
        task,
        cf.optimizers.RMSProp(1e-3),
        task.initial_weights,
        unravel=task.unravel,
        processes=["discrete", "central"],
        steps=80,
        warm_start=40,
        settings=cf.Settings(track_above=1.8, initial=3),
        probes=[
            cf.probes.Coordinates(indices=jnp.array(chosen)),
            cf.probes.Outputs(function=Examples(task, chosen=(0, 1))),
        ],
    ),
    coordinates=chosen,
)
discrete, central = run["discrete"], run["central"]

figure, panels = plt.subplots(2, 4, figsize=(12, 5), sharex=True, layout="constrained")
for weight, (above, below) in zip(chosen, panels.T, strict=True):
    at = {"coordinate": weight}
    squared = discrete["grad_sq_at"].sel(at)
    above.plot(run["step"], squared, color="tab:blue", lw=0.5, alpha=0.5, label="discrete")
    above.plot(run["step"], cf.smooth(squared.values, 8), color="tab:blue", label="smoothed")
    above.plot(run["step"], central["grad_sq_at"].sel(at), color="tab:green", label="central")
    predicted = central["predicted_grad_sq_at"].sel(at)
    above.plot(run["step"], predicted, color="black", ls="--", label="predicted average")
    above.set(title=f"weight {weight}", yscale="log")
    below.plot(run["step"], run["discrete/state/nu_at"].sel(at), label="discrete")
    below.plot(run["step"], run["central/state/nu_at"].sel(at), "k--", label="central")
    below.set(xlabel="step")
panels[0, 0].set(ylabel="squared gradient")
panels[1, 0].set(ylabel="nu")
handles, labels = panels[0, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=4)
panels[1, 0].legend()
figure.savefig(folder / "single_weights.png", dpi=120)

figure, panels = plt.subplots(1, 2, figsize=(10, 3.5), sharex=True, layout="constrained")
for example, axes in enumerate(panels):
    # Outputs are numbered example by example, and there are ten classes.
    output = {"output": 10 * example + int(task.train_answers[example])}
    values = discrete["outputs"].sel(output)
    predicted = central["predicted_outputs"].sel(output)
    axes.plot(run["step"], values, color="tab:blue", lw=0.7, label="discrete")
    axes.plot(run["step"], central["outputs"].sel(output), color="tab:green", label="central")
    axes.plot(run["step"], predicted, color="black", ls="--", label="predicted average")
    axes.set(title=f"example {example}", xlabel="step")
panels[0].set(ylabel="output of the right class")
panels[0].legend()
figure.savefig(folder / "outputs.png", dpi=120)
