"""Scalar RMSProp."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ._base import AbstractOptimizer
from ._fields import Beta2, BiasCorrection, Eps
from ._moments import debias, ema, over_root
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


class ScalarRMSPropState(NamedTuple):
    """Number of steps taken and the average of the gradient's squared norm."""

    count: Int[Array, ""]
    nu: Float[Array, ""]


@OPTIMIZERS.register("scalar_rmsprop")
class ScalarRMSProp(AbstractOptimizer):
    """RMSProp with one step size: nu+ = beta2 nu + (1 - beta2) |g|^2, w+ = w - lr g / sqrt(nu+).

    `eps` is added to the root, as in RMSProp.
    """

    lr: LearningRate = eqx.field(converter=as_schedule)
    beta2: Beta2 = 0.99
    eps: Eps = 0.0
    bias_correction: BiasCorrection = False

    def init(self, params: PyTree) -> ScalarRMSPropState:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return ScalarRMSPropState(jnp.zeros((), jnp.int32), jnp.zeros((), dtype))

    def update(
        self, grad: PyTree, state: ScalarRMSPropState, params: PyTree
    ) -> tuple[PyTree, ScalarRMSPropState]:
        lr, count = self.lr(state.count), state.count + 1
        norm_sq = optax.tree.norm(grad, squared=True)
        nu = ema(norm_sq, state.nu, self.beta2)
        scale = debias(nu, self.beta2, count) if self.bias_correction else nu
        step = jax.tree.map(lambda g: -lr * over_root(g, scale, self.eps), grad)
        return step, ScalarRMSPropState(count, nu)
