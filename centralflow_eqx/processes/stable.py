"""The flow of an optimizer that never oscillates."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ..engine.curvature import Eigenpairs
from ..engine.response import State, Vector, relax
from ._base import STOP, AbstractProcess, Setting, Verdict, View, flow_refusal, widen_pairs
from ._registry import PROCESSES
from ._spectra import common_series
from .discrete import finite


class StableState(eqx.Module):
    """Weights, post-update optimizer state, tracked eigenpairs."""

    w: Vector
    post: State
    pairs: Eigenpairs


@PROCESSES.register("stable")
class Stable(AbstractProcess):
    """The smooth flow without oscillation (gradient flow for gradient descent).

    dw/dt = G(s, g), ds/dt = rate(J) (F(s, g) - s) with a post-update state s, integrated
    adaptively (Tsit5). It becomes stiff as the effective sharpness grows, which bounds the step
    size of an explicit method, and stops beyond `max_sharpness`, at whatever step that happens.
    """

    setting: Setting
    max_substeps: int = 4096
    oscillates: ClassVar[bool] = False

    def refusal(self) -> str:
        return flow_refusal(self.setting)

    def init(self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray) -> StableState:
        setting = self.setting
        grad = jax.grad(setting.loss)(w)
        post = setting.rate.start(setting.response, relax(s, w), grad, w, 0.0)
        return StableState(w, post, pairs)

    def move(self, state: StableState) -> tuple[StableState, View, Verdict]:
        setting, w, post = self.setting, state.w, state.post
        model = setting.local_model(w)
        gain = setting.response.gain(post, w)
        pairs = setting.tracker.solve(model, gain, state.pairs, explore=True)
        sharpness = pairs.theta[0]
        new, gradients, failed = self._integrate(w, post, sharpness)
        stop = STOP.where(
            sharpness > setting.settings.max_sharpness,
            STOP.sharpness,
            STOP.where(failed, STOP.step_size, STOP.running),
        )
        bad = finite(model.loss, w)
        stop = STOP.where(bad == STOP.running, stop, bad)
        series = common_series(setting, model.loss, model.grad, gain, pairs)
        series["gradients"] = gradients + 1
        verdict = Verdict(setting.tracker.overflows(pairs), stop)
        return StableState(*new, pairs), View(w, post, series), verdict

    def tracked(self, state: StableState) -> Eigenpairs:
        return state.pairs

    def widened(self, state: StableState, capacity: int) -> StableState:
        return widen_pairs(state, capacity)

    def _velocity(self, y: tuple[Vector, State]) -> tuple[Vector, State]:
        (w, post), response, rate = y, self.setting.response, self.setting.rate
        grad = jax.grad(self.setting.loss)(w)
        target, J = response.advance(post, grad, w), response.slopes(post, w)
        ds = jax.tree.map(lambda f, s, j: rate.rate(j) * (f - s), target, post, J)
        return response.step_from(post, grad, w, J), ds

    def _integrate(
        self, w: Vector, post: State, sharpness: Array
    ) -> tuple[tuple[Vector, State], Array, Array]:
        """One unit of time: `((w, s), gradients evaluated, failed)`."""
        from ..engine.smooth import flow_for_a_step  # imports Diffrax

        tol = 1e-6 if w.dtype == jnp.float64 else 1e-4
        # Tsit5 is stable on the negative real axis down to about -3.
        first = jnp.minimum(w.dtype.type(1), 2 / jnp.maximum(sharpness, 1e-6))
        new, steps, failed = flow_for_a_step(
            self._velocity, (w, post), first, tol, self.max_substeps
        )
        return new, 6 * steps + 1, failed
