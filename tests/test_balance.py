"""The smoothed complementarity problem, against problems made from their answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _marks import quick
from _sdcp import ASYMMETRIES, SPECTRA, complementary_pair, monotone, np_smat, np_svec, orthogonal

from centralflow_eqx.engine.balance import Noise, solve_balance
from centralflow_eqx.engine.complementarity import RESULTS, solve_complementarity

BATCH = 48  # one shape per k, so that all tests share the compiled solver


@jax.jit
def solve_batch(problems):
    def one(problem):
        alpha, beta, N, K = problem
        solution = solve_balance(alpha, beta, Noise(N, K))
        return solution, solution.result == RESULTS.solved

    return jax.lax.map(one, problems)


def solve_all(problems):
    padded = problems + problems[:1] * (BATCH - len(problems))
    stacked = tuple(jnp.asarray(np.stack(parts)) for parts in zip(*padded, strict=True))
    return jax.tree.map(lambda x: np.asarray(x)[: len(problems)], solve_batch(stacked))


def positive(rng, k, low, high):
    Q = orthogonal(rng, k)
    return (Q * 10 ** rng.uniform(low, high, k)) @ Q.T


def multiplicative(rng, k, size):
    """X -> E[A X A] for random symmetric A of about this size, in coordinates."""
    A = rng.normal(size=(5, k, k))
    A = size * (A + A.transpose(0, 2, 1)) / np.sqrt(8 * k)
    basis = [np_smat(v, k) for v in np.eye(k * (k + 1) // 2)]
    return np.stack([np_svec(np.mean(A @ E @ A, axis=0)) for E in basis], axis=1)


def balance(X, Z, K):
    """Z X + X Z - Z X Z - K[X]."""
    return Z @ X + X @ Z - Z @ X @ Z - np_smat(K @ np_svec(X), len(X))


def solved(rng, k, i):
    """A problem, and the X and Z that solve it."""
    p = k * (k + 1) // 2
    beta = monotone(rng, p, SPECTRA[i % 4], ASYMMETRIES[i % 3]) * 10 ** rng.uniform(-3, 2)
    while True:
        X = positive(rng, k, -3, -1)
        Z = positive(rng, k, -1, -0.3) if k > 1 else positive(rng, k, -4, -0.3)
        K = (i % 2) * multiplicative(rng, k, 0.05)
        N = balance(X, Z, K)
        if np.linalg.eigvalsh(N)[0] > 1e-3 * np.trace(N):
            return (Z - np_smat(beta @ np_svec(X), k), beta, (N + N.T) / 2, K), X, Z


@pytest.mark.parametrize("k", quick((1, 2, 3, 5, 8), 1, 3))
def test_problems_made_from_their_answers(k):
    rng = np.random.default_rng(k)
    problems, X, Z = zip(*(solved(rng, k, i) for i in range(BATCH)), strict=True)
    found, well = solve_all(list(problems))
    assert well.all()
    assert found.residual.max() <= 1e-10
    for (alpha, beta, N, K), x, z, true_X, true_Z in zip(
        problems, found.X, found.Z, X, Z, strict=True
    ):
        np.testing.assert_allclose(balance(x, z, K), N, rtol=0, atol=1e-10 * np.abs(N).max())
        np.testing.assert_allclose(z, alpha + np_smat(beta @ np_svec(x), k), rtol=0, atol=1e-14)
        # the equation's own conditioning is that of Z + beta, at least 1e-4 of X here
        np.testing.assert_allclose(x, true_X, rtol=0, atol=1e-5 * np.abs(true_X).max())
        np.testing.assert_allclose(z, true_Z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", quick((1, 3), 3))
def test_noise_that_vanishes_leaves_the_complementarity_problem(k):
    rng = np.random.default_rng(5)
    p = k * (k + 1) // 2
    for i in range(6):
        # Where beta is singular, noise may drive what no margin holds back.
        beta = monotone(rng, p, "well", ASYMMETRIES[i % 3])
        X, Z = complementary_pair(rng, k, i % (k + 1), k - i % (k + 1))
        alpha = Z - np_smat(beta @ np_svec(X), k)
        alpha = 0.1 * alpha / np.linalg.norm(alpha)  # margins reach nowhere near to 2
        exact = solve_complementarity(alpha, beta)
        unit = float(jnp.linalg.norm(alpha) / jnp.linalg.norm(beta))
        N, K = unit * np.linalg.norm(alpha) * positive(rng, k, -1, 0), np.zeros((p, p))
        found, well = solve_all([(alpha, beta, share * N, K) for share in (0.0, 1e-10)])
        assert well.all()
        off = [np.linalg.norm(x - exact.X) / unit for x in found.X]
        assert off[0] < 1e-13
        # the root of the noise, where X and Z vanish together, and ten times that at most
        assert off[1] < 1e-4


def test_without_feedback_it_is_a_lyapunov_equation():
    # Nothing but noise and a fixed margin: an autoregressive process of first order.
    theta, n, k = 1.8, 0.3, 0.05
    problem = (np.array([[2 - theta]]), np.zeros((1, 1)), np.array([[n]]), np.array([[k]]))
    found, well = solve_all([problem])
    assert well.all()
    np.testing.assert_allclose(found.X[0, 0, 0], n / (theta * (2 - theta) - k), rtol=1e-10)


def test_noise_of_curvature_that_no_margin_damps():
    problem = (np.array([[0.1]]), np.array([[1.0]]), np.array([[0.3]]), np.array([[1.2]]))
    assert not solve_all([problem])[1].any()


def test_a_margin_above_one_damps_as_one():
    # Driven beyond 2, where an oscillation of that margin would grow.
    problem = (np.array([[2.5]]), np.array([[0.4]]), np.array([[0.3]]), np.array([[0.1]]))
    found, well = solve_all([problem])
    assert well.all()
    np.testing.assert_allclose(found.X[0, 0, 0], 0.3 / (1 - 0.1), rtol=1e-10)
