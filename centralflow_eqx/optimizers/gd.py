"""Gradient descent."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ._base import AbstractOptimizer
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


class GDState(NamedTuple):
    """Number of steps taken."""

    count: Int[Array, ""]


@OPTIMIZERS.register("gd")
class GD(AbstractOptimizer):
    """Gradient descent: w+ = w - lr g."""

    lr: LearningRate = eqx.field(converter=as_schedule)

    def init(self, params: PyTree) -> GDState:
        return GDState(jnp.zeros((), jnp.int32))

    def update(self, grad: PyTree, state: GDState, params: PyTree) -> tuple[PyTree, GDState]:
        lr = self.lr(state.count)
        return jax.tree.map(lambda g: -lr * g, grad), GDState(state.count + 1)
