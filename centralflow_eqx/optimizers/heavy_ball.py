"""Heavy-ball momentum."""

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._base import AbstractOptimizer
from ._fields import Momentum
from ._moments import MomentumState, init_momentum, update_momentum
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


@OPTIMIZERS.register("heavy_ball")
class HeavyBall(AbstractOptimizer):
    """Gradient descent with momentum: m+ = momentum m + g, w+ = w - lr m+."""

    lr: LearningRate = eqx.field(converter=as_schedule)
    momentum: Momentum = 0.9

    def init(self, params: PyTree) -> MomentumState:
        return init_momentum(params)

    def update(
        self, grad: PyTree, state: MomentumState, params: PyTree
    ) -> tuple[PyTree, MomentumState]:
        lr, new = self.lr(state.count), update_momentum(grad, state, self.momentum)
        return jax.tree.map(lambda m: -lr * m, new.m), new
