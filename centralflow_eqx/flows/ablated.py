"""The central flow without its curvature penalty."""

from jaxtyping import Array, Bool, PRNGKeyArray

from ..response import State, Vector
from ._averaged import AveragedState, init_averaged, step_averaged, widen_averaged
from ._base import AbstractProcess, Observation, Setting, flow_refusal
from ._registry import PROCESSES


@PROCESSES.register("ablated")
class Ablated(AbstractProcess):
    """The central flow without its curvature penalty: the state sees the oscillation, w does not.

    Sigma is that of the central flow at the same weights and state. What the penalty was good for
    is what this flow lacks: it drifts to sharper regions and takes smaller steps there
    (arXiv 2410.24206, "acceleration via regularization").
    """

    setting: Setting

    def refusal(self) -> str:
        return flow_refusal(self.setting)

    def init(self, w: Vector, s: State, capacity: int, key: PRNGKeyArray) -> AveragedState:
        return init_averaged(self.setting, w, s, capacity, key)

    def step(
        self, state: AveragedState, observed: Bool[Array, ""]
    ) -> tuple[AveragedState, Observation]:
        return step_averaged(self.setting, state, observed, penalised=False)

    def widen(self, state: AveragedState, capacity: int) -> AveragedState:
        return widen_averaged(state, capacity)
