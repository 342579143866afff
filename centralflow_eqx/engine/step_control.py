"""Lengths of steps: powers of two of optimizer steps, so that every row is reached exactly.

Diffrax's controllers take steps of any length and judge each by an error that is known as soon as
it is taken. Here most of the error is known only where the next step looks, and a step has to end
where the optimizer's does.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SHORTEST = 1 / 8
FIRST = 1 / 8
"""Length of a first step, which has no slopes to extrapolate by."""
_AIM = 1.1
"""Share of the length that the error allows: what single steps are off by partly cancels along a
flow, whose error was a quarter to two thirds of theirs."""
_SURPRISE = 2.0  # eigenvalues may rise so many times as fast as they did
FAR_OFF = 3.0  # an error of so many times what is allowed is not put up with


def power_of_two(h: Float[Array, ""]) -> Float[Array, ""]:
    """The largest power of two that is at most `h`."""
    return jnp.ldexp(jnp.ones_like(h), jnp.frexp(h)[1] - 1)


def next_length(
    h: Float[Array, ""],
    error: Float[Array, ""],
    tol: Float[Array, ""],
    longest: Float[Array, ""],
) -> Float[Array, ""]:
    """The length that makes an error of `tol`, where one of `h` made `error`, at most twice it."""
    most = jnp.minimum(2 * h, longest)
    fit = _AIM * h * jnp.sqrt(tol / jnp.maximum(error, jnp.finfo(h.dtype).tiny))
    # an error that is not known is no reason to go on as before
    fit = jnp.where(jnp.isnan(fit), SHORTEST, fit)
    return power_of_two(jnp.clip(fit, SHORTEST, most))


def aligned(h: Float[Array, ""], phase: Float[Array, ""]) -> Float[Array, ""]:
    """The longest length up to `h` whose multiple the `phase` within an optimizer step is."""
    units = jnp.round(phase / SHORTEST).astype(jnp.int32)
    fitting = (units & -units).astype(h.dtype) * SHORTEST
    return jnp.where(units == 0, h, jnp.minimum(h, fitting))


def onset_length(tol: Float[Array, ""], momentum: bool) -> Float[Array, ""]:
    """Length of a step in which an oscillation may begin: at a tolerance of 1e-3 an optimizer step,
    half of one where momentum has to be stopped, and of second order in it."""
    whole = 0.5 if momentum else 1.0
    return jnp.maximum(whole * jnp.sqrt(tol / 1e-3), SHORTEST)


def arrival(
    theta: Float[Array, " m"],
    rates: Float[Array, " m"],
    waiting: Bool[Array, " m"],
    threshold: Float[Array, ""],
) -> Float[Array, ""]:
    """When the first of the `waiting` eigenvalues would reach a threshold at twice these rates."""
    rising = waiting & (rates > 0)
    left = jnp.maximum(threshold - theta, 0) / jnp.where(rising, _SURPRISE * rates, 1)
    return jnp.min(jnp.where(rising, left, jnp.inf), initial=jnp.inf)


def rejected(error: Float[Array, ""], tol: Float[Array, ""], h: Float[Array, ""]) -> Array:
    """Whether a step that is seen to be off by `error` is to be taken anew, half as long."""
    return ~(error <= FAR_OFF * tol) & (h > SHORTEST)
