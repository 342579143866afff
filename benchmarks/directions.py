"""What many critical directions cost: `python -m benchmarks.directions [--json PATH]`.

The central flow of gradient descent on digits while its learning rate grows, which brings one
direction after the other to the edge of stability. For every number of them: what an optimizer step
took, in gradients of the loss and their equivalents, and how long the flow's steps were. Where all
pairs of directions would be looked at, third derivatives are those of the last column.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.prepare import build_arguments
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.spec import load_spec

from .measure import environment
from .problem import SPEC
from .tables import table
from .work_precision import COSTS, weigh

WARM_UP = "{{schedule: linear_schedule, init_value: 0.3, end_value: {end}, transition_steps: {n}}}"
COUNTED, COUNTED_STEPS = (2, 4, 8, 16), 25
LEAST_ROWS = 8  # fewer say little of a number of directions
HEADER = (
    "critical directions",
    "steps",
    "gradients",
    "products",
    "third derivatives",
    "in gradients",
    "length of a step",
    "largest distance from 2",
    "ms",
    "all pairs",
)


def warm_up(steps: int, end: float) -> list[dict[str, float]]:
    """A flow whose learning rate grows to `end`."""
    return follow(steps, [f"optimizer.lr={WARM_UP.format(end=end, n=steps)}"])


def counted(k: int) -> list[dict[str, float]]:
    """A flow that counts about `k` directions as critical."""
    before = follow(1, [f"eigen.initial={k + 1}"])[0]["eigenvalues"]
    above = float(np.sqrt(before[k - 1] * before[k]))
    settings = {"flow.method": "midstep", "flow.critical_above": above, "eigen.track_above": above}
    return follow(COUNTED_STEPS, [f"{key}={value}" for key, value in settings.items()])[1:]


def follow(steps: int, overrides: list[str]) -> list[dict[str, Any]]:
    """Every optimizer step of the flow: its critical directions, what it took, its lock."""
    spec = load_spec(SPEC, overrides)
    task = build_task(spec)
    arguments = build_arguments(spec, task)
    arguments |= {"processes": ("central",), "raw_spectra": False, "evaluate": None}
    rows, last = [], time.perf_counter()
    for row in simulate(steps=steps, **arguments):
        series, now = row.series["central"], time.perf_counter()
        k = int(series["critical_directions"])
        variances = np.asarray(series["sigma_eigenvalues"])
        oscillating = int(np.sum(variances > 1e-3 * max(variances.max(), 1e-12)))
        lock = np.abs(np.asarray(series["eigenvalues"])[:oscillating] - 2).max(initial=0)
        found = {name: float(series[name]) for name in COSTS}
        found |= {"k": k, "length": float(series["step_length"]), "lock": float(lock)}
        found["eigenvalues"] = np.asarray(series["eigenvalues"])
        rows.append(found | {"ms": 1e3 * (now - last)})
        last = now
    return rows


def averaged(rows: list[dict[str, Any]], weights: dict[str, float]) -> list[dict[str, float]]:
    """Means over the steps with so many critical directions."""
    by_number, found = defaultdict(list), []
    for row in rows:
        by_number[row["k"]].append(row)
    for k, those in sorted(by_number.items()):
        if len(those) < LEAST_ROWS:
            continue
        mean = {name: float(np.mean([r[name] for r in those])) for name in (*COSTS, "length")}
        mean |= {"k": k, "steps": len(those), "lock": max(r["lock"] for r in those)}
        mean["equivalents"] = sum(weights[name] * mean[name] for name in COSTS)
        mean["ms"] = float(np.median([r["ms"] for r in those if r["ms"] > 0.1]))
        mean["all_pairs"] = k * (k + 1) / 2 / mean["length"]
        found.append(mean)
    return found


def line(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    return [
        str(row["k"]),
        str(row["steps"]),
        *(f"{row[name]:.1f}" for name in (*COSTS, "equivalents")),
        f"{row['length']:.2f}",
        f"{row['lock']:.1e}",
        f"{row['ms']:.0f}",
        f"{row['all_pairs']:.1f}",
    ]


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.directions")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of the first")
    parser.add_argument("--end", type=float, default=1.5, help="the learning rate at their end")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"weights": (weights := weigh())}
    found["at the edge"] = averaged(warm_up(arguments.steps, arguments.end), weights)
    print(table(HEADER, [line(row) for row in found["at the edge"]]) + "\n", flush=True)
    found["counted"] = averaged([row for k in COUNTED for row in counted(k)], weights)
    print(table(HEADER, [line(row) for row in found["counted"]]))
    print("in gradients:", ", ".join(f"{k} {v:.2f}" for k, v in found["weights"].items()))
    if arguments.json:
        found["environment"] = environment()
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
