"""What every process has in common: it is observed, then moves by one optimizer step."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..engine.curvature import Eigenpairs, EigenTracker, LocalModel, Loss, local_model
from ..engine.oscillation import Modes
from ..engine.response import Response, State, Vector
from ..engine.state_rate import AbstractStateRate, Backward

Minibatch = Callable[[Vector, Int[Array, ""], PRNGKeyArray], Float[Array, ""]]
"""The loss of the mini-batch that a step takes, from weights, the number of the step and a key."""


class STOP(eqx.Enumeration):
    """Why a process cannot go on."""

    running = ""
    sharpness = "the effective sharpness passed flow.max_sharpness"
    step_size = "the adaptive step size of the stable flow became too small"
    no_solution = (
        "no oscillation keeps the flow stable: the complementarity problem has no solution"
    )
    unsolved = "the complementarity problem could not be solved to its tolerance"


class Setting(eqx.Module):
    """What processes share: the loss, the optimizer's derived response and the flow's settings.

    `substeps` is the number of Euler steps of a central flow per optimizer step, `critical_above`
    the effective eigenvalue from which a direction may oscillate, `restoration` the rate, per
    optimizer step, at which a central flow that starts unstable is made stable, `max_sharpness`
    the effective eigenvalue at which a stable flow gives up, `hvp_chunk` the number of
    Hessian-vector products taken at once (0: all), `minibatch` the loss whose gradients a
    mini-batch optimizer takes.
    """

    loss: Loss
    response: Response
    rate: AbstractStateRate
    tracker: EigenTracker
    substeps: int = 4
    critical_above: float = 1.95
    restoration: float = float("inf")
    max_sharpness: float = 100.0
    hvp_chunk: int = 0
    minibatch: Minibatch | None = None

    def local_model(self, w: Vector) -> LocalModel:
        """Loss, gradient and Hessian-vector products at `w`."""
        return local_model(self.loss, w, self.hvp_chunk)


class Observation(eqx.Module):
    """What is known of a process at one step.

    `post` is the post-update state at the weights, `series` are the small arrays that a run
    records. `overflow` says that more eigenpairs want tracking than there is room for.
    `oscillation` is that of a flow that predicts one.
    """

    weights: Vector
    post: State
    series: dict[str, Array]
    overflow: Bool[Array, ""]
    stop: STOP
    oscillation: Modes | None = None


def flow_refusal(setting: Setting) -> str:
    """Why the setting's rule has no flow, empty if it has one."""
    structure = setting.response.structure
    if structure.refusal:
        return structure.refusal
    if isinstance(setting.rate, Backward) and structure.momentum:
        return (
            "state_rate 'backward' advances weights and state from old values, which is unstable "
            "for an optimizer with momentum; use 'exponential'"
        )
    return ""


class Spectra(eqx.Module):
    """Tracked eigenpairs of the effective Hessian and of the Hessian itself.

    `raw` is absent where the two differ by a scalar factor only, or where there is no effective
    Hessian and the other takes its place.
    """

    effective: Eigenpairs
    raw: Eigenpairs | None

    @property
    def products(self) -> Array:
        """Hessian-vector products of the last solves."""
        raw = 0 if self.raw is None else self.raw.products
        return self.effective.products + raw


class AbstractProcess(eqx.Module):
    """Something that evolves in optimizer steps from given weights and optimizer state.

    Everything that evolves is in one pytree, the state.
    """

    setting: eqx.AbstractVar[Setting]

    @abc.abstractmethod
    def refusal(self) -> str:
        """Why the setting's rule has no such process, empty if it has."""

    @abc.abstractmethod
    def init(self, w: Vector, s: State, spectra: Spectra, key: PRNGKeyArray) -> Any:
        """The state at weights `w` and the optimizer's own state `s` before its step there.

        `spectra` are those at `w`, or unsolved ones; `key` is for what a process draws.
        """

    @abc.abstractmethod
    def step(self, state: Any, observed: Bool[Array, ""]) -> tuple[Any, Observation]:
        """Observe the state, then advance it by one optimizer step.

        What only serves the record is skipped, and its series are not meaningful, where
        `observed` is false.
        """

    @abc.abstractmethod
    def widen(self, state: Any, capacity: int) -> Any:
        """The same state with room to track `capacity` eigenpairs."""
