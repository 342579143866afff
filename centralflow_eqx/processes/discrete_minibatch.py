"""The optimizer with gradients of mini-batches."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from ..engine.curvature import Eigenpairs
from ..engine.response import State, Vector, relax
from ._base import STOP, AbstractProcess, Setting, Verdict, View
from ._registry import PROCESSES
from .discrete import finite


class MinibatchState(eqx.Module):
    """Weights, the optimizer's own state before its step there, and the steps taken.

    Of several optimizers all have a leading axis.
    """

    w: Vector
    s: State
    taken: Int[Array, ""]
    key: UInt32[Array, " words"]


@PROCESSES.register("discrete_minibatch")
class DiscreteMinibatch(AbstractProcess):
    """The optimizer with mini-batch gradients; the record is of the full loss.

    Curvature, gradient norm and loss are those of all examples. Of several optimizers, which differ
    in their mini-batches, they are those at the mean of their weights and states; `Ensemble`
    measures the optimizers themselves.
    """

    setting: Setting
    oscillates: ClassVar[bool] = False
    surveys: ClassVar[bool] = False

    def refusal(self) -> str:
        if self.setting.minibatch is None:
            return "there are no mini-batches: give their size, `minibatch.size` in a spec"
        return ""

    def init(self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray) -> MinibatchState:
        def one(key: PRNGKeyArray) -> MinibatchState:
            return MinibatchState(w, s, jnp.zeros((), jnp.int32), jr.key_data(key))

        seeds = self.setting.seeds
        return one(key) if seeds == 1 else jax.vmap(one)(jr.split(key, seeds))

    def move(self, state: MinibatchState) -> tuple[MinibatchState, View, Verdict]:
        if self.setting.seeds == 1:
            return self._move_one(state)
        # One after the other: what a rule decomposes is no batch then; see `decompose`.
        new, views, verdicts = jax.lax.map(self._move_one, state)
        w, post = jax.tree.map(lambda x: jnp.mean(x, 0), (views.w, views.post))
        series = {
            "gradients": jnp.sum(views.series["gradients"], 0).astype(jnp.int32),
            "train_loss": jnp.mean(views.series["train_loss"], 0),
        }
        view = View(w, post, series, members=(views.w, views.post))
        lost = jnp.any(verdicts.stop != STOP.running)
        stop = STOP.where(lost, STOP.not_finite, STOP.running)
        return new, view, Verdict(jnp.any(verdicts.overflow), stop)

    def _move_one(self, state: MinibatchState) -> tuple[MinibatchState, View, Verdict]:
        minibatch, w = self.setting.minibatch, state.w
        assert minibatch is not None
        loss, grad = jax.value_and_grad(minibatch)(w, state.taken, jr.wrap_key_data(state.key))
        step, s = self.setting.response.rule.update(grad, state.s, w)
        series = {"gradients": jnp.ones((), jnp.int32), "train_loss": loss}
        view = View(w, relax(s, w), series)
        verdict = Verdict(jnp.zeros((), bool), finite(loss, w))
        return MinibatchState(w + step, s, state.taken + 1, state.key), view, verdict

    def tracked(self, state: MinibatchState) -> None:
        return None

    def widened(self, state: MinibatchState, capacity: int) -> MinibatchState:
        return state
