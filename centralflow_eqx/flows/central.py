"""The central flow: the time average of an optimizer that oscillates."""

from jaxtyping import Array, Bool, PRNGKeyArray

from ..response import State, Vector
from ._averaged import AveragedState, init_averaged, step_averaged, widen_averaged
from ._base import AbstractProcess, Observation, Setting, flow_refusal
from ._registry import PROCESSES


@PROCESSES.register("central")
class Central(AbstractProcess):
    """The optimizer's central flow, explicit Euler in substeps of an optimizer step.

    Over a substep the oscillation's covariance Sigma is constant. It adds grad <H, Sigma> / 2 to
    the mean gradient and its own share to the averages in the optimizer's state
    (arXiv 2410.24206).
    """

    setting: Setting

    def refusal(self) -> str:
        return flow_refusal(self.setting)

    def init(self, w: Vector, s: State, capacity: int, key: PRNGKeyArray) -> AveragedState:
        return init_averaged(self.setting, w, s, capacity, key)

    def step(
        self, state: AveragedState, observed: Bool[Array, ""]
    ) -> tuple[AveragedState, Observation]:
        return step_averaged(self.setting, state, observed, penalised=True)

    def widen(self, state: AveragedState, capacity: int) -> AveragedState:
        return widen_averaged(state, capacity)
