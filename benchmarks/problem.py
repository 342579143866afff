"""The problem that everything is measured on: the digits MLP at the edge of stability."""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array

from centralflow_eqx.engine.response import Rule, State, Vector
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.start import start
from centralflow_eqx.experiment.state import Experiment, RunState
from centralflow_eqx.spec import load_spec
from centralflow_eqx.task import Task

SPEC = Path(__file__).parents[1] / "specs" / "digits_gd.yaml"
TRACKED = 4
SUBSTEPS = 4
CRITICAL_ABOVE = 1.95
RESIDUAL = 1e-6
STEP_SIZE = 0.2
EDGE = 34  # optimizer steps after which the largest effective eigenvalue is about to reach 2


# What both sides of the comparison do: `TRACKED` eigenpairs, whatever their size.
EULER = Settings(
    method="euler",
    substeps=SUBSTEPS,
    critical_above=CRITICAL_ABOVE,
    track_above=float("inf"),
    initial=TRACKED,
    tol=RESIDUAL,
)


class Problem(NamedTuple):
    """A task, its optimizer as a rule, and where the optimizer is after some steps."""

    task: Task
    rule: Rule
    lr: float
    steps: int
    w: Vector
    s: State

    def begin(self, process: str, settings: Settings) -> tuple[Experiment, RunState]:
        """A run of one process from here."""
        return start(
            self.task,
            self.rule.optimizer,
            self.task.initial_weights,
            processes=(process,),
            warm_start=self.steps,
            unravel=self.task.unravel,
            settings=settings,
        )


def build_problem(steps: int) -> Problem:
    """The problem, `steps` optimizer steps from its start."""
    spec = load_spec(SPEC, [f"optimizer.lr={STEP_SIZE}"])
    task = build_task(spec)
    rule = Rule(spec.optimizer.build(), task.unravel)
    w, s = task.initial_weights, rule.init(task.initial_weights)
    for _ in range(steps):
        w, s = plain_step(rule, task, w, s)
    return Problem(task, rule, STEP_SIZE, steps, w, s)


@eqx.filter_jit
def plain_step(rule: Rule, task: Task, w: Vector, s: State) -> tuple[Array, State]:
    """One step of the optimizer and nothing else."""
    delta, s = rule.update(jax.grad(task)(w), s, w)
    return w + delta, s
