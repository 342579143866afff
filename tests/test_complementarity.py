"""The complementarity solver against problems with known answers, and against Clarabel."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from _marks import quick
from _sdcp import (
    complementary_pair,
    congruent,
    monotone,
    np_smat,
    np_svec,
    orthogonal,
    solvable,
    unsolvable,
    violation,
)

from centralflow_eqx.engine.complementarity import RESULTS, DampedNewton, solve_complementarity
from centralflow_eqx.engine.symmetric import pairs, smat, split, svec

BATCH = 180  # one batch shape per k, so that every test shares the compiled solver
OUTCOMES = ("solved", "no_solution", "stalled")


@jax.jit
def solve_batch(alphas, betas):
    def one(problem):
        solution = solve_complementarity(*problem)
        return solution, jnp.stack([solution.result == getattr(RESULTS, o) for o in OUTCOMES])

    return jax.lax.map(one, (alphas, betas))


def solve_all(problems):
    """Solve at most BATCH problems; their solutions as NumPy arrays, and their outcomes."""
    padded = problems + problems[:1] * (BATCH - len(problems))
    alphas, betas = (jnp.asarray(np.stack(arrays)) for arrays in zip(*padded, strict=True))
    solution, flags = jax.tree.map(np.asarray, solve_batch(alphas, betas))
    names = [OUTCOMES[i] for i in np.argmax(flags, axis=1)]
    return solution, names[: len(problems)]


@pytest.mark.parametrize("k", quick(range(1, 13), 1, 3, 12))
def test_random_problems_are_solved_or_proved_unsolvable(k):
    rng = np.random.default_rng(k)
    count = 2 * BATCH // 3
    problems = [solvable(rng, k, i) for i in range(count)]
    problems += [unsolvable(rng, k, i) for i in range(BATCH - count)]
    solution, outcomes = solve_all(problems)
    assert outcomes == ["solved"] * count + ["no_solution"] * (BATCH - count)
    worst = max(violation(*q, X) for q, X in zip(problems[:count], solution.X, strict=False))
    assert worst < 1e-9
    assert np.all(solution.residual[:count] <= 1e-10)


@pytest.mark.parametrize("k", [3, 6])
@pytest.mark.parametrize("family", ["congruence", "ill-conditioned", "face"])
def test_adversarial_problems_are_solved(k, family):
    rng = np.random.default_rng(17)
    p = k * (k + 1) // 2
    problems = []
    for _ in range(BATCH):
        rank = rng.integers(0, k + 1)
        if family == "face":  # beta and alpha vanish on a direction: no strictly feasible point
            edge = np.diag(np.arange(k) > 0).astype(float)
            E = np.stack([np_svec(edge @ np_smat(v, k) @ edge) for v in np.eye(p)], axis=1)
            beta = E @ monotone(rng, p, "well", "none") @ E
            X, Z = complementary_pair(rng, k, rank, 0)
        else:
            spectrum = "well" if family == "congruence" else "spread"
            beta = monotone(rng, p, spectrum, "none")
            X, Z = complementary_pair(rng, k, rank, k - rank)
        alpha = Z - np_smat(beta @ np_svec(X), k)
        if family == "congruence":
            alpha, beta, _ = congruent(rng, alpha, beta, decades=2)
        problems.append((alpha, beta))
    solution, outcomes = solve_all(problems)
    assert outcomes == ["solved"] * BATCH
    worst = max(violation(*q, X) for q, X in zip(problems, solution.X, strict=True))
    assert worst < 1e-9


def test_indefinite_beta_never_yields_a_false_claim():
    rng = np.random.default_rng(3)
    k, p = 3, 6
    noise = [(rng.normal(size=(k, k)), rng.normal(size=(p, p))) for _ in range(BATCH)]
    problems = [(a + a.T, b) for a, b in noise]
    solution, outcomes = solve_all(problems)
    assert outcomes.count("solved") > 0
    for problem, X, outcome in zip(problems, solution.X, outcomes, strict=True):
        if outcome == "solved":
            assert violation(*problem, X) < 1e-9
        if outcome == "no_solution":  # X must show a Farkas direction
            alpha, beta = problem
            Y = X / np.linalg.norm(X)
            fall = -np.sum(alpha * Y) / np.linalg.norm(alpha)
            rise = np.linalg.eigvalsh(np_smat(beta.T @ np_svec(Y), k))[-1] / np.linalg.norm(beta)
            assert fall > 1e-7
            assert rise < 1.01e-8 * fall + 1e-15


def test_agrees_with_the_convex_program():
    rng = np.random.default_rng(5)
    k, p, count = 3, 6, 24
    problems = []
    for i in range(count):
        rank = i % (k + 1)
        X, Z = complementary_pair(rng, k, rank, k - rank)
        beta = monotone(rng, p, ("well", "singular")[i // (k + 1) % 2], "none")
        problems.append((Z - np_smat(beta @ np_svec(X), k), beta))
    solution, outcomes = solve_all(problems)
    assert outcomes == ["solved"] * count
    for (alpha, beta), X in zip(problems, solution.X, strict=False):
        values, vectors = np.linalg.eigh(beta)
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        oracle = cp.Variable((k, k), PSD=True)
        rows, cols = np.tril_indices(k)
        weights = np.where(rows == cols, 1.0, np.sqrt(2.0))
        vector = cp.hstack([oracle[i, j] * w for i, j, w in zip(rows, cols, weights, strict=True)])
        program = cp.Problem(
            cp.Minimize(cp.sum_squares(root @ vector) / 2 + cp.trace(alpha @ oracle))
        )
        program.solve(solver=cp.CLARABEL)
        x = np_svec(X)
        objective = x @ beta @ x / 2 + np.sum(alpha * X)
        assert objective == pytest.approx(program.value, rel=1e-6, abs=1e-6)
        if values[0] > 0.05:
            np.testing.assert_allclose(X, oracle.value, atol=1e-3 * max(1, np.linalg.norm(X)))


def test_stable_margin_means_no_oscillation():
    rng = np.random.default_rng(0)
    Q = orthogonal(rng, 3)
    alpha = (Q * [0.1, 1.0, 3.0]) @ Q.T
    solution, outcomes = solve_all(
        [(alpha, monotone(rng, 6, "well", "skew")), (0 * alpha, np.eye(6))]
    )
    assert outcomes == ["solved", "solved"]
    assert not solution.X[:2].any()
    assert not solution.iterations[:2].any()
    np.testing.assert_array_equal(solution.Z[0], alpha)


@pytest.mark.parametrize(
    "alpha, beta, x, outcome",
    [
        (-3.0, 2.0, 1.5, "solved"),
        (3.0, 2.0, 0.0, "solved"),
        (-3e-9, 2e7, 1.5e-16, "solved"),
        (2.0, 0.0, 0.0, "solved"),
        (-2.0, 0.0, None, "no_solution"),
        (np.nan, 1.0, None, "stalled"),
        (1.0, np.inf, None, "stalled"),
    ],
)
def test_one_direction(alpha, beta, x, outcome):
    solution, outcomes = solve_all([(np.array([[alpha]]), np.array([[beta]]))])
    assert outcomes == [outcome]
    if x is not None:
        assert solution.X[0, 0, 0] == pytest.approx(x, rel=1e-13, abs=0)


def test_inactive_directions_do_not_disturb_the_others():
    rng = np.random.default_rng(8)
    active, k = 3, 6
    problems, padded = [], []
    for rank in range(active + 1):
        X, Z = complementary_pair(rng, active, rank, active - rank)
        beta = monotone(rng, 6, "well", "skew")
        alpha = Z - np_smat(beta @ np_svec(X), active)
        problems.append((alpha, beta))
        large_alpha, large_beta = np.eye(k), np.zeros((21, 21))
        large_alpha[:active, :active], large_beta[:6, :6] = alpha, beta
        padded.append((large_alpha, large_beta))
    small, _ = solve_all(problems)
    large, outcomes = solve_all(padded)
    count = len(problems)
    assert outcomes == ["solved"] * count
    np.testing.assert_allclose(large.X[:count, :active, :active], small.X[:count], atol=1e-10)
    assert np.abs(large.X[:count, active:]).max() == 0.0


def test_scaling_the_data_scales_the_solution():
    alpha, beta = solvable(np.random.default_rng(2), 3, 1)
    solution, outcomes = solve_all([(alpha, beta), (alpha * 2.0**20, beta * 2.0**-30)])
    assert outcomes == ["solved", "solved"]
    np.testing.assert_allclose(solution.X[1], solution.X[0] * 2.0**50, rtol=1e-12)
    assert solution.residual[1] == pytest.approx(solution.residual[0], rel=1e-6, abs=1e-15)


def test_vmap_mixes_outcomes_and_float32_is_promoted():
    rng = np.random.default_rng(4)
    problems = [solvable(rng, 3, rank) for rank in (1, 2, 3)] + [unsolvable(rng, 3, 0)]
    reference, outcomes = solve_all(problems)
    alphas, betas = (jnp.asarray(np.stack(arrays)) for arrays in zip(*problems, strict=True))
    solution = jax.jit(jax.vmap(solve_complementarity))(alphas, betas)
    np.testing.assert_array_equal(
        np.asarray(solution.result == RESULTS.solved), np.array(outcomes) == "solved"
    )
    scale = np.linalg.norm(reference.X[:3], axis=(1, 2))[:, None, None]
    np.testing.assert_allclose(solution.X[:3] / scale, reference.X[:3] / scale, atol=1e-6)
    single = solve_complementarity(jnp.eye(1, dtype=jnp.float32), jnp.eye(1, dtype=jnp.float32))
    assert single.X.dtype == single.residual.dtype == jnp.float64


@pytest.mark.parametrize("shapes", [((2, 2), (4, 4)), ((2, 3), (3, 3)), ((0, 0), (0, 0))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"alpha of shape \(k, k\)"):
        solve_complementarity(jnp.zeros(shapes[0]), jnp.zeros(shapes[1]))


def test_svec_is_an_isometry_ordered_by_leading_blocks():
    rng = np.random.default_rng(1)
    A, B = (M + M.T for M in rng.normal(size=(2, 5, 5)))
    a, b = svec(jnp.asarray(A)), svec(jnp.asarray(B))
    assert a @ b == pytest.approx(np.trace(A @ B), rel=1e-14)
    np.testing.assert_allclose(smat(a, 5), A, rtol=1e-15)
    np.testing.assert_array_equal(a, np_svec(A))
    np.testing.assert_array_equal(svec(jnp.asarray(A[:3, :3])), a[:6])
    np.testing.assert_array_equal(np.stack(pairs(3)), [[0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2]])
    stacked = jnp.asarray(np.stack([A, B]))
    np.testing.assert_allclose(smat(svec(stacked), 5), stacked, rtol=1e-15)


def test_derivative_of_the_positive_part_at_repeated_eigenvalues():
    rng = np.random.default_rng(6)
    Q, V = orthogonal(rng, 5), rng.normal(size=(5, 5))
    A, V, h = (Q * [2.0, 2.0, -0.5, -0.5, 1.0]) @ Q.T, V + V.T, 1e-6
    _, (dX, dZ) = jax.jvp(split, (jnp.asarray(A),), (jnp.asarray(V),))
    plus, minus = split(jnp.asarray(A + h * V)), split(jnp.asarray(A - h * V))
    np.testing.assert_allclose(dX, (plus[0] - minus[0]) / (2 * h), atol=1e-8)
    np.testing.assert_allclose(dZ, (plus[1] - minus[1]) / (2 * h), atol=1e-8)


def test_derivative_of_the_positive_part_at_zero_is_one_half():
    V = jnp.asarray([[1.0, 2.0], [2.0, -3.0]])
    _, (dX, dZ) = jax.jvp(split, (jnp.zeros((2, 2)),), (V,))
    np.testing.assert_array_equal(dX, V / 2)
    np.testing.assert_array_equal(dZ, -V / 2)


def test_damping_makes_newton_converge_and_reports_when_it_cannot():
    solver = DampedNewton(rtol=0.0, atol=1e-12)

    def find(function, start):
        return optx.root_find(
            lambda y, _: (function(y), y), solver, jnp.array([start]), has_aux=True, throw=False
        )

    found = find(jnp.arctan, 3.0)  # undamped, it diverges from any |start| > 1.392
    assert found.result == optx.RESULTS.successful
    assert abs(found.value[0]) < 1e-12
    assert find(lambda y: y**2 + 1, 3.0).result == optx.RESULTS.nonlinear_divergence
