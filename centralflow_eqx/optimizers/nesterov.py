"""Nesterov momentum."""

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._base import AbstractOptimizer
from ._fields import Momentum
from ._moments import MomentumState, init_momentum, update_momentum
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


@OPTIMIZERS.register("nesterov")
class Nesterov(AbstractOptimizer):
    """Nesterov's accelerated gradient: m+ = momentum m + g, w+ = w - lr (g + momentum m+)."""

    lr: LearningRate = eqx.field(converter=as_schedule)
    momentum: Momentum = 0.9

    def init(self, params: PyTree) -> MomentumState:
        return init_momentum(params)

    def update(
        self, grad: PyTree, state: MomentumState, params: PyTree
    ) -> tuple[PyTree, MomentumState]:
        lr, new = self.lr(state.count), update_momentum(grad, state, self.momentum)
        step = jax.tree.map(lambda g, m: -lr * (g + self.momentum * m), grad, new.m)
        return step, new
