"""AdamW."""

import equinox as eqx
from jaxtyping import PyTree

from ._base import AbstractOptimizer
from ._decay import DecoupledDecay, DecoupledDecayState
from ._fields import Beta1, Beta2, BiasCorrection, Eps, WeightDecay
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule
from .adam import Adam


@OPTIMIZERS.register("adamw")
class AdamW(AbstractOptimizer):
    """Adam with decoupled weight decay: Adam's step and -lr weight_decay w."""

    lr: LearningRate = eqx.field(converter=as_schedule)
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    eps: Eps = 1e-8
    bias_correction: BiasCorrection = True
    weight_decay: WeightDecay = 1e-4

    @property
    def rule(self) -> DecoupledDecay:
        """The composition that this is short for."""
        adam = Adam(self.lr, self.beta1, self.beta2, self.eps, self.bias_correction)
        return DecoupledDecay(adam, self.lr, self.weight_decay)

    def init(self, params: PyTree) -> DecoupledDecayState:
        return self.rule.init(params)

    def update(
        self, grad: PyTree, state: DecoupledDecayState, params: PyTree
    ) -> tuple[PyTree, DecoupledDecayState]:
        return self.rule.update(grad, state, params)
