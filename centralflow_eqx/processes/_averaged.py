"""Flows of an optimizer's time average."""

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ..engine.curvature import Eigenpairs
from ..engine.response import State, Vector
from . import _first_order, _second_order
from ._base import (
    AbstractProcess,
    Setting,
    Verdict,
    View,
    flow_refusal,
    noise_refusal,
    widen_pairs,
)

AveragedState = _first_order.EulerState | _second_order.SecondOrderState


class AbstractAveragedFlow(AbstractProcess):
    """A flow of weights and state, with the oscillation that keeps it stable.

    Over a step of its own the oscillation's covariance Sigma is constant. It adds its own share to
    the averages in the optimizer's state and, where `penalised`, grad <H, Sigma> / 2 to the mean
    gradient. `thorough` compiles the path-following solver for problems that Newton's method fails
    on; without it such a problem ends the process.
    """

    setting: eqx.AbstractVar[Setting]
    thorough: eqx.AbstractVar[bool]
    penalised: eqx.AbstractClassVar[bool]

    def refusal(self) -> str:
        return flow_refusal(self.setting) or noise_refusal(self.setting)

    def init(self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray) -> AveragedState:
        method = _first_order if self._is_euler else _second_order
        return method.begin(self.setting, w, s, pairs)

    def move(self, state: AveragedState) -> tuple[AveragedState, View, Verdict]:
        if isinstance(state, _first_order.EulerState):
            return _first_order.advance(self.setting, state, self.penalised, self.thorough)
        return _second_order.advance(self.setting, state, self.penalised, self.thorough)

    def tracked(self, state: AveragedState) -> Eigenpairs:
        return state.pairs

    def widened(self, state: AveragedState, capacity: int) -> AveragedState:
        if isinstance(state, _first_order.EulerState):
            return widen_pairs(state, capacity)
        return _second_order.widened(state, capacity)

    @property
    def _is_euler(self) -> bool:
        return self.setting.settings.stepping == "euler"
