"""What 1, 8 and 7 devices make of the same problem; run in a process that has eight of them.

Prints the largest differences, relative to the size of what is compared, as JSON.
"""

import json
import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np

import centralflow_eqx as cf
from centralflow_eqx.engine.curvature import (
    EigenTracker,
    local_model,
    third_derivative,
    unsolved,
)
from centralflow_eqx.precision import engage
from centralflow_eqx.task import Memory

TIGHT = cf.Settings(tol=1e-12)
OPTIMIZERS = {
    "gd": cf.optimizers.GD(0.4),
    "rmsprop": cf.optimizers.RMSProp(2e-3, 0.9),
    "adam": cf.optimizers.Adam(3e-3, 0.8, 0.9),
}


def make(devices, n=100, widths=(8,), memory=Memory()):  # noqa: B008
    data, model = cf.data.Digits(n=n), cf.models.MLP(widths)
    return cf.make_task(
        data, model, cf.losses.MSE(), dtype="float64", devices=devices, memory=memory
    )


def far(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / np.max(np.abs(a)))


@eqx.filter_jit
def derivatives(task, w, V, key):
    """Loss, gradient, products, an eigenpair, a third derivative, and scores."""
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
        **task.evaluate(w),
    }


def compare_derivatives():
    found = {}
    for memory in (Memory(), Memory(16, remat=True)):
        results = {}
        for devices in (1, 8, 7):
            task = make(devices, memory=memory)
            w = task.initial_weights
            V = jr.normal(jr.key(1), (w.size, 3), w.dtype)
            results[devices] = derivatives(task, w, V, jr.key(0))
        for devices in (8, 7):
            for name, value in results[1].items():
                key = f"{name} {devices} {memory.microbatch}"
                found[key] = far(value, results[devices][name])
    return found


def collectives(function, *arguments):
    """The reductions and other exchanges in the compiled program, and bytes that they move."""
    text = eqx.filter_jit(function).lower(*arguments).compile().compiled.as_text()
    pattern = r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
    sizes = {"f64": 8, "f32": 4, "s32": 4, "pred": 1, "s64": 8, "u32": 4}
    found = []
    for shapes, kind in re.findall(pattern, text):
        parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        total = sum(
            sizes[t] * int(np.prod([int(i) for i in dims.split(",") if i])) for t, dims in parts
        )
        found.append((kind, total))
    return found


def count_collectives():
    task = make(8)
    w = task.initial_weights
    found = {"d": w.size, "gradient": collectives(lambda t, w: jax.value_and_grad(t)(w), task, w)}
    for columns in (1, 6):
        V = jnp.ones((w.size, columns))
        found[f"products {columns}"] = collectives(
            lambda t, w, V: local_model(t, w, 2**30).hvps(V), task, w, V
        )
    return found


def compare_steps(name):
    results = {}
    for devices in (1, 8, 7):
        task = make(devices)
        rows = cf.simulate(
            task,
            OPTIMIZERS[name],
            task.initial_weights,
            unravel=task.unravel,
            evaluate=task.evaluate,
            processes=["discrete", "midpoint", "stable", "central", "ablated"],
            steps=10,
            settings=TIGHT,
        )
        results[devices] = list(rows)
    return {
        f"{series} {devices}": max(
            far(a.weights[series], b.weights[series])
            for a, b in zip(results[1], results[devices], strict=True)
        )
        for devices in (8, 7)
        for series in results[1][0].weights
    }


engage()
ACTIONS = {"derivatives": compare_derivatives, "collectives": count_collectives}
action = sys.argv[1]
print(json.dumps(ACTIONS[action]() if action in ACTIONS else compare_steps(action)))
