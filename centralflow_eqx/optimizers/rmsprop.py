"""RMSProp."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ._base import AbstractOptimizer
from ._fields import Beta2, BiasCorrection, Eps
from ._moments import debias, ema, over_root
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


class RMSPropState(NamedTuple):
    """Number of steps taken and the average of the squared gradient, one entry per weight."""

    count: Int[Array, ""]
    nu: PyTree


@OPTIMIZERS.register("rmsprop")
class RMSProp(AbstractOptimizer):
    """RMSProp: nu+ = beta2 nu + (1 - beta2) g^2, w+ = w - lr g / (sqrt(nu+) + eps)."""

    lr: LearningRate = eqx.field(converter=as_schedule)
    beta2: Beta2 = 0.99
    eps: Eps = 0.0
    bias_correction: BiasCorrection = False

    def init(self, params: PyTree) -> RMSPropState:
        return RMSPropState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        self, grad: PyTree, state: RMSPropState, params: PyTree
    ) -> tuple[PyTree, RMSPropState]:
        lr, count = self.lr(state.count), state.count + 1
        nu = jax.tree.map(lambda g, v: ema(g * g, v, self.beta2), grad, state.nu)

        def step(g: Array, v: Array) -> Array:
            v = debias(v, self.beta2, count) if self.bias_correction else v
            return -lr * over_root(g, v, self.eps)

        return jax.tree.map(step, grad, nu), RMSPropState(count, nu)
