"""What every process has in common: one pytree that moves by optimizer steps."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..engine.curvature import (
    Eigenpairs,
    EigenTracker,
    LocalModel,
    Loss,
    local_model,
    widen,
)
from ..engine.noise import BatchNoise
from ..engine.oscillation import Modes
from ..engine.response import Response, State, Vector
from ..engine.settings import Resolved
from ..engine.state_rate import AbstractStateRate, Backward
from ..placement import Placement

T = TypeVar("T")
Minibatch = Callable[[Vector, Int[Array, ""], PRNGKeyArray], Float[Array, ""]]
"""The loss of the mini-batch that a step takes, from weights, the number of the step and a key."""


class Minibatches(eqx.Module):
    """What is done with mini-batches: the `loss` that `discrete_minibatch` descends, by so many
    `seeds` side by side, and the `noise` that central flows know of, if they do."""

    loss: Minibatch | None
    noise: BatchNoise | None = None
    seeds: int = eqx.field(static=True, default=1)


class STOP(eqx.Enumeration):
    """Why a process cannot go on."""

    running = ""
    sharpness = "the effective sharpness passed flow.max_sharpness"
    step_size = "the adaptive step size of the stable flow became too small"
    no_solution = (
        "no oscillation keeps the flow stable: the complementarity problem has no solution"
    )
    unsolved = "the complementarity problem could not be solved to its tolerance"
    diverged = "it diverged: its training loss is far above that of the first step"
    not_finite = "loss or weights are not finite"


def failed(stop: STOP) -> Bool[Array, ""]:
    """Whether the process stopped for a numerical reason: its last row is not valid."""
    return (stop == STOP.no_solution) | (stop == STOP.unsolved) | (stop == STOP.not_finite)


class Setting(eqx.Module):
    """What processes share: the loss, the optimizer's derived response and the settings.

    `minibatch` is the loss whose gradients a mini-batch optimizer takes, of which `seeds` run side
    by side, and `noise` what central flows know of them, None where they do without. `placement`
    are the devices that share the work, None for the one that JAX chose itself.
    """

    loss: Loss
    response: Response
    rate: AbstractStateRate
    settings: Resolved
    minibatch: Minibatch | None = None
    noise: BatchNoise | None = None
    seeds: int = eqx.field(static=True, default=1)
    placement: Placement | None = eqx.field(static=True, default=None)

    def lay(self, tree: T, like: Vector) -> T:
        """Arrays on the devices, vectors as long as the weights split where they are to be."""
        return tree if self.placement is None else self.placement.lay(tree, like.size)

    def laid(self, tree: T, like: Vector) -> T:
        """Within a program: what `lay` would leave as it is."""
        return tree if self.placement is None else self.placement.laid(tree, like.size)

    def local_model(self, w: Vector) -> LocalModel:
        """Loss, gradient and Hessian-vector products at `w`."""
        return local_model(self.loss, w, self.settings.hvp_chunk)

    @property
    def tracker(self) -> EigenTracker:
        """The eigensolver; the Hessian's own eigenvalues, of rules without gain, have no
        threshold above which they would be tracked."""
        settings = self.settings
        above = jnp.inf if self.response.structure.gain == "none" else settings.track_above
        return EigenTracker(above, settings.initial, settings.tol)


class View(eqx.Module):
    """What a process shows of a step, for those who observe it.

    `post` is the post-update state at the weights `w`; `series` are small arrays for the record,
    among them what the step cost, and a `train_loss` that shows divergence. `middle` is the
    midpoint of an optimizer's iterates around `w`, and `members` are weights and states of several
    optimizers of which `w` and `post` are means.
    """

    w: Vector
    post: State
    series: dict[str, Array]
    middle: Vector | None = None
    oscillation: "Swing | None" = None
    members: tuple[Float[Array, "s d"], State] | None = None


class Swing(eqx.Module):
    """A flow's oscillation at a step: covariance `X` in the basis U = K `Y`, gradient `grad`."""

    Y: Float[Array, "d m"]
    theta: Float[Array, " m"]
    X: Float[Array, "m m"]
    grad: Vector
    critical: Int[Array, ""]


class Verdict(NamedTuple):
    """How a step went.

    `overflow` says that more eigenpairs want tracking than there is room for, `stop` why the
    process ends with this step.
    """

    overflow: Bool[Array, ""]
    stop: STOP


class Observation(eqx.Module):
    """What is known of a process at a recorded step.

    `post` is the post-update state at the weights, `series` are the small arrays that a run
    records, `oscillation` is that of a flow that predicts one, and `members` are those of a view.
    """

    weights: Vector
    post: State
    series: dict[str, Array]
    oscillation: Modes | None = None
    members: tuple[Float[Array, "s d"], State] | None = None


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


def noise_refusal(setting: Setting) -> str:
    """Why central flows of the setting's rule know no mini-batch noise, empty if they do."""
    structure = setting.response.structure
    if setting.noise is None:
        return ""
    if structure.momentum:
        why = "momentum carries the noise of a mini-batch into the steps after it"
    elif structure.decay != "none":
        why = "weight decay damps what the noise drives"
    elif structure.maxima:
        why = "the average of a running maximum is not the maximum of averages"
    else:
        return ""
    return f"with `minibatch.noise` {why}, which is not part of the theory: run without noise"


class AbstractProcess(eqx.Module):
    """Something that moves in optimizer steps from given weights and optimizer state.

    Everything that evolves is in one pytree, the state. `move` takes a step and shows the process
    as it was before it; what only serves the record is left to observers of that view.
    """

    setting: eqx.AbstractVar[Setting]
    oscillates: eqx.AbstractClassVar[bool]
    """Whether its weights alternate between two places, as an optimizer's at the edge do."""
    surveys: ClassVar[bool] = True
    """Whether it needs the eigenpairs where it begins."""

    @abc.abstractmethod
    def refusal(self) -> str:
        """Why the setting's rule has no such process, empty if it has."""

    @abc.abstractmethod
    def init(self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray) -> Any:
        """The state at weights `w` and the optimizer's own state `s` before its step there.

        `pairs` are those of the effective Hessian at `w`, if it surveys; `key` is for what a
        process draws.
        """

    @abc.abstractmethod
    def move(self, state: Any) -> tuple[Any, View, Verdict]:
        """Take one optimizer step."""

    @abc.abstractmethod
    def tracked(self, state: Any) -> Eigenpairs | None:
        """The eigenpairs that it needs to move; None for a process that moves without any."""

    @abc.abstractmethod
    def widened(self, state: Any, capacity: int) -> Any:
        """The same state with room to track `capacity` eigenpairs."""


class AbstractObserver(eqx.Module):
    """A series of weights that is seen in the views of another process, its `source`."""

    source: eqx.AbstractClassVar[str]

    @abc.abstractmethod
    def place(self, view: View) -> Float[Array, "*rows d"]:
        """The weights that it shows of a step, or of rows of them."""


def capacity(process: AbstractProcess, state: Any) -> int:
    """For how many eigenpairs there is room; 0 for a process that moves without any."""
    pairs = process.tracked(state)
    return 0 if pairs is None else pairs.theta.size


def widen_pairs(state: Any, capacity: int) -> Any:
    """A state whose `pairs` are all that depends on their number, with room for `capacity`."""
    return eqx.tree_at(lambda s: s.pairs, state, widen(state.pairs, capacity))
