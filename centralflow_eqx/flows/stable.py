"""The flow of an optimizer that never oscillates."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from ..response import State, Vector, relax
from ._base import STOP, AbstractProcess, Observation, Setting, Spectra, flow_refusal
from ._registry import PROCESSES
from ._spectra import common_series, track_for_record, widen_spectra


class StableState(eqx.Module):
    """Weights and post-update optimizer state."""

    w: Vector
    post: State
    spectra: Spectra


@PROCESSES.register("stable")
class Stable(AbstractProcess):
    """The smooth flow without oscillation (gradient flow for gradient descent).

    dw/dt = G(s, g), ds/dt = rate(J) (F(s, g) - s) with a post-update state s, integrated
    adaptively (Tsit5). It becomes stiff as the effective sharpness grows, which bounds the step
    size of an explicit method, and stops beyond `max_sharpness`.
    """

    setting: Setting
    max_substeps: int = 4096

    def refusal(self) -> str:
        return flow_refusal(self.setting)

    def init(self, w: Vector, s: State, spectra: Spectra, key: PRNGKeyArray) -> StableState:
        setting = self.setting
        grad = jax.grad(setting.loss)(w)
        post = setting.rate.start(setting.response, relax(s, w), grad, w, 0.0)
        return StableState(w, post, spectra)

    def step(
        self, state: StableState, observed: Bool[Array, ""]
    ) -> tuple[StableState, Observation]:
        setting, w, post = self.setting, state.w, state.post
        model = setting.local_model(w)
        gain = setting.response.gain(post, w)
        spectra = track_for_record(setting, model, gain, state.spectra, observed)
        sharpness = spectra.effective.theta[0]
        series = common_series(setting, model, post, gain, spectra)
        new, gradients, failed = self._integrate(w, post, sharpness)
        stop = STOP.where(
            sharpness > setting.max_sharpness,
            STOP.sharpness,
            STOP.where(failed, STOP.step_size, STOP.running),
        )
        observation = Observation(
            w,
            post,
            series | {"gradients": gradients + 1},
            setting.tracker.overflows(spectra.effective),
            stop,
        )
        return StableState(*new, spectra), observation

    def widen(self, state: StableState, capacity: int) -> StableState:
        return StableState(state.w, state.post, widen_spectra(state.spectra, capacity))

    def _velocity(self, t: Any, y: PyTree, args: PyTree) -> tuple[Vector, State]:
        (w, post), response, rate = y, self.setting.response, self.setting.rate
        grad = jax.grad(self.setting.loss)(w)
        target, J = response.advance(post, grad, w), response.slopes(post, w)
        ds = jax.tree.map(lambda f, s, j: rate.rate(j) * (f - s), target, post, J)
        return response.step_from(post, grad, w), ds

    def _integrate(
        self, w: Vector, post: State, sharpness: Array
    ) -> tuple[tuple[Vector, State], Array, Array]:
        """One unit of time: `((w, s), gradients evaluated, failed)`."""
        tol = 1e-6 if w.dtype == jnp.float64 else 1e-4
        # Tsit5 is stable on the negative real axis down to about -3.
        longest = 3 / jnp.maximum(sharpness, 1e-6)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(self._velocity),
            dfx.Tsit5(),
            t0=0.0,
            t1=1.0,
            # Diffrax would check a dt0 that is not known at compile time by a host callback.
            dt0=1.0,
            y0=(w, post),
            stepsize_controller=dfx.PIDController(
                rtol=tol, atol=1e-2 * tol, dtmax=longest.astype(w.dtype)
            ),
            max_steps=self.max_substeps,
            adjoint=dfx.DirectAdjoint(),
            throw=False,
        )
        new = jax.tree.map(lambda x: x[0], solution.ys)
        gradients = 6 * solution.stats["num_steps"] + 1
        return new, gradients, solution.result != dfx.RESULTS.successful
