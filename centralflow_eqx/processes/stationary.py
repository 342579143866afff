"""The central flow of an optimizer whose statistics are always up to date."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ..engine.curvature import Eigenpairs
from ..engine.oscillation import Oscillation, count_critical, curvature_penalty
from ..engine.response import State, Vector, relax
from ..engine.stationary import StationaryState, solve_stationary, stationary_refusal
from ._base import AbstractProcess, Setting, Verdict, View, flow_refusal, widen_pairs
from ._first_order import Moment, take_substeps
from ._registry import PROCESSES

_TOLERANCE = 1e-4  # of the state, far below the error of an Euler step


class StationaryFlowState(eqx.Module):
    """Weights, the stationary state found last, and tracked eigenpairs."""

    w: Vector
    post: State
    pairs: Eigenpairs


@PROCESSES.register("stationary")
class Stationary(AbstractProcess):
    """The central flow with statistics that are stationary under their own oscillation.

    At every substep the averages in the state, and with them Sigma, are those that would settle if
    the weights stood still; explicit Euler moves the weights (arXiv 2410.24206).
    """

    setting: Setting
    oscillates: ClassVar[bool] = False

    def refusal(self) -> str:
        structure = self.setting.response.structure
        return flow_refusal(self.setting) or stationary_refusal(structure)

    def init(
        self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray
    ) -> StationaryFlowState:
        setting = self.setting
        post = setting.response.advance(relax(s, w), jax.grad(setting.loss)(w), w)
        return StationaryFlowState(w, post, pairs)

    def move(self, state: StationaryFlowState) -> tuple[StationaryFlowState, View, Verdict]:
        return take_substeps(self.setting, self._substep, state)

    def tracked(self, state: StationaryFlowState) -> Eigenpairs:
        return state.pairs

    def widened(self, state: StationaryFlowState, capacity: int) -> StationaryFlowState:
        return widen_pairs(state, capacity)

    def _substep(
        self, state: StationaryFlowState, first: Array
    ) -> tuple[StationaryFlowState, Moment]:
        del first  # a solve explores in each of its iterations
        setting, w = self.setting, state.w
        model = setting.local_model(w)
        found = solve_stationary(
            model,
            setting.response,
            setting.tracker,
            w,
            state.post,
            state.pairs,
            tol=_TOLERANCE,
            exact_above=setting.settings.critical_above,
        )
        oscillation, point = _oscillation(setting, found), found.point
        step = setting.response.step_from(point.post, model.grad + oscillation.penalty, w)
        moment = Moment(w, point.post, model.loss, model.grad, point.pairs, oscillation)
        w = w + step * setting.settings.dt
        return StationaryFlowState(w, point.post, point.pairs), moment


def _oscillation(setting: Setting, found: StationaryState) -> Oscillation:
    """The stationary oscillation and the penalty that it puts on curvature."""
    point, X = found.point, found.solution.X
    critical = count_critical(point.pairs, setting.settings.critical_above)
    penalty, pull = curvature_penalty(setting.loss, point, X, critical)
    return Oscillation(
        solution=found.solution,
        penalty=penalty,
        excess=jax.tree.map(jnp.zeros_like, point.post),
        pull=pull,
        critical=critical,
        slack=jnp.zeros((), point.w.dtype),
        by_state=jnp.full((), jnp.nan, X.dtype),  # nothing here restores a margin over time
    )
