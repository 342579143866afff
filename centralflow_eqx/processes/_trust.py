"""How far a flow can be trusted."""

import jax.numpy as jnp
from jaxtyping import Array

from ..engine.curvature import apply_columns, fourth_derivatives
from ._base import Setting, View

DOUBTFUL = 0.3
"""Neglected shares above this make a row untrusted."""
NOT_GAUSSIAN = 1.0
"""So does twice a Gaussian's kurtosis."""


def is_judged(view: View) -> bool:
    """Whether `diagnose` has something to say: flows in equilibrium begin with a verdict."""
    return "trust_cubic" in view.series


def diagnose(setting: Setting, view: View) -> dict[str, Array]:
    """How far the flow can be trusted: the theory is of second order in a small oscillation.

    Per direction, `trust_cubic` is the fraction by which a move as large as the oscillation can
    change the eigenvalue, sqrt(X_ii) (D3^T K D3)^(1/2) / theta_i with D3 = D3[u_i, u_i];
    `trust_quartic` the neglected quartic share of the averaged loss,
    X_ii |D4[u_i, u_i, u_i, u_i]| / (12 theta_i); `trust_response` the share of the optimizer's
    step that is not linear in a gradient as large as it gets (clipping that has become active).
    With mini-batch noise an `excess_kurtosis` above 1 says that the oscillation is not Gaussian.
    Above 0.3 in any other, or with unconverged eigenpairs, the row is flagged `untrusted`.
    """
    swing = view.oscillation
    assert swing is not None
    gain = setting.response.gain(view.post, view.w)
    U = apply_columns(gain, swing.Y)
    variance = jnp.maximum(jnp.diagonal(swing.X), 0).astype(view.w.dtype)
    size = jnp.where(swing.theta != 0, jnp.abs(swing.theta), 1)
    quartic = fourth_derivatives(setting.loss, view.w, U, swing.critical)
    quartic = variance * jnp.abs(quartic) / (12 * size)
    peak = swing.grad + swing.Y @ (swing.theta * jnp.sqrt(variance))
    nonlinearity = setting.response.nonlinearity(view.post, view.w, peak)
    cubic = view.series["trust_cubic"]
    # What is not tracked is NaN, and not doubtful.
    small = ~jnp.any(cubic > DOUBTFUL) & ~jnp.any(quartic > DOUBTFUL) & (nonlinearity <= DOUBTFUL)
    if "excess_kurtosis" in view.series:
        small &= ~(view.series["excess_kurtosis"] > NOT_GAUSSIAN)
    return {
        "trust_quartic": jnp.where(jnp.isnan(cubic), jnp.nan, quartic),
        "trust_response": nonlinearity,
        "untrusted": (~small | (view.series["converged"] == 0)).astype(jnp.int32),
    }
