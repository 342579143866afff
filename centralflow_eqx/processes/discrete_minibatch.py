"""The optimizer with gradients of mini-batches."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from ..engine.response import State, Vector, relax
from ._base import STOP, AbstractProcess, Observation, Setting, Spectra
from ._registry import PROCESSES
from ._spectra import common_series, track_for_record, widen_spectra


class MinibatchState(eqx.Module):
    """Weights, the optimizer's own state before its step there, and the steps taken."""

    w: Vector
    s: State
    spectra: Spectra
    taken: Int[Array, ""]
    key: PRNGKeyArray


@PROCESSES.register("discrete_minibatch")
class DiscreteMinibatch(AbstractProcess):
    """The optimizer with mini-batch gradients; the record is of the full loss, no flow is claimed.

    Curvature, gradient norm and loss are those of all examples.
    """

    setting: Setting

    def refusal(self) -> str:
        if self.setting.minibatch is None:
            return "there are no mini-batches: give their size, `minibatch.size` in a spec"
        return ""

    def init(self, w: Vector, s: State, spectra: Spectra, key: PRNGKeyArray) -> MinibatchState:
        return MinibatchState(w, s, spectra, jnp.zeros((), jnp.int32), key)

    def step(
        self, state: MinibatchState, observed: Bool[Array, ""]
    ) -> tuple[MinibatchState, Observation]:
        setting, w = self.setting, state.w
        assert setting.minibatch is not None
        grad = jax.grad(setting.minibatch)(w, state.taken, state.key)
        step, s = setting.response.rule.update(grad, state.s, w)
        post, model = relax(s, w), setting.local_model(w)
        gain = setting.response.gain(post, w)
        spectra = track_for_record(setting, model, gain, state.spectra, observed)
        series = common_series(setting, model, post, gain, spectra)
        observation = Observation(
            w,
            post,
            series | {"gradients": jnp.ones((), jnp.int32)},
            setting.tracker.overflows(spectra.effective),
            STOP.running,
        )
        return MinibatchState(w + step, s, spectra, state.taken + 1, state.key), observation

    def widen(self, state: MinibatchState, capacity: int) -> MinibatchState:
        return eqx.tree_at(lambda s: s.spectra, state, widen_spectra(state.spectra, capacity))
