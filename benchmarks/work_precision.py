"""What accuracy costs: `python -m benchmarks.work_precision [OPTIONS] [RULE ...]`.

For every rule and method: the largest error of the central flow's weights on digits, relative to
the length of its path, and what a step took: in gradients of the loss and their equivalents, and in
milliseconds. What products and third derivatives weigh is measured on the spot. Errors are against
a Richardson extrapolation of midsteps of 1/8 and 1/4.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from centralflow_eqx.engine.curvature import local_model, third_derivative
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.prepare import build_arguments
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.spec import load_spec

from .measure import environment, kernel_milliseconds
from .tables import table

SPECS = Path(__file__).parents[1] / "specs"
RULES = ("gd", "rmsprop", "adam", "heavy_ball", "shampoo")
METHODS = {
    "Euler, 1/4": ["flow.method=euler"],
    "Euler, 1": ["flow.method=euler", "flow.substeps=1"],
    "midsteps of 1/2": ["flow.method=midstep", "flow.max_step=0.5"],
    "midsteps of 1": ["flow.method=midstep"],
    "midsteps of 2": ["flow.method=midstep", "flow.max_step=2"],
    "adaptive, 1e-2": ["flow.tol=1e-2"],
    "adaptive, 1e-3": [],
    "adaptive, 1e-4": ["flow.tol=1e-4"],
}
COSTS = ("gradients", "hvps", "third_derivatives")


class Trajectory(NamedTuple):
    """The weights of a central flow at every step, and what it took in all.

    `seconds` are those of all rows but the first, which waits for the compiler.
    """

    weights: np.ndarray
    costs: dict[str, float]
    seconds: float


def follow(rule: str, steps: int, overrides: list[str]) -> Trajectory:
    """The central flow of a spec of the digits, and nothing beside it."""
    spec = load_spec(SPECS / f"digits_{rule}.yaml", overrides)
    task = build_task(spec)
    arguments = build_arguments(spec, task)
    arguments |= {"processes": ("central",), "raw_spectra": False, "evaluate": None}
    weights, costs, start = [], dict.fromkeys(COSTS, 0.0), 0.0
    for row in simulate(steps=steps, **arguments):
        start = start or time.perf_counter()
        weights.append(np.asarray(row.weights["central"]))
        for name in COSTS:
            costs[name] += float(row.series["central"][name])
    return Trajectory(np.stack(weights), costs, time.perf_counter() - start)


def reference(rule: str, steps: int) -> np.ndarray:
    """Midsteps, extrapolated to second order's next."""
    fine, finer = (
        follow(rule, steps, ["flow.method=midstep", f"flow.max_step={h}", "eigen.tol=1e-6"]).weights
        for h in (1 / 4, 1 / 8)
    )
    return finer + (finer - fine) / 3


def weigh() -> dict[str, float]:
    """How many gradients of the digits network a product and a third derivative take."""
    task = build_task(load_spec(SPECS / "digits_gd.yaml"))
    w = task.initial_weights
    u = jnp.ones_like(w) / np.sqrt(w.size)
    gradient, product, third = (
        jax.jit(f)
        for f in (
            jax.grad(task),
            lambda w: local_model(task, w).product(u),
            lambda w: third_derivative(task, w, u, u),
        )
    )
    kernels = {
        "gradients": lambda: gradient(w),
        "hvps": lambda: product(w),
        "third_derivatives": lambda: third(w),
    }
    took = kernel_milliseconds(kernels, 200)
    return {name: took[name] / took["gradients"] for name in COSTS}


def measure(rules: list[str], steps: int) -> dict[str, Any]:
    """Errors and costs of all methods."""
    weights, rows = weigh(), []
    for rule in rules:
        exact = reference(rule, steps)
        path = np.sum(np.linalg.norm(np.diff(exact, axis=0), axis=1))
        for method, overrides in METHODS.items():
            found = follow(rule, steps, overrides)
            apart = np.linalg.norm(found.weights - exact, axis=1)
            per_step = {name: cost / steps for name, cost in found.costs.items()}
            row = {"rule": rule, "method": method, "error": float(apart.max() / path)}
            row |= per_step | {"equivalents": sum(weights[n] * per_step[n] for n in COSTS)}
            row["milliseconds"] = 1e3 * found.seconds / (steps - 1)
            rows.append(row)
            print(line(row), flush=True)
    return {"steps": steps, "weights": weights, "rows": rows}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [row["rule"], row["method"], f"{row['error']:.1e}"]
    cells += [f"{row[name]:.1f}" for name in (*COSTS, "equivalents", "milliseconds")]
    return "| " + " | ".join(cells) + " |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Errors over gradient equivalents, a panel for every rule and a line for every method."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    figure, panels = plt.subplots(
        1, len(rules), figsize=(3.2 * len(rules), 3.4), sharey=True, squeeze=False
    )
    for rule, panel in zip(rules, panels[0], strict=True):
        for kind, marker in (("Euler", "s"), ("midsteps", "^"), ("adaptive", "o")):
            mine = [r for r in rows if r["rule"] == rule and r["method"].startswith(kind)]
            costs, errors = ([r[key] for r in mine] for key in ("equivalents", "error"))
            panel.loglog(costs, errors, marker=marker, label=kind)
        panel.set(title=rule.replace("_", " "), xlabel="gradients per step")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3, which="both")
    panels[0, 0].set_ylabel("error / length of the path")
    panels[0, 0].legend()
    figure.savefig(path, bbox_inches="tight", dpi=150)


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.work_precision"
    )
    parser.add_argument("rules", nargs="*", default=RULES, metavar="RULE", help=", ".join(RULES))
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of every run")
    parser.add_argument("--figure", type=Path, help="draw errors over costs there, too")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    header = (
        "rule",
        "method",
        "error",
        "gradients",
        "products",
        "third derivatives",
        "in gradients",
        "ms",
    )
    print(table(header, []))
    found = measure(list(arguments.rules), arguments.steps)
    print("in gradients:", ", ".join(f"{k} {v:.2f}" for k, v in found["weights"].items()))
    if arguments.json:
        found["environment"] = environment()
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.figure:
        draw(found["rows"], arguments.figure)


if __name__ == "__main__":
    main()
