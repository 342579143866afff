"""What a measurement may cost, in gradients."""

import jax.numpy as jnp
from jaxtyping import Array, Int

PRODUCT, THIRD, FOURTH = 2, 5, 5
"""Gradients that take as long as a Hessian-vector product, as a third derivative contracted with
two vectors, and as a fourth along a direction."""
FEWEST = 2
"""Products with which an eigenvector that is not known yet can get better."""


def products_within(left: Int[Array, ""], critical: Int[Array, ""]) -> Int[Array, ""]:
    """Products that leave enough for higher derivatives along so many critical directions.

    These get at most half: without eigenvectors they are worth nothing.
    """
    critical = jnp.maximum(critical, 1)
    kept = jnp.minimum(THIRD * pairs_of(critical) + FOURTH * critical, left // 2)
    return jnp.maximum((left - kept) // PRODUCT, FEWEST).astype(jnp.int32)


def directions_within(left: Int[Array, ""], most: int) -> Int[Array, ""]:
    """For how many directions, at most `most`, all third derivatives can be had for `left`."""
    prices = THIRD * pairs_of(jnp.arange(1, most + 1))
    return jnp.sum(prices <= left).astype(jnp.int32)


def pairs_of(directions: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """How many pairs so many directions have, each with itself included."""
    return directions * (directions + 1) // 2
