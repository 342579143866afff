"""AdaGrad."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ._base import AbstractOptimizer
from ._fields import Eps
from ._moments import over_root
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


class AdaGradState(NamedTuple):
    """Number of steps taken and the sum of squared gradients, one entry per weight."""

    count: Int[Array, ""]
    sum: PyTree


@OPTIMIZERS.register("adagrad")
class AdaGrad(AbstractOptimizer):
    """AdaGrad: sum+ = sum + g^2, w+ = w - lr g / (sqrt(sum+) + eps)."""

    lr: LearningRate = eqx.field(converter=as_schedule)
    eps: Eps = 1e-8

    def init(self, params: PyTree) -> AdaGradState:
        return AdaGradState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        self, grad: PyTree, state: AdaGradState, params: PyTree
    ) -> tuple[PyTree, AdaGradState]:
        lr = self.lr(state.count)
        total = jax.tree.map(lambda g, v: v + g * g, grad, state.sum)

        def step(g: Array, v: Array) -> Array:
            return -lr * over_root(g, v, self.eps)

        return jax.tree.map(step, grad, total), AdaGradState(state.count + 1, total)
