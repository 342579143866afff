"""What a monitor adds to a training loop: `python -m benchmarks.monitor`.

A network on handwritten digits is trained by transformations of Optax, alone and with a monitor
that measures every `--every` steps within `--budget` gradients. Steps and measurements take turns,
so that what else a machine does hits both alike; compilation is aside. Prints a Markdown table: the
ratio of median times, how far leading eigenvalues are from those of a monitor without a budget at
the same places (the median), and how many measurements had all eigenpairs to tolerance.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from sklearn.datasets import load_digits

import centralflow_eqx as cf

from .measure import environment

LOOPS = {
    "optax.sgd(0.5)": optax.sgd(0.5),
    "optax.sgd(0.2, momentum=0.9)": optax.sgd(0.2, momentum=0.9),
    "optax.adam(2e-3)": optax.adam(2e-3, b2=0.99),
}
WIDTHS = (64, 32, 32, 10)
HEADER = (
    "loop",
    "time with monitor / alone",
    "ms of a step",
    "ms of a measurement",
    "its cost, gradients",
    "eigenvalue off, %",
    "converged, %",
)


class Step(NamedTuple):
    """Weights and state of a loop."""

    params: PyTree
    state: Any


def problem() -> tuple[PyTree, Array, Array]:
    """First weights, inputs and targets."""
    digits = load_digits()
    x = jnp.asarray(digits.data - digits.data.mean(0), jnp.float32) / 16
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) - 1)
    layers = [
        {"W": jax.random.normal(key, (n, m)) / np.sqrt(n), "b": jnp.zeros(m)}
        for key, n, m in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]
    return layers, x, jax.nn.one_hot(digits.target, WIDTHS[-1])


def loss(params: PyTree, x: Array, y: Array) -> Array:
    """Half of the mean squared error, summed over outputs."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["W"] + layer["b"])
    outputs = x @ params[-1]["W"] + params[-1]["b"]
    return jnp.mean(jnp.sum((outputs - y) ** 2, -1)) / 2


def train_step(optimizer: optax.GradientTransformation, x: Array, y: Array) -> Callable:
    """A step of the loop, compiled."""

    @jax.jit
    def step(now: Step) -> Step:
        updates, state = optimizer.update(jax.grad(loss)(now.params, x, y), now.state, now.params)
        return Step(optax.apply_updates(now.params, updates), state)

    return step


def race(optimizer: Any, budget: int, every: int, turns: int) -> tuple[list[float], ...]:
    """Seconds of turns alone and of measurements; costs, errors and whether they converged."""
    params, x, y = problem()
    step = train_step(optimizer, x, y)
    monitor = cf.Monitor(loss, optimizer, params, x, y, budget=budget)
    judge = cf.Monitor(loss, optimizer, params, x, y, tol=1e-4)
    now = step(start := Step(params, optimizer.init(params)))
    monitor.measure(*start)  # compiles
    alone, measuring, costs, errors, converged = [], [], [], [], []
    for _ in range(turns):
        begin = time.perf_counter()
        for _ in range(every):
            now = step(now)
        jax.block_until_ready(now)
        alone.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        seen = monitor.measure(*now)
        measuring.append(time.perf_counter() - begin)
        right = judge.measure(*now)
        costs.append(seen.cost)
        errors.append(abs(seen.effective_sharpness / right.effective_sharpness - 1))
        converged.append(
            float(not any(words.startswith("eigenpairs") for words in seen.unfinished))
        )
    return alone, measuring, costs, errors, converged


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor", description=__doc__)
    parser.add_argument("--budget", type=int, default=30, help="gradients of a measurement (30)")
    parser.add_argument("--every", type=int, default=50, help="steps between measurements (50)")
    parser.add_argument("--turns", type=int, default=40, help="measurements of a loop (40)")
    arguments = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n| --- |{' ---: |' * (len(HEADER) - 1)}")
    for name, optimizer in LOOPS.items():
        alone, measuring, costs, errors, converged = race(
            optimizer, arguments.budget, arguments.every, arguments.turns
        )
        turn, measured = median(alone), median(measuring)
        print(
            f"| `{name}` | {1 + measured / turn:.2f} | {1e3 * turn / arguments.every:.3g} "
            f"| {1e3 * measured:.3g} | {np.mean(costs):.3g} | {100 * median(errors):.2g} "
            f"| {100 * np.mean(converged):.0f} |"
        )
    where = ", ".join(f"{name} {value}" for name, value in environment().items())
    print(f"\nMeasured with {where}.")


if __name__ == "__main__":
    main()
