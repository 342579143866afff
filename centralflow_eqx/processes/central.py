"""The central flow: the time average of an optimizer that oscillates."""

from typing import ClassVar

from ._averaged import AbstractAveragedFlow
from ._base import Setting
from ._registry import PROCESSES


@PROCESSES.register("central")
class Central(AbstractAveragedFlow):
    """The optimizer's central flow, explicit Euler in substeps of an optimizer step.

    The oscillation adds grad <H, Sigma> / 2 to the mean gradient and its own share to the averages
    in the optimizer's state (arXiv 2410.24206). In a setting with noise it is the oscillation that
    mini-batches drive.
    """

    setting: Setting
    thorough: bool = False
    oscillates: ClassVar[bool] = False
    penalised: ClassVar[bool] = True
