"""The prediction of a central flow as a function that JAX differentiates."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from ..engine.curvature import Loss
from ..engine.response import Rule, Vector, traced_numbers
from ..engine.settings import Settings
from ..engine.state_rate import STATE_RATES
from ..errors import UnsupportedRule
from ..optimizers import AbstractOptimizer, Optax
from ..precision import engage
from ..processes import End, Setting, flow_refusal, run_differentiably
from ..task import identity
from .arguments import check_count, check_problem, check_settings
from .start import respond


class DifferentiableFlow(eqx.Module):
    """The central flow of a loss from any weights, by any rule of the kind it was made for.

    A pure function for `jax.grad`, `jax.jacfwd`, `jax.jit`; make it with `differentiable_flow`.
    """

    setting: Setting
    structure: Any = eqx.field(static=True)
    weights: jax.ShapeDtypeStruct = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    room: int = eqx.field(static=True)

    def __call__(
        self, optimizer: AbstractOptimizer, w: PyTree[Float[ArrayLike, "..."]]
    ) -> Float[Array, ""]:
        """The training loss that is predicted, as the oscillating optimizer's average, at the end.

        NaN, as are its derivatives, where the flow is not `valid`.
        """
        end = self.end(optimizer, w)
        return end.predicted_loss * jnp.where(end.valid, 1, jnp.nan)

    def end(self, optimizer: AbstractOptimizer, w: PyTree[Float[ArrayLike, "..."]]) -> End:
        """Weights and losses at the end, and whether they are `valid`.

        `optimizer` has the structure of the one that the flow was made for, and `w` is flat or has
        that of its weights. Raises `ValueError` where they have not.
        """
        found = jax.tree.structure(optimizer)
        if found != self.structure:
            wanted = f"optimizer must be a rule such as the flow was made for, {self.structure}"
            raise ValueError(f"{wanted}, got {found}: make another flow for it")
        flat = _flat(w).astype(self.weights.dtype)
        if flat.shape != self.weights.shape:
            raise ValueError(f"w must have {self.weights.size} numbers, got {flat.size}")
        rule = Rule(optimizer, self.setting.response.rule.unravel)
        return _end(self, traced_numbers(rule, flat), flat)


@eqx.filter_jit
def _end(flow: DifferentiableFlow, rule: Rule, w: Vector) -> End:
    setting = eqx.tree_at(lambda s: s.response.rule, flow.setting, rule)
    return run_differentiably(setting, w, rule.init(w), flow.steps, flow.substeps, flow.room)


def _flat(w: PyTree[Float[ArrayLike, "..."]]) -> Vector:
    """All numbers of a pytree in the order of its leaves."""
    leaves = jax.tree.leaves(w)
    numbers = [x for x in leaves if eqx.is_inexact_array(x) or isinstance(x, float)]
    return jnp.concatenate([jnp.zeros(0), *map(jnp.ravel, numbers)])


def differentiable_flow(
    loss: Loss,
    optimizer: AbstractOptimizer,
    w: PyTree[Float[ArrayLike, "..."]],
    *,
    steps: int,
    unravel: Callable[[Vector], PyTree] = identity,
    settings: Settings = Settings(method="euler"),  # noqa: B008
    directions: int = 2,
    seed: int = 0,
) -> DifferentiableFlow:
    """The loss predicted after `steps` optimizer steps as a function of (optimizer, weights).

        flow = differentiable_flow(loss, GD(0.4), w, steps=100)
        jax.grad(lambda lr: flow(GD(lr), w))(0.4)

    `loss`, `optimizer`, `w` and `unravel` are those of `simulate`; the loss must be four times
    differentiable. Which response the rule has is found out once, at `w`; later rules and weights
    may have other numbers, but none that change it: momentum or weight decay of 0, where it was
    not. Steps are Euler's, as many a step as `settings.substeps`: adaptive lengths are no
    differentiable function. `directions` is how many may be critical at a time; a prediction with
    more of them is not `valid`.

    Eigenvectors and the oscillation are differentiated by the implicit function theorem, so that
    derivatives are as good as what is solved for: to about `settings.tol`. Reverse mode keeps about
    2 sqrt(steps x substeps) states of the flow. Only first derivatives are right.

    Raises `ValueError` for arguments that it cannot work with, `UnsupportedRule` for rules outside
    of the theory or whose gain mixes weights, as Shampoo's does.
    """
    engage()
    check_count("steps", steps, 1)
    check_count("directions", directions, 1)
    if isinstance(optimizer, Optax) or not isinstance(optimizer, AbstractOptimizer):
        wanted = "optimizer must be a rule whose numbers are its fields, as those of optimizers are"
        raise ValueError(f"{wanted}; Optax's transformations hide theirs")
    loss, optimizer, flat, unravel = check_problem(loss, optimizer, w, unravel)
    check_settings(settings, flat.size)
    if settings.stepping != "euler":
        raise ValueError(
            f"settings.method must be 'euler', got {settings.method!r}: the lengths of other steps "
            "follow from errors, which have no derivative"
        )
    response, *_ = respond(loss, optimizer, unravel, flat, 0, jr.key(seed))
    rate = STATE_RATES[settings.state_rate]
    setting = Setting(loss, response, rate, settings.resolved(flat.dtype, rate.restoration))
    mixes = "general" in (response.structure.gain, response.structure.decay)
    mixed = "its gain mixes weights, and derivatives of its eigenvectors are not offered"
    if why := flow_refusal(setting) or (mixed if mixes else ""):
        raise UnsupportedRule(f"no differentiable flow here: {why}")
    return DifferentiableFlow(
        setting,
        jax.tree.structure(optimizer),
        jax.ShapeDtypeStruct(flat.shape, flat.dtype),
        steps,
        settings.substeps,
        min(flat.size, 2 * directions),
    )
