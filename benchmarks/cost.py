"""What a step costs: every process, the optimizer alone, the off-the-shelf flow, the floor."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from centralflow_eqx.engine.curvature import local_model, third_derivatives
from centralflow_eqx.experiment.advance import advance
from centralflow_eqx.experiment.state import RunState

from .baseline import Baseline, Cost, lobpcg_tolerance
from .measure import Contender, differences, kernel_milliseconds, race
from .problem import CRITICAL_ABOVE, EULER, RESIDUAL, SUBSTEPS, TRACKED, Problem, plain_step

PLAIN = "optimizer alone"
PACKAGE = ("discrete", "midpoint", "stable", "central")
TEXTBOOK = "off the shelf"
SECOND_ORDER = "to second order (the default)"


def plain(problem: Problem) -> Contender:
    """The optimizer's step without any eigenvalue tracking."""

    # Closing over the task, without which its arrays are arguments, saves dispatch time.
    jitted = jax.jit(lambda w, s: plain_step(problem.rule, problem.task, w, s))

    def step(state: Any) -> Any:
        state = jax.block_until_ready(jitted(*state))
        return state, state[0], Cost(gradients=1)

    return Contender(PLAIN, lambda: (problem.w, problem.s), step)


def package(problem: Problem, process: str, name: str, **changes: Any) -> Contender:
    """A process of the package, recording every step; aside: a step that is not recorded.

    `changes` are what is different from `EULER`.
    """
    experiment, first = problem.begin(process, replace(EULER, **changes))
    source = experiment.source(process)
    seldom = eqx.tree_at(lambda e: e.every, experiment, jnp.asarray(2**30, jnp.int32))

    def step(state: RunState) -> Any:
        state, records, _ = jax.block_until_ready(advance(experiment, state, 1))
        series = records.tracks[process].series
        cost = Cost(*(int(series[key][0]) if key in series else 0 for key in Cost._fields))
        # What a process shows are the weights before the step; what it moved to is its state.
        return state, state.processes[source].w, cost

    def unrecorded(state: RunState) -> Any:
        state = eqx.tree_at(lambda s: s.step, state, jnp.ones((), jnp.int32))
        return jax.block_until_ready(advance(seldom, state, 1)[0])

    return Contender(name, lambda: first, step, unrecorded)


def off_the_shelf(problem: Problem, name: str, tol: float, critical_only: bool) -> Contender:
    """The baseline; `tol` as `lobpcg_standard` understands it."""
    baseline = Baseline(
        problem.task,
        problem.lr,
        TRACKED,
        substeps=SUBSTEPS,
        critical_above=CRITICAL_ABOVE,
        tol=tol,
        critical_only=critical_only,
    )

    def step(state: Any) -> Any:
        state, cost = baseline.step(state)
        return state, state[0], cost

    return Contender(name, lambda: baseline.init(problem.w, jax.random.key(1)), step)


def contenders(problem: Problem, quick: bool) -> list[Contender]:
    """Everything that is compared; `quick` leaves the variations out.

    The variations give the baseline every advantage: third derivatives of critical directions
    only, and the residual that `tol = 1e-6` literally means to `lobpcg_standard` (5 %), which the
    package is then granted too.
    """
    d = problem.w.size
    tight = lobpcg_tolerance(RESIDUAL, d)
    found = [plain(problem), *(package(problem, name, name) for name in PACKAGE)]
    found.append(off_the_shelf(problem, TEXTBOOK, tight, critical_only=False))
    if quick:
        return found
    loose = RESIDUAL / lobpcg_tolerance(1, d)
    return [
        *found,
        off_the_shelf(problem, f"{TEXTBOOK}, critical pairs only", tight, critical_only=True),
        package(problem, "central", SECOND_ORDER, method="adaptive", tol=None),
        package(problem, "central", "central, residual 1e-4 (Euler's default)", tol=1e-4),
        package(problem, "central", "central, residual 5 %", tol=loose),
        off_the_shelf(problem, f"{TEXTBOOK}, residual 5 %", RESIDUAL, critical_only=False),
        off_the_shelf(
            problem,
            f"{TEXTBOOK}, residual 5 %, critical pairs only",
            RESIDUAL,
            critical_only=True,
        ),
    ]


def measure_cost(problem: Problem, *, steps: int, block: int, quick: bool) -> dict[str, Any]:
    """Race all contenders; rows for the tables, and the floor of the central step."""
    found = contenders(problem, quick)
    race(found, steps, block)
    by_name = {contender.name: contender for contender in found}
    central, alone = by_name["central"], by_name[PLAIN]
    rows = [_row(contender, alone, central, problem) for contender in found]
    return {"steps": steps, "rows": rows, "floor": _floor(problem, central, steps)}


def _row(
    contender: Contender, alone: Contender, central: Contender, problem: Problem
) -> dict[str, Any]:
    start = np.asarray(problem.w)
    row = {
        "name": contender.name,
        "milliseconds": contender.milliseconds,
        "unrecorded_milliseconds": contender.aside_milliseconds,
        "over_plain": contender.milliseconds / alone.milliseconds,
        "over_central": contender.milliseconds / central.milliseconds,
        **contender.cost,
        "first_call_seconds": contender.first_call,
        "warm_up_compilations": contender.warm_up_compilations,
        "compilations": contender.compilations,
    }
    if contender.name.startswith((TEXTBOOK, "central,")):
        apart = differences(contender.path, central.path, start)
        row["difference_from_central"] = float(apart.max())
    return row


def _floor(problem: Problem, central: Contender, steps: int) -> dict[str, Any]:
    """The least that a central step takes, in the package's own kernels.

    Per substep: the gradient, linearised, with one product for each tracked direction, and a third
    derivative for each pair of critical directions.
    """
    flow = central.state.processes["central"]
    w, U = flow.w, flow.pairs.U[:, :TRACKED]

    @jax.jit
    def products(w: jax.Array, V: jax.Array) -> Any:
        model = local_model(problem.task, w)
        return model.grad, model.hvps(V)

    third = jax.jit(lambda w, U, critical: third_derivatives(problem.task, w, U, critical))
    critical = [_critical(cost) for cost in central.costs]
    kernels = {"products": lambda: products(w, U)}
    for n in sorted(set(critical)):
        count = jnp.asarray(n)
        kernels[f"third {n}"] = lambda n=count: third(w, U, n)
    times = kernel_milliseconds(kernels, repeats=max(steps, 20))
    per_step = [SUBSTEPS * (times["products"] + times[f"third {n}"]) for n in critical]
    floor = float(np.median(per_step))
    return {
        "products_milliseconds": times["products"],
        "third_milliseconds": {n: times[f"third {n}"] for n in sorted(set(critical))},
        "critical_directions": {n: critical.count(n) for n in sorted(set(critical))},
        "floor_milliseconds": floor,
        "central_over_floor": central.milliseconds / floor,
        "unrecorded_over_floor": (central.aside_milliseconds or np.nan) / floor,
    }


def _critical(cost: Cost) -> int:
    """Critical directions of a step, at the most, from its third derivatives."""
    per_substep = -(-cost.third_derivatives // SUBSTEPS)
    return int(np.ceil((np.sqrt(8 * per_substep + 1) - 1) / 2))


def ratio_to_baseline(rows: Sequence[dict[str, Any]], name: str = "central") -> float | None:
    """How many times longer than this contender's step the off-the-shelf one takes."""
    took = {row["name"]: row["milliseconds"] for row in rows}
    return took[TEXTBOOK] / took[name] if name in took else None
