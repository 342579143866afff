"""Arithmetic shared by the optimizers that divide by a root of squared gradients."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def ema(new: Array, old: Array, decay: float) -> Array:
    """Exponential moving average: `decay * old + (1 - decay) * new`."""
    return decay * old + (1 - decay) * new


def debias(moment: Array, decay: float, count: Array) -> Array:
    """`moment / (1 - decay^count)`: corrects an average that started from zero."""
    return moment / (1 - jnp.asarray(decay, moment.dtype) ** count)


def over_root(
    grad: Float[Array, "..."], moment: Float[Array, "..."], eps: float
) -> Float[Array, "..."]:
    """`grad / (sqrt(moment) + eps)`, and zero where `moment` is zero.

    A coordinate whose gradient has always been zero (a constant input pixel) never moves; the
    guarded root keeps values and derivatives of every order finite there.
    """
    positive = moment > 0
    root = jnp.sqrt(jnp.where(positive, moment, 1))
    return jnp.where(positive, grad / (root + eps), 0)
