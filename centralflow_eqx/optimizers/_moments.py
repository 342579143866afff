"""Statistics of the gradient that several optimizers keep, and arithmetic with them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

Number = float | Array
"""A hyperparameter: while a simulation runs it is an array, so that its value compiles nothing."""


def ema(new: Array, old: Array, decay: Number) -> Array:
    """Exponential moving average: `decay * old + (1 - decay) * new`."""
    return decay * old + (1 - decay) * new


def debias(moment: Array, decay: Number, count: Number) -> Array:
    """`moment / (1 - decay^count)`: corrects an average that started from zero."""
    return moment / (1 - jnp.asarray(decay, moment.dtype) ** count)


def over_root(
    grad: Float[Array, "..."], moment: Float[Array, "..."], eps: Number
) -> Float[Array, "..."]:
    """`grad / (sqrt(moment) + eps)`, and zero where `moment` is zero.

    A coordinate whose gradient has always been zero (a constant input pixel) never moves; the
    guarded root keeps values and derivatives of every order finite there.
    """
    positive = moment > 0
    root = jnp.sqrt(jnp.where(positive, moment, 1))
    return jnp.where(positive, grad / (root + eps), 0)


class MomentumState(NamedTuple):
    """Number of steps taken and the momentum, one entry per weight."""

    count: Int[Array, ""]
    m: PyTree


def init_momentum(params: PyTree) -> MomentumState:
    """Momentum that starts from zero."""
    return MomentumState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))


def update_momentum(grad: PyTree, state: MomentumState, decay: Number) -> MomentumState:
    """m+ = decay m + g."""
    return MomentumState(state.count + 1, jax.tree.map(lambda g, m: decay * m + g, grad, state.m))


class MomentsState(NamedTuple):
    """Number of steps taken, averages of the gradient and of its square, one entry per weight."""

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree


def init_moments(params: PyTree) -> MomentsState:
    """Averages that start from zero."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return MomentsState(jnp.zeros((), jnp.int32), zeros, zeros)


def update_moments(grad: PyTree, state: MomentsState, beta1: Number, beta2: Number) -> MomentsState:
    """mu+ = beta1 mu + (1 - beta1) g, nu+ = beta2 nu + (1 - beta2) g^2."""
    mu = jax.tree.map(lambda g, m: ema(g, m, beta1), grad, state.mu)
    nu = jax.tree.map(lambda g, v: ema(g * g, v, beta2), grad, state.nu)
    return MomentsState(state.count + 1, mu, nu)
