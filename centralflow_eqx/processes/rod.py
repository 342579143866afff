"""The rod flow: the optimizer alternates between the ends of a rod that lives by itself."""

from typing import ClassVar

from ._base import Setting
from ._registry import PROCESSES
from ._rods import AbstractRodFlow


@PROCESSES.register("rod")
class Rod(AbstractRodFlow):
    """The flow of a rod, between whose ends the optimizer alternates, by evaluating it at both.

    The oscillation grows from what oscillates where the run begins, or from rounding; a central
    flow has it in equilibrium at once. The rod flow of Regis & Chewi (arXiv 2602.01480,
    2605.06821), of any declared rule.
    """

    setting: Setting
    oscillates: ClassVar[bool] = False
    secant: ClassVar[bool] = True
