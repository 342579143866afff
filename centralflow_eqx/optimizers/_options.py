"""What every optimizer's section of a spec may say beside the optimizer's own options."""

import dataclasses
from typing import Annotated, Any

from annotated_types import Ge

from ..options import Class, Options
from ._decay import DecoupledDecay


class OptimizerOptions(Options):
    """Options of an optimizer with a learning rate and no weight decay of its own."""

    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled: the step gains -lr weight_decay w."""

    @classmethod
    def suits(cls, component: Class) -> bool:
        names = {field.name for field in dataclasses.fields(component)}
        return "lr" in names and "weight_decay" not in names

    def build(self) -> Any:
        rule = super().build()
        return DecoupledDecay(rule, rule.lr, self.weight_decay) if self.weight_decay else rule
