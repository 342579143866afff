"""Shampoo."""

from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, Int, PyTree
from typing_extensions import Doc

from ._base import AbstractOptimizer
from ._fields import Beta2, Eps
from ._matrix_power import inverse_power
from ._moments import ema, over_root
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, as_schedule


class Factors(NamedTuple):
    """Averages of G G^T and G^T G for the gradient G of a matrix."""

    left: Float[Array, "m m"]
    right: Float[Array, "n n"]


class ShampooState(NamedTuple):
    """Number of steps taken and the statistics, in the place of each array of weights.

    Those of a matrix are its `Factors`, those of a vector the average of the squared gradient.
    """

    count: Int[Array, ""]
    statistics: PyTree


@OPTIMIZERS.register("shampoo")
class Shampoo(AbstractOptimizer):
    """Shampoo (Gupta et al., 2018): W+ = W - lr (L+ + eps I)^{-power} G (R+ + eps I)^{-power}.

    The statistics of a matrix's gradient G are averages, as in RMSProp:

        L+ = beta2 L + (1 - beta2) G G^T,    R+ = beta2 R + (1 - beta2) G^T G.

    Arrays of more than two dimensions are matrices of their first axis by the rest; those of
    fewer follow RMSProp, with `eps` added to the root. With eps = 0 the powers are those of
    pseudo-inverses, zero on rows and columns whose gradient has always been zero.
    """

    lr: LearningRate = eqx.field(converter=as_schedule)
    beta2: Beta2 = 0.99
    eps: Eps = 1e-8
    power: Annotated[float, Gt(0), Doc("Each factor is raised to minus this.")] = 0.25

    def init(self, params: PyTree) -> ShampooState:
        def zeros(w: Array) -> Factors | Array:
            if w.ndim < 2:
                return jnp.zeros_like(w)
            m, n = _as_matrix(w).shape
            return Factors(jnp.zeros((m, m), w.dtype), jnp.zeros((n, n), w.dtype))

        return ShampooState(jnp.zeros((), jnp.int32), jax.tree.map(zeros, params))

    def update(
        self, grad: PyTree, state: ShampooState, params: PyTree
    ) -> tuple[PyTree, ShampooState]:
        lr = self.lr(state.count)

        def average(g: Array, old: Factors | Array) -> Factors | Array:
            if not isinstance(old, Factors):
                return ema(g * g, old, self.beta2)
            G = _as_matrix(g)
            return Factors(ema(G @ G.T, old.left, self.beta2), ema(G.T @ G, old.right, self.beta2))

        def step(g: Array, statistic: Factors | Array) -> Array:
            if not isinstance(statistic, Factors):
                return -lr * over_root(g, statistic, self.eps)
            left, right = (inverse_power(A, self.power, self.eps) for A in statistic)
            return -lr * (left @ _as_matrix(g) @ right).reshape(g.shape)

        statistics = jax.tree.map(average, grad, state.statistics)
        return (
            jax.tree.map(step, grad, statistics),
            ShampooState(state.count + 1, statistics),
        )


def _as_matrix(w: Float[Array, "m ..."]) -> Float[Array, "m n"]:
    return w.reshape(w.shape[0], -1)
