"""Stationary statistics against exact solutions and an independent conic solver."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _conic import least_stable, stationary_average
from _losses import Quadratic, flat_rule, orthogonal
from _marks import quick

from centralflow_eqx.engine.curvature import EigenTracker, local_model, unsolved
from centralflow_eqx.engine.response import Response, Rule, derive, relax
from centralflow_eqx.engine.stationary import (
    solve_stationary,
    stability_only,
    start_factor,
    stationary_refusal,
)
from centralflow_eqx.errors import UnsupportedRule
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.optimizers import GD, AdaGrad, Adam, RMSProp, ScalarRMSProp, Shampoo

LR = 0.1
PER_RANK = 5
DIMENSIONS = {1: 9, 2: 9, 3: 16, 4: 16, 5: 40}  # every one of them is compiled for


def random_problem(d, rank, seed):
    """A Hessian, a gradient and the stationary nu that they have, for a step size of `LR`.

    P and Sigma are drawn first; H = P^{1/2} Q diag(theta) Q^T P^{1/2} with theta = 2 in the range
    of Sigma, and g^2 = nu - (2 P)^2 diag(Sigma).
    """
    rng = np.random.default_rng([d, rank, seed])
    P, Q = rng.lognormal(size=d), orthogonal(d, seed)
    theta = np.where(np.arange(d) < rank, 2.0, rng.uniform(-0.5, 1.9, size=d))
    H = np.sqrt(P)[:, None] * (Q * theta) @ Q.T * np.sqrt(P)
    U = Q[:, :rank] / np.sqrt(P)[:, None]
    A = rng.normal(size=(rank, rank))
    X = A @ A.T / rank + 0.1 * np.eye(rank)
    diagonal = np.einsum("ik,kl,il->i", U, X, U)
    X *= rng.uniform(0.3, 0.95) * LR**2 / 4 / diagonal.max()
    nu = (LR * P) ** 2
    squares = nu - 4 * P**2 * np.einsum("ik,kl,il->i", U, X, U)
    g = np.sqrt(squares) * rng.choice([-1, 1], size=d)
    return (H + H.T) / 2, g, nu


@functools.cache
def prepared(optimizer, d):
    """The optimizer's response, and a state of its own after a step with a random gradient."""
    rule, w = flat_rule(optimizer), jnp.zeros(d)
    g = jnp.asarray(np.random.default_rng(0).normal(size=d))
    s = relax(rule.update(g, rule.init(w), w)[1], w)
    return derive(rule, s, w, g, jr.key(0)), s


@eqx.filter_jit
def solve(response: Response, s, H, g):
    """The stationary state at w = 0 of the loss with this Hessian and gradient."""
    w = jnp.zeros_like(g)
    model = local_model(Quadratic(H, -g), w)
    pairs = unsolved(w.size, 8, w.dtype, jr.key(1))
    return solve_stationary(model, response, EigenTracker(tol=1e-9), w, s, pairs, tol=1e-9)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("rank", quick(DIMENSIONS, 3, 4))
def test_stationary_average_solves_the_convex_program(rank):
    d = DIMENSIONS[rank]
    response, s = prepared(RMSProp(LR, 0.9), d)
    for seed in range(PER_RANK):
        H, g, nu = random_problem(d, rank, seed)
        found = solve(response, s, jnp.asarray(H), jnp.asarray(g))
        assert found.converged
        got = found.point.post.nu
        assert np.linalg.norm(got - nu) < 1e-6 * np.linalg.norm(nu)
        assert np.linalg.norm(got - stationary_average(H, g, LR)) < 1e-5 * np.linalg.norm(nu)
        spectrum = np.linalg.eigvalsh(found.solution.X)
        assert np.sum(spectrum > 1e-6 * spectrum[-1]) == rank


@pytest.mark.slow
def test_the_rate_of_forgetting_does_not_matter():
    H, g, nu = random_problem(9, 2, 3)
    response, s = prepared(RMSProp(LR, 0.999), 9)
    found = solve(response, s, jnp.asarray(H), jnp.asarray(g))
    np.testing.assert_allclose(found.point.post.nu, nu, rtol=1e-6)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_scalar_statistics_are_known_in_closed_form(size):
    # stable with nu = |g|^2 if that is enough, else just stable: lr / sqrt(nu) = 2 / S
    H, g, _ = random_problem(9, 2, 0)
    S = np.linalg.eigvalsh(H)[-1]
    g *= size * LR * S / 2 / np.linalg.norm(g)
    response, s = prepared(ScalarRMSProp(LR, 0.9), 9)
    found = solve(response, s, jnp.asarray(H), jnp.asarray(g))
    np.testing.assert_allclose(found.point.post.nu, max(1, size) ** 2 * (LR * S / 2) ** 2)


@pytest.mark.slow
def test_momentum_only_changes_the_gain():
    # Adam's is (1 - beta1)/(1 + beta1) times RMSProp's: that of another learning rate
    H, g, nu = random_problem(16, 3, 1)
    beta1 = 0.5
    larger = LR * (1 + beta1) / (1 - beta1)
    response, s = prepared(Adam(larger, beta1, 0.9, bias_correction=False), 16)
    found = solve(response, s, jnp.asarray(H), jnp.asarray(g)).point
    np.testing.assert_allclose(found.post.nu, nu, rtol=1e-6)
    np.testing.assert_allclose(found.post.mu, g, rtol=1e-6)
    np.testing.assert_allclose(found.pairs.theta[:3], 2, rtol=1e-7)


def test_a_preconditioner_that_is_no_diagonal():
    # far below the threshold nothing oscillates, and averages are those of the gradient alone
    g, w = jnp.asarray(np.random.default_rng(1).normal(size=6)), jnp.zeros(6)
    rule = Rule(Shampoo(LR, 0.9), lambda w: w.reshape(2, 3))
    s = relax(rule.update(g, rule.init(w), w)[1], w)
    response = derive(rule, s, w, g, jr.key(0))
    assert response.structure.gain == "general"
    found = solve(response, s, 1e-3 * jnp.eye(6), g)
    assert found.converged and not np.any(found.solution.X)
    L, R = found.point.post.statistics
    G = g.reshape(2, 3)
    np.testing.assert_allclose(L, G @ G.T, rtol=0, atol=1e-8 * np.sum(G**2))
    np.testing.assert_allclose(R, G.T @ G, rtol=0, atol=1e-8 * np.sum(G**2))


@pytest.mark.parametrize(
    ("optimizer", "reason"), [(GD(0.1), "is an average"), (AdaGrad(0.1), "only grows")]
)
def test_rules_without_stationary_statistics(optimizer, reason):
    assert reason in stationary_refusal(prepared(optimizer, 5)[0].structure)
    with pytest.raises(UnsupportedRule, match=reason):
        simulate(Quadratic(jnp.eye(5)), optimizer, jnp.ones(5), processes=["stationary"], steps=1)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("d", [6, 15, 40])
def test_the_least_stable_preconditioner(d):
    rng = np.random.default_rng(d)
    Q, spectrum = orthogonal(d, d), rng.exponential(size=d) ** 2
    spectrum[d // 2 :] *= -0.1
    H = (Q * spectrum) @ Q.T
    expected = least_stable(H)
    product = jnp.asarray(H)
    columns = int(np.ceil(np.sqrt(2 * d))) + 1
    found = jax.jit(lambda V: stability_only(lambda V: product @ V, jnp.ones(d), V, tol=1e-10))(
        start_factor(d, columns, jnp.float64, jr.key(0))
    )
    assert found.rank_deficient
    np.testing.assert_allclose(found.diagonal, expected, rtol=2e-5, atol=0)
    assert np.linalg.eigvalsh(2 * np.diag(found.diagonal) - H)[0] > -1e-6


def test_too_few_columns_are_told():
    H = jnp.asarray(random_problem(40, 5, 0)[0])
    V = start_factor(40, 2, jnp.float64, jr.key(0))
    assert not jax.jit(lambda V: stability_only(lambda V: H @ V, jnp.ones(40), V))(V).rank_deficient
