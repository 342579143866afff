"""The optimizer's iterates with their oscillation averaged out."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from ..engine.response import State, Vector, relax
from ._base import STOP, AbstractProcess, Observation, Setting, Spectra
from ._registry import PROCESSES
from ._spectra import common_series, track_for_record, widen_spectra


class MidpointState(eqx.Module):
    """Two successive iterates and the optimizer's own state before its step at the second."""

    before: Vector
    w: Vector
    s: State
    spectra: Spectra


@PROCESSES.register("midpoint")
class Midpoint(AbstractProcess):
    """Midpoints of the optimizer's iterates, (w[t-1] + 2 w[t] + w[t+1]) / 4; the first is w[0].

    The process follows the optimizer on its own, one step ahead of what it records. The weights
    average the iterates; the optimizer's state is the one the step at w[t] is taken with.
    """

    setting: Setting

    def refusal(self) -> str:
        return ""

    def init(self, w: Vector, s: State, spectra: Spectra, key: PRNGKeyArray) -> MidpointState:
        # NaN marks that nothing came before the first iterate.
        before = jnp.full_like(w, jnp.nan)
        return MidpointState(before, w, s, spectra)

    def step(
        self, state: MidpointState, observed: Bool[Array, ""]
    ) -> tuple[MidpointState, Observation]:
        setting, w = self.setting, state.w
        step, s = setting.response.rule.update(jax.grad(setting.loss)(w), state.s, w)
        first = jnp.all(jnp.isnan(state.before))
        middle = jnp.where(first, w, (state.before + 2 * w + (w + step)) / 4)
        post = relax(s, w)
        model = setting.local_model(middle)
        gain = setting.response.gain(post, middle)
        spectra = track_for_record(setting, model, gain, state.spectra, observed)
        series = common_series(setting, model, post, gain, spectra)
        observation = Observation(
            middle,
            post,
            series | {"gradients": jnp.full((), 2, jnp.int32)},
            setting.tracker.overflows(spectra.effective),
            STOP.running,
        )
        return MidpointState(w, w + step, s, spectra), observation

    def widen(self, state: MidpointState, capacity: int) -> MidpointState:
        spectra = widen_spectra(state.spectra, capacity)
        return MidpointState(state.before, state.w, state.s, spectra)
