"""The optimizer itself."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ..engine.curvature import Eigenpairs
from ..engine.response import State, Vector, relax
from ._base import STOP, AbstractProcess, Setting, Verdict, View
from ._registry import PROCESSES


class DiscreteState(eqx.Module):
    """Weights, the optimizer's own state before its step there, and the iterate before."""

    w: Vector
    s: State
    before: Vector


@PROCESSES.register("discrete")
class Discrete(AbstractProcess):
    """The optimizer's own iteration w+ = w + G(s, g, w)."""

    setting: Setting
    oscillates: ClassVar[bool] = True
    surveys: ClassVar[bool] = False

    def refusal(self) -> str:
        return ""

    def init(self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray) -> DiscreteState:
        # NaN marks that nothing came before the first iterate.
        return DiscreteState(w, s, jnp.full_like(w, jnp.nan))

    def move(self, state: DiscreteState) -> tuple[DiscreteState, View, Verdict]:
        w, rule = state.w, self.setting.response.rule
        loss, grad = jax.value_and_grad(self.setting.loss)(w)
        step, s = rule.update(grad, state.s, w)
        first = jnp.all(jnp.isnan(state.before))
        middle = jnp.where(first, w, (state.before + 2 * w + (w + step)) / 4)
        series = {"gradients": jnp.ones((), jnp.int32), "train_loss": loss}
        view = View(w, relax(s, w), series, middle)
        verdict = Verdict(jnp.zeros((), bool), finite(loss, w))
        return DiscreteState(w + step, s, w), view, verdict

    def tracked(self, state: DiscreteState) -> None:
        return None

    def widened(self, state: DiscreteState, capacity: int) -> DiscreteState:
        return state


def finite(loss: Array, w: Vector) -> STOP:
    """A stop where loss or weights are not finite."""
    ok = jnp.isfinite(loss) & jnp.all(jnp.isfinite(w))
    return STOP.where(ok, STOP.running, STOP.not_finite)
