"""The problem that everything is measured on: the digits MLP at the edge of stability."""

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array

from centralflow_eqx.engine.curvature import EigenTracker
from centralflow_eqx.engine.response import Response, Rule, State, Vector, derive, relax
from centralflow_eqx.engine.state_rate import STATE_RATES
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.processes import AbstractProcess, Setting, start_spectra
from centralflow_eqx.spec import load_spec
from centralflow_eqx.task import Task

SPEC = Path(__file__).parents[1] / "specs" / "digits_gd.yaml"
TRACKED = 4
SUBSTEPS = 4
CRITICAL_ABOVE = 1.95
RESIDUAL = 1e-6
STEP_SIZE = 0.2
EDGE = 34  # optimizer steps after which the largest effective eigenvalue is about to reach 2


class Problem(NamedTuple):
    """A task, its optimizer as rule and response, and where the optimizer is after some steps."""

    task: Task
    rule: Rule
    response: Response
    lr: float
    w: Vector
    s: State

    def setting(self, *, substeps: int = SUBSTEPS, residual: float = RESIDUAL) -> Setting:
        """The package's settings: `TRACKED` eigenpairs whatever their size, never more."""
        tracker = EigenTracker(track_above=float("inf"), initial=TRACKED, tol=residual)
        rate = STATE_RATES["exponential"]
        return Setting(
            self.task, self.response, rate, tracker, substeps, critical_above=CRITICAL_ABOVE
        )


def build_problem(steps: int) -> Problem:
    """The problem, `steps` optimizer steps from its start."""
    spec = load_spec(SPEC, [f"optimizer.lr={STEP_SIZE}"])
    task = build_task(spec)
    rule = Rule(spec.optimizer.build(), task.unravel)
    w, s = task.initial_weights, rule.init(task.initial_weights)
    for _ in range(steps):
        w, s = plain_step(rule, task, w, s)
    grad = jax.grad(task)(w)
    response = derive(rule, relax(s, w), w, grad, jax.random.key(spec.seed))
    return Problem(task, rule, response, float(spec.optimizer.lr), w, s)


@eqx.filter_jit
def plain_step(rule: Rule, task: Task, w: Vector, s: State) -> tuple[Array, State]:
    """One step of the optimizer and nothing else."""
    delta, s = rule.update(jax.grad(task)(w), s, w)
    return w + delta, s


def first_state(process: AbstractProcess, problem: Problem) -> Any:
    """The first state of a process that knows no spectrum yet."""
    key = jax.random.key(0)
    spectra = start_spectra(process.setting, problem.w, TRACKED, key)
    return eqx.filter_jit(process.init)(problem.w, problem.s, spectra, key)
