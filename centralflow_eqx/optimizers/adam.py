"""Adam."""

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ._base import AbstractOptimizer
from ._fields import Beta1, Beta2, BiasCorrection, Eps
from ._moments import MomentsState, debias, init_moments, over_root, update_moments
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


@OPTIMIZERS.register("adam")
class Adam(AbstractOptimizer):
    """Adam: w+ = w - lr mu+ / (sqrt(nu+) + eps), averages mu of g and nu of g^2, debiased."""

    lr: LearningRate = eqx.field(converter=as_schedule)
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    eps: Eps = 1e-8
    bias_correction: BiasCorrection = True

    def init(self, params: PyTree) -> MomentsState:
        return init_moments(params)

    def update(
        self, grad: PyTree, state: MomentsState, params: PyTree
    ) -> tuple[PyTree, MomentsState]:
        lr, new = self.lr(state.count), update_moments(grad, state, self.beta1, self.beta2)

        def step(m: Array, v: Array) -> Array:
            if self.bias_correction:
                m, v = debias(m, self.beta1, new.count), debias(v, self.beta2, new.count)
            return -lr * over_root(m, v, self.eps)

        return jax.tree.map(step, new.mu, new.nu), new
