"""The central flow of an optimizer whose statistics are always up to date."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from ..engine.complementarity import pairs as pair_indices
from ..engine.complementarity import svec
from ..engine.curvature import third_derivatives
from ..engine.oscillation import Oscillation, pair_weights
from ..engine.response import State, Vector, relax
from ..engine.stationary import StationaryState, solve_stationary, stationary_refusal
from ._averaged import observe_averaged, scan_substeps
from ._base import AbstractProcess, Observation, Setting, Spectra, flow_refusal
from ._registry import PROCESSES
from ._spectra import track_raw, widen_spectra

_TOLERANCE = 1e-4  # of the state, far below the error of an Euler step


class StationaryFlowState(eqx.Module):
    """Weights, the stationary state found last, and tracked spectra."""

    w: Vector
    post: State
    spectra: Spectra


@PROCESSES.register("stationary")
class Stationary(AbstractProcess):
    """The central flow with statistics that are stationary under their own oscillation.

    At every substep the averages in the state, and with them Sigma, are those that would settle if
    the weights stood still; explicit Euler moves the weights (arXiv 2410.24206).
    """

    setting: Setting

    def refusal(self) -> str:
        structure = self.setting.response.structure
        return flow_refusal(self.setting) or stationary_refusal(structure)

    def init(self, w: Vector, s: State, spectra: Spectra, key: PRNGKeyArray) -> StationaryFlowState:
        setting = self.setting
        post = setting.response.advance(relax(s, w), jax.grad(setting.loss)(w), w)
        return StationaryFlowState(w, post, spectra)

    def step(
        self, state: StationaryFlowState, observed: Bool[Array, ""]
    ) -> tuple[StationaryFlowState, Observation]:
        def substep(state: StationaryFlowState, first: Array) -> tuple:
            return self._substep(state, observed & first)

        return scan_substeps(substep, state, self.setting.substeps)

    def widen(self, state: StationaryFlowState, capacity: int) -> StationaryFlowState:
        spectra = widen_spectra(state.spectra, capacity)
        return StationaryFlowState(state.w, state.post, spectra)

    def _substep(
        self, state: StationaryFlowState, observed: Bool[Array, ""]
    ) -> tuple[StationaryFlowState, Observation]:
        setting, w = self.setting, state.w
        model = setting.local_model(w)
        found = solve_stationary(
            model,
            setting.response,
            setting.tracker,
            w,
            state.post,
            state.spectra.effective,
            tol=_TOLERANCE,
            exact_above=setting.critical_above,
        )
        oscillation = _oscillation(setting, found)
        point = found.point
        spectra = track_raw(setting, model, Spectra(point.pairs, state.spectra.raw), observed)
        observation = observe_averaged(setting, model, point, oscillation, spectra, observed)
        step = setting.response.step_from(point.post, model.grad + oscillation.penalty, w)
        w = w + step / setting.substeps
        return StationaryFlowState(w, point.post, spectra), observation


def _oscillation(setting: Setting, found: StationaryState) -> Oscillation:
    """The stationary oscillation and the penalty that it puts on curvature."""
    point = found.point
    pairs, X = point.pairs, found.solution.X
    critical = jnp.sum(pairs.mask & (pairs.theta > setting.critical_above)).astype(jnp.int32)
    third = third_derivatives(setting.loss, point.w, pairs.U, critical)
    weights = pair_weights(pairs.theta.size, point.w.dtype)
    rows, columns = pair_indices(pairs.theta.size)
    return Oscillation(
        solution=found.solution,
        penalty=(svec(X).astype(point.w.dtype) * weights) @ third / 2,
        excess=jax.tree.map(jnp.zeros_like, point.post),
        third=third[rows == columns],
        critical=critical,
        slack=jnp.zeros((), point.w.dtype),
        by_state=jnp.full((), jnp.nan, X.dtype),  # nothing here restores a margin over time
    )
