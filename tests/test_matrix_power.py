"""Inverse powers of symmetric matrices: values, and two derivatives at any spectrum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from _losses import orthogonal, symmetric

from centralflow_eqx.optimizers._matrix_power import inverse_power

P, N, RANK = 0.25, 6, 3
SPECTRA = {
    "spread": np.logspace(-2, 2, N),
    "repeated": [0.5, 0.5, 0.5, 2, 2, 7],
    "one": [3.0] * N,
    **{
        f"gap {gap}": [1, 1 + gap, 1 + 3 * gap, 2, 2 + gap, 7]
        for gap in (1e-12, 1e-9, 1e-6, 1e-3, 1e-2, 3e-2, 1e-1)
    },
}
CONDITION = 1e4  # of the worst, "spread"
MATRICES = {name: symmetric(x) for name, x in SPECTRA.items()}
MATRICES["exactly repeated"] = np.diag(SPECTRA["repeated"])


def directions(seed=0, n=N):
    E, F = np.random.default_rng(seed).normal(size=(2, n, n))
    return E + E.T, F + F.T


def derivatives(A, E, F, p=P, eps=0.0):
    """f(A), Df[E] and D2f[E, F]."""

    def first(A):
        return jax.jvp(lambda A: inverse_power(A, p, eps), (A,), (E,))

    (value, along), (_, second) = jax.jvp(first, (A,), (F,))
    return value, along, second


compiled = jax.jit(derivatives, static_argnames=("p", "eps"))


def close(a, b, tol):
    """Relative to the largest entry of b."""
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tol * np.abs(y).max())


def by_triangular_blocks(A, E, F, p):
    """The same out of one power of a larger matrix, by a method without eigenvectors."""
    Z = np.zeros_like(A)
    whole = scipy.linalg.fractional_matrix_power(
        np.block([[A, E, F, Z], [Z, A, Z, F], [Z, Z, A, E], [Z, Z, Z, A]]), -p
    )
    return whole[:N, :N], whole[:N, N : 2 * N], whole[:N, 3 * N :]


@pytest.mark.parametrize("p", [P, 0.7])
@pytest.mark.parametrize("name", MATRICES)
def test_against_powers_of_triangular_blocks(name, p):
    A, (E, F) = MATRICES[name], directions()
    close(compiled(A, E, F, p=p), by_triangular_blocks(A, E, F, p), 1e-11)


@pytest.mark.parametrize("name", MATRICES)
def test_power_one_is_the_inverse(name):
    A, (E, F) = MATRICES[name], directions()
    B = np.linalg.inv(A)
    expected = B, -B @ E @ B, B @ E @ B @ F @ B + B @ F @ B @ E @ B
    close(compiled(A, E, F, p=1.0), expected, 1e-12)


@pytest.mark.parametrize("name", SPECTRA)
def test_directions_that_commute(name):
    x, Q = np.asarray(SPECTRA[name]), orthogonal(N)
    e, f = np.random.default_rng(1).normal(size=(2, N))
    A, E, F = (Q * x @ Q.T for x in (x, e, f))
    scalars = x**-P, -P * x ** (-P - 1) * e, P * (P + 1) * x ** (-P - 2) * e * f
    close(compiled(A, E, F), [Q * y @ Q.T for y in scalars], 1e-11)


def plain(A):
    """The power of the pseudo-inverse, in NumPy."""
    x, V = np.linalg.eigh(A)
    kept = x > 1e-9 * x[-1]
    return V[:, kept] * x[kept] ** -P @ V[:, kept].T


def centred(f, h):
    """First and second derivative at 0, by central differences of sixth order."""
    values = np.array([f(k * h) for k in range(-3, 4)])
    first = np.tensordot([-1, 9, -45, 0, 45, -9, 1], values, 1) / (60 * h)
    second = np.tensordot([2, -27, 270, -490, 270, -27, 2], values, 1) / (180 * h**2)
    return first, second


@pytest.mark.parametrize("name", MATRICES)
def test_against_finite_differences(name):
    A, E = MATRICES[name], directions()[0] * 0.01
    first, second = centred(lambda t: plain(A + t * E), 3e-2)
    close(compiled(A, E, E), (plain(A), first, second), 1e-7)


FACTORS = {
    "flat": orthogonal(N)[:, :RANK],
    "nearly flat": orthogonal(N)[:, :RANK] * [1, 1 + 1e-9, 1 + 1e-3],
    "spread": orthogonal(N)[:, :RANK] * [0.3, 1, 10],
    "dead rows": np.vstack([np.zeros((2, RANK)), orthogonal(N)[:4, :RANK]]),
}


@jax.jit
def along_factors(B, C):
    """The power of B(t) B(t)^T, B(t) = B + t C, and its two derivatives by t, in two ways.

    The second is B (B^T B)^{-p-1} B^T, where nothing is singular.
    """

    def both(t):
        B_t = B + t * C
        inner = inverse_power(B_t.T @ B_t, P + 1)
        return jnp.stack([inverse_power(B_t @ B_t.T, P), B_t @ inner @ B_t.T])

    def first(t):
        return jax.jvp(both, (t,), (jnp.ones(()),))

    (value, along), (_, second) = jax.jvp(first, (jnp.zeros(()),), (jnp.ones(()),))
    return value, along, second


@pytest.mark.parametrize("name", FACTORS)
def test_singular_matrices_have_the_derivatives_of_the_pseudo_inverse(name):
    B = FACTORS[name]
    C = np.random.default_rng(2).normal(size=B.shape) * (B != 0)
    ours, regular = zip(*along_factors(B, C), strict=True)
    close(ours, regular, 1e-11)
    numeric = centred(lambda t: plain((B + t * C) @ (B + t * C).T), 1e-3)
    close(ours, (plain(B @ B.T), *numeric), 1e-7)


def test_a_null_space_stays_null():
    A, (E, F) = np.diag([0, 0, 4.0]), directions(n=3)
    value, along, second = compiled(A, E, F)
    np.testing.assert_allclose(value, np.diag([0, 0, 4**-P]), rtol=1e-14)
    slopes = np.array([[0, 0, 1], [0, 0, 1], [1, 1, -P]]) * 4 ** (-P - 1)
    np.testing.assert_allclose(along, slopes * E, rtol=1e-14)
    np.testing.assert_allclose(
        second[:2, :2],
        4 ** (-P - 2) * (np.outer(E[:2, 2], F[2, :2]) + np.outer(F[:2, 2], E[2, :2])),
        rtol=1e-13,
    )


def test_zero_stays_zero():
    for x in compiled(np.zeros((N, N)), *directions()):
        assert np.all(x == 0)


def test_what_counts_as_zero():
    unit = np.finfo(np.float64).eps
    for factor, kept in {0.5: False, 2.0: True}.items():
        small = factor * 3 * unit * 5
        value = np.diag(inverse_power(jnp.diag(jnp.array([small, 1.0, 5.0])), P))
        np.testing.assert_allclose(value, [small**-P * kept, 1, 5**-P], rtol=1e-14)


@pytest.mark.parametrize("name", ["spread", "repeated"])
def test_eps_shifts_the_spectrum(name):
    A, (E, F) = MATRICES[name], directions()
    close(compiled(A, E, F, eps=0.1), compiled(A + 0.1 * np.eye(N), E, F), 1e-11)


def test_eps_outweighs_negative_rounding_errors():
    A, eps = symmetric([-1e-5, 0, 0, 1, 2, 3]), 1e-6
    x = np.array([0, 0, 0, 1, 2, 3]) + eps
    value, *rest = compiled(A, *directions(), eps=eps)
    np.testing.assert_allclose(np.linalg.eigvalsh(value)[::-1], x**-P, rtol=1e-9)
    assert all(np.all(np.isfinite(r)) for r in rest)


def test_only_the_symmetric_part_is_read():
    A, (E, F) = MATRICES["spread"], directions()
    skew = np.triu(np.ones((N, N)), 1)
    skew = skew - skew.T
    close(compiled(A + skew, E - 2 * skew, F + 3 * skew), compiled(A, E, F), 1e-12)


def test_mapping_and_compilation_change_nothing():
    stack = jnp.stack([MATRICES[name] for name in ("spread", "repeated", "one")])
    E, F = directions()
    # Either way errs by N eps |A| in the eigenvalues, which is N eps cond of the smallest, and A^-p
    # with its two derivatives multiplies that by at most p + 2.
    tol = (P + 2) * N * np.finfo(float).eps * CONDITION
    one_by_one = zip(*(compiled(A, E, F) for A in stack), strict=True)
    mapped = jax.jit(jax.vmap(derivatives, (0, None, None)))(stack, E, F)
    close(mapped, map(np.stack, one_by_one), tol)
    along_both = jax.jit(jax.vmap(lambda E: derivatives(stack[1], E, F)[2]))(jnp.stack([E, F]))
    close(along_both, [compiled(stack[1], d, F)[2] for d in (E, F)], tol)
    uncompiled = jax.jvp(lambda A: inverse_power(A, P), (stack[0],), (E,))
    close(uncompiled, compiled(stack[0], E, F)[:2], tol)


def test_linearised_and_transposed():
    A, (E, F) = MATRICES["repeated"], directions()
    _, along, second = compiled(A, E, F)

    @jax.jit
    def by_other_modes():
        def power(A):
            return inverse_power(A, P)

        def slope(A):
            return jax.jvp(power, (A,), (E,))[1]

        return (
            jax.linearize(power, A)[1](E),
            jax.linearize(slope, A)[1](F),
            jax.grad(lambda A: jnp.vdot(E, power(A)))(A),
            jax.grad(lambda A: jnp.vdot(E, slope(A)))(A),
        )

    close(by_other_modes(), (along, second, along, compiled(A, E, E)[2]), 1e-13)


def test_float32_stays_float32():
    A, (E, F) = MATRICES["gap 0.03"], directions()
    single = compiled(*(jnp.asarray(x, jnp.float32) for x in (A, E, F)))
    assert all(x.dtype == jnp.float32 for x in single)
    close(single, compiled(A, E, F), 1e-4)


def test_tiny_float32_matrices_do_not_overflow():
    A, (E, F) = MATRICES["gap 0.03"], directions()
    single = compiled(*(jnp.asarray(1e-20 * x, jnp.float32) for x in (A, E, F)))
    close(single, [1e-20**-P * x for x in compiled(A, E, F)], 1e-4)


def test_there_is_no_third_derivative():
    A, (E, F) = MATRICES["spread"], directions()
    with pytest.raises(NotImplementedError, match="up to the second"):
        jax.jvp(lambda A: derivatives(A, E, F)[2], (A,), (E,))
