"""What 1, 8 and 7 devices make of the same problem, with examples, weights or both shared out.

Run in a process that has eight of them.

Prints the largest differences, relative to the size of what is compared, as JSON.
"""

import json
import sys

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np

import centralflow_eqx as cf
from benchmarks.scale import compile_program, exchanges, programs
from centralflow_eqx.engine.curvature import (
    EigenTracker,
    local_model,
    third_derivative,
    third_derivatives,
    unsolved,
)
from centralflow_eqx.placement import Shard
from centralflow_eqx.precision import engage
from centralflow_eqx.task import Memory

TIGHT = cf.Settings(tol=1e-12)
OPTIMIZERS = {
    "gd": cf.optimizers.GD(0.4),
    "rmsprop": cf.optimizers.RMSProp(2e-3, 0.9),
    "adam": cf.optimizers.Adam(3e-3, 0.8, 0.9),
}


Layout = tuple[int, Shard]
ALONE: Layout = (1, "examples")
LAYOUTS: tuple[Layout, ...] = (
    (8, "examples"),
    (7, "examples"),
    (8, "both"),
    (7, "weights"),
)


def make(layout: Layout, memory=Memory()):  # noqa: B008
    """100 examples of which neither 7 nor 8 is a divisor; both divide 2072 weights."""
    devices, shard = layout
    data, model = cf.data.Digits(n=100), cf.models.MLP((28,), bias=False)
    return cf.make_task(
        data, model, cf.losses.MSE(), dtype="float64", devices=devices, shard=shard, memory=memory
    )


def far(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / np.max(np.abs(a)))


@eqx.filter_jit
def derivatives(task, w, V, key):
    """Loss, gradient, products, an eigenpair, third derivatives, and scores."""
    model = local_model(task, w, 2**30)
    gain = lx.DiagonalLinearOperator(jnp.ones_like(w))
    tracker = EigenTracker(track_above=jnp.inf, tol=1e-13)
    pairs = tracker.solve(model, gain, unsolved(w.size, 2, w.dtype, key))
    third = third_derivative(task, w, V[:, 0], V[:, 1])
    sign = jnp.sign(pairs.U[0, 0])
    return {
        "loss": model.loss,
        "gradient": model.grad,
        "products": model.hvps(V),
        "eigenvalue": pairs.theta[0],
        "eigenvector": sign * pairs.U[:, 0],
        "third": third,
        "thirds": third_derivatives(task, w, V, jnp.asarray(2)),
        **task.evaluate(w),
    }


def compare_derivatives(memories=(Memory(), Memory(16, remat=True)), layouts=LAYOUTS):  # noqa: B008
    found = {}
    for memory in memories:
        results = {}
        for layout in (ALONE, *layouts):
            task = make(layout, memory)
            w = task.initial_weights
            V = jr.normal(jr.key(1), (w.size, 3), w.dtype)
            results[layout] = derivatives(task, w, V, jr.key(0))
        for layout in layouts:
            for name, value in results[ALONE].items():
                key = f"{name} {layout} {memory.microbatch}"
                found[key] = far(value, results[layout][name])
    return found


def count_collectives():
    found = {}
    for layout in (LAYOUTS[0], LAYOUTS[2]):
        task = make(layout)
        found[layout[1]] = {
            name: exchanges(compile_program(*program)) for name, program in programs(task).items()
        }
    return {"d": task.num_parameters, "exchanges": found}


def compare_steps(name, layouts=LAYOUTS[1:3]):
    results = {}
    for layout in (ALONE, *layouts):
        task = make(layout)
        rows = cf.simulate(
            task,
            OPTIMIZERS[name],
            task.initial_weights,
            unravel=task.unravel,
            evaluate=task.evaluate,
            processes=["discrete", "midpoint", "stable", "central"],
            steps=10,
            settings=TIGHT,
        )
        results[layout] = list(rows)
    return {
        f"{series} {layout}": max(
            far(a.weights[series], b.weights[series])
            for a, b in zip(results[ALONE], results[layout], strict=True)
        )
        for layout in layouts
        for series in results[ALONE][0].weights
    }


engage()
ACTIONS = {
    "derivatives": compare_derivatives,
    "uneven": lambda: compare_derivatives([Memory(16, remat=True)], LAYOUTS[1:3]),
    "collectives": count_collectives,
}
action = sys.argv[1]
print(json.dumps(ACTIONS[action]() if action in ACTIONS else compare_steps(action)))
