"""Decoupled weight decay, for any rule."""

from typing import Annotated, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Int, PyTree

from ._base import AbstractOptimizer
from ._schedule import LearningRate, as_schedule


class DecoupledDecayState(NamedTuple):
    """Number of steps taken and the state of the rule that is decayed."""

    count: Int[Array, ""]
    rule: Any


class DecoupledDecay(AbstractOptimizer):
    """Another rule's step and -lr weight_decay w, as in AdamW (Loshchilov and Hutter, 2019)."""

    rule: AbstractOptimizer
    lr: LearningRate = eqx.field(converter=as_schedule)
    weight_decay: Annotated[float, Ge(0)]

    def init(self, params: PyTree) -> DecoupledDecayState:
        return DecoupledDecayState(jnp.zeros((), jnp.int32), self.rule.init(params))

    def update(
        self, grad: PyTree, state: DecoupledDecayState, params: PyTree
    ) -> tuple[PyTree, DecoupledDecayState]:
        decay = self.lr(state.count) * self.weight_decay
        step, new = self.rule.update(grad, state.rule, params)
        step = jax.tree.map(lambda d, w: d - decay * w, step, params)
        return step, DecoupledDecayState(state.count + 1, new)
