"""The central flow without its curvature penalty."""

from typing import ClassVar

from ._averaged import AbstractAveragedFlow
from ._base import Setting
from ._registry import PROCESSES


@PROCESSES.register("ablated")
class Ablated(AbstractAveragedFlow):
    """The central flow without its curvature penalty: the state sees the oscillation, w does not.

    Sigma is that of the central flow at the same weights and state. What the penalty was good for
    is what this flow lacks: it drifts to sharper regions and takes smaller steps there
    (arXiv 2410.24206, "acceleration via regularization").
    """

    setting: Setting
    thorough: bool = False
    oscillates: ClassVar[bool] = False
    penalised: ClassVar[bool] = False
