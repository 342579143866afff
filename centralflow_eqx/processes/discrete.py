"""The optimizer itself."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from ..engine.response import State, Vector, relax
from ._base import STOP, AbstractProcess, Observation, Setting, Spectra
from ._registry import PROCESSES
from ._spectra import common_series, track_for_record, widen_spectra


class DiscreteState(eqx.Module):
    """Weights and the optimizer's own state before its step there."""

    w: Vector
    s: State
    spectra: Spectra


@PROCESSES.register("discrete")
class Discrete(AbstractProcess):
    """The optimizer's own iteration w+ = w + G(s, g, w)."""

    setting: Setting

    def refusal(self) -> str:
        return ""

    def init(self, w: Vector, s: State, spectra: Spectra, key: PRNGKeyArray) -> DiscreteState:
        return DiscreteState(w, s, spectra)

    def step(
        self, state: DiscreteState, observed: Bool[Array, ""]
    ) -> tuple[DiscreteState, Observation]:
        setting, w = self.setting, state.w
        model = setting.local_model(w)
        step, s = setting.response.rule.update(model.grad, state.s, w)
        post = relax(s, w)
        gain = setting.response.gain(post, w)
        spectra = track_for_record(setting, model, gain, state.spectra, observed, oscillating=True)
        series = common_series(setting, model, post, gain, spectra)
        observation = Observation(
            w,
            post,
            series | {"gradients": jnp.ones((), jnp.int32)},
            setting.tracker.overflows(spectra.effective),
            STOP.running,
        )
        return DiscreteState(w + step, s, spectra), observation

    def widen(self, state: DiscreteState, capacity: int) -> DiscreteState:
        return DiscreteState(state.w, state.s, widen_spectra(state.spectra, capacity))
