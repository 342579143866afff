"""Inverse powers of symmetric matrices, with derivatives at any spectrum.

Differentiating `eigh` divides by differences of eigenvalues. The derivatives of f(A) = A^{-p}
itself only need divided differences of f, which have limits where eigenvalues meet. In the
eigenbasis of A, with eigenvalues x (Daleckii and Krein, 1965; Bhatia, Matrix Analysis, V.3),

    Df[E]_ij     = f[x_i, x_j] E_ij
    D2f[E, F]_ij = sum_k f[x_i, x_k, x_j] (E_ik F_kj + F_ik E_kj).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Eigenvalues count as close to x within this fraction of it. Second divided differences of close
# ones come from their Taylor series, whose truncated terms are then below rounding in float64;
# those of others lose at most a factor 1 / _CLOSE to cancellation.
_CLOSE = 1 / 32
_TAYLOR_TERMS = 10


class _Spectrum(NamedTuple):
    """Eigenvalues, zero where they count as zero, and eigenvectors in columns.

    `D` has the first divided differences f[x_i, x_j].
    """

    x: Float[Array, " n"]
    V: Float[Array, "n n"]
    D: Float[Array, "n n"]


def inverse_power(
    A: Float[Array, "n n"], p: float, eps: float | Array = 0.0
) -> Float[Array, "n n"]:
    """(A + eps I)^{-p} of a symmetric positive semidefinite matrix.

    Without `eps` it is the power of the pseudo-inverse: zero on the null space, eigenvalues up to
    n times the rounding unit of the largest one counting as zero (the rank rule of NumPy's
    `matrix_rank`). Derivatives are those at constant rank: f stays zero around a zero eigenvalue.
    With `eps`, negative eigenvalues, which are rounding errors, count as zero.

    Reads the symmetric part of `A`. Differentiable twice; the third derivative raises
    `NotImplementedError`.
    """
    A = (A + A.T) / 2
    if eps > 0:
        return _power(A, _decompose(A, p, eps), p)
    # f(c A) = c^{-p} f(A) for any constant c: in float32, x^{-p-2} may overflow for tiny A.
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(A), initial=0))
    size = jnp.where(size > 0, size, 1)
    A = A / size
    return size**-p * _power(A, _decompose(A, p, eps), p)


def _decompose(A: Float[Array, "n n"], p: float, eps: float | Array) -> _Spectrum:
    x, V = jnp.linalg.eigh(jax.lax.stop_gradient(A), symmetrize_input=False)
    x = jnp.maximum(x, 0)
    if eps > 0:
        x = x + eps
    else:
        cutoff = x.size * float(jnp.finfo(x.dtype).eps) * jnp.max(x, initial=0)
        x = jnp.where(x > cutoff, x, 0)
    return _Spectrum(x, V, _divided(x, p))


# The spectrum is an argument beside the A it comes from, so that derivatives can be applied again
# and again without another eigendecomposition. Only the tangent of A counts.
@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _power(A: Float[Array, "n n"], spectrum: _Spectrum, p: float) -> Float[Array, "n n"]:
    x, V, _ = spectrum
    return (V * _inverse_or_zero(x, p)) @ V.T


@_power.defjvp
def _power_jvp(p, primals, tangents):
    (A, spectrum), (dA, _) = primals, tangents
    return _power(A, spectrum, p), _first(A, spectrum, dA, p)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _first(
    A: Float[Array, "n n"], spectrum: _Spectrum, E: Float[Array, "n n"], p: float
) -> Float[Array, "n n"]:
    _, V, D = spectrum
    return V @ (D * (V.T @ E @ V)) @ V.T


@_first.defjvp
def _first_jvp(p, primals, tangents):
    (A, spectrum, E), (dA, _, dE) = primals, tangents
    moved = _first(A, spectrum, dE, p) + _second(A, spectrum, E, dA, p)
    return _first(A, spectrum, E, p), moved


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _second(
    A: Float[Array, "n n"],
    spectrum: _Spectrum,
    E: Float[Array, "n n"],
    F: Float[Array, "n n"],
    p: float,
) -> Float[Array, "n n"]:
    x, V, D = spectrum
    E, F = V.T @ E @ V, V.T @ F @ V

    def row(of: tuple[Array, Array, Array, Array]) -> Float[Array, " n"]:
        x_i, D_i, E_i, F_i = of
        T = _divided_twice(x_i, D_i, x, D, p)
        return E_i @ (T * F) + F_i @ (T * E)

    # Row by row: n^3 divided differences never exist at once.
    return V @ jax.lax.map(row, (x, D, E, F)) @ V.T


@_second.defjvp
def _second_jvp(p, primals, tangents):
    raise NotImplementedError("inverse_power has derivatives up to the second only")


def _inverse_or_zero(x: Float[Array, "..."], q: float) -> Float[Array, "..."]:
    """x^{-q}, and zero at zero."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** -q, 0)


def _divided(x: Float[Array, " n"], p: float) -> Float[Array, "n n"]:
    """First divided differences f[x_i, x_j], to rounding error also for close eigenvalues."""
    low, gap = jnp.minimum(x[:, None], x), jnp.abs(x[:, None] - x)
    high = low + gap
    safe_low, safe_gap = jnp.where(low > 0, low, 1), jnp.where(gap > 0, gap, 1)
    fall = _inverse_or_zero(low, p) * jnp.expm1(-p * jnp.log1p(gap / safe_low))
    apart = jnp.where(low > 0, fall / safe_gap, _inverse_or_zero(high, p + 1))
    return jnp.where(gap > 0, apart, -p * _inverse_or_zero(low, p + 1))


def _divided_twice(
    x_i: Float[Array, ""],
    D_i: Float[Array, " n"],
    x: Float[Array, " n"],
    D: Float[Array, "n n"],
    p: float,
) -> Float[Array, "n n"]:
    """Second divided differences f[x_i, x_k, x_j], for all k and j.

    Where the three are close, f^{(m+2)}/(m+2)! times the homogeneous polynomials of degree m in
    the distances of x_k and x_j from x_i are added up. Otherwise the first divided differences
    are divided once more, by the widest of the three gaps.
    """
    x_k, x_j = x[:, None], x[None, :]
    gap_k, gap_j, gap_kj = jnp.abs(x_k - x_i), jnp.abs(x_j - x_i), jnp.abs(x_k - x_j)
    widest = jnp.maximum(jnp.maximum(gap_k, gap_j), gap_kj)
    rise = jnp.where(
        gap_j == widest,
        (D_i[:, None] - D) * jnp.sign(x_i - x_j),
        jnp.where(
            gap_k == widest,
            (D_i[None, :] - D) * jnp.sign(x_i - x_k),
            (D_i[:, None] - D_i[None, :]) * jnp.sign(x_k - x_j),
        ),
    )
    apart = rise / jnp.where(widest > 0, widest, 1)

    offset = (x - x_i) / jnp.where(x_i > 0, x_i, 1)
    powers = jnp.vander(jnp.clip(offset, -_CLOSE, _CLOSE), _TAYLOR_TERMS, increasing=True)
    series = powers @ jnp.asarray(_taylor(p), x.dtype) @ powers.T
    together = _inverse_or_zero(x_i, p + 2) * series
    return jnp.where(widest <= _CLOSE * x_i, together, apart)


def _taylor(p: float) -> np.ndarray:
    """Coefficients of u^a v^b in the second divided difference of x^{-p} at 1, 1 + u, 1 + v."""
    degrees = np.arange(2 * _TAYLOR_TERMS)
    binomials = np.cumprod(np.append(1.0, (-p - degrees) / (degrees + 1)))
    terms = np.arange(_TAYLOR_TERMS)
    return binomials[terms[:, None] + terms + 2]
