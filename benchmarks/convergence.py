"""How fast the central flow converges as its substeps shrink."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import brentq

from centralflow_eqx.experiment.advance import advance

from .measure import differences
from .problem import EULER, Problem


def trajectory(problem: Problem, substeps: int, steps: int) -> list[np.ndarray]:
    """The weights of the central flow after every step."""
    experiment, state = problem.begin("central", replace(EULER, substeps=substeps))
    path = []
    for _ in range(steps):
        state, *_ = advance(experiment, state, 1)
        path.append(np.asarray(state.processes["central"].w))
    return path


def measure_convergence(
    problem: Problem, *, substeps: Sequence[int], reference: int, steps: int
) -> dict[str, Any]:
    """Errors of coarse substeps against `reference`, relative to the distance moved.

    `error` is the largest of all steps, to which `order` belongs; `last_error` that of the last.
    """
    exact = trajectory(problem, reference, steps)
    start = np.asarray(problem.w)
    rows: list[dict[str, Any]] = []
    for n in substeps:
        apart = differences(trajectory(problem, n, steps), exact, start)
        row = {"substeps": n, "error": float(apart.max()), "last_error": float(apart[-1])}
        coarser = rows[-1] if rows else None
        row["order"] = coarser and order(
            coarser["substeps"], n, reference, coarser["error"] / row["error"]
        )
        rows.append(row)
    return {"steps": steps, "reference": reference, "rows": rows}


def order(coarse: int, fine: int, reference: int, ratio: float) -> float | None:
    """The order p of a method whose errors against a reference have this ratio.

    With errors proportional to n^-p, the reference's own included:
    (coarse^-p - reference^-p) / (fine^-p - reference^-p) = ratio. None if no p in [0.1, 4] fits.
    """

    def mismatch(p: float) -> float:
        a, b, c = (n**-p for n in (coarse, fine, reference))
        return (a - c) / (b - c) - ratio

    low, high = 0.1, 4.0
    return brentq(mismatch, low, high) if mismatch(low) * mismatch(high) < 0 else None
