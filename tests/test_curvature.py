"""Curvature products against dense ones, and tracked eigenpairs against prescribed spectra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from _losses import (
    Quadratic,
    TinyMLP,
    orthogonal,
    symmetric,
)

from centralflow_eqx.engine.curvature import (
    EigenTracker,
    LocalModel,
    fourth_derivatives,
    local_model,
    third_derivative,
    third_derivatives,
    unsolved,
    widen,
)

KEY = jr.key(0)
ALL = -np.inf  # `exact_above`: every tracked direction is to be exact


# --- products ---------------------------------------------------------------------------------

LOSS = TinyMLP.make()
W = jnp.asarray(np.random.default_rng(1).normal(size=TinyMLP.SIZE)) / 2
U = jnp.asarray(orthogonal(TinyMLP.SIZE)[:, :4])


@eqx.filter_jit
def hvps(loss, w, V):
    return local_model(loss, w).hvps(V)


@pytest.fixture(scope="module")
def thirds():
    return eqx.filter_jit(third_derivatives)


def test_local_model_against_the_dense_hessian():
    model = local_model(LOSS, W)
    value, grad = jax.value_and_grad(LOSS)(W)
    hessian = jax.jit(jax.hessian(LOSS))(W)
    np.testing.assert_allclose(model.loss, value, rtol=1e-14)
    np.testing.assert_allclose(model.grad, grad, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(hvps(LOSS, W, U), hessian @ U, rtol=1e-11, atol=1e-13)


def test_third_derivatives_against_differences_of_products(thirds):
    h = 1e-4
    out = thirds(LOSS, W, U, jnp.asarray(4))
    pairs = [(i, j) for i in range(4) for j in range(i + 1)]
    assert len(out) == len(pairs)
    for row, (i, j) in zip(out, pairs, strict=True):
        ahead, behind = (hvps(LOSS, W + sign * h * U[:, i], U) for sign in (1, -1))
        expected = (ahead - behind)[:, j] / (2 * h)
        assert np.linalg.norm(row - expected) < 1e-6 * np.linalg.norm(expected)
    single = third_derivative(LOSS, W, U[:, 2], U[:, 1])
    np.testing.assert_allclose(out[pairs.index((2, 1))], single, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("active", [0, 1, 2, 3])
def test_rows_of_inactive_pairs_are_zero(thirds, active):
    full, out = (thirds(LOSS, W, U, jnp.asarray(n)) for n in (4, active))
    rows = active * (active + 1) // 2
    assert jnp.all(out[:rows] == full[:rows])
    assert jnp.all(jnp.any(full != 0, axis=1))
    assert jnp.all(out[rows:] == 0)


def test_fourth_derivatives_against_differences_of_third(thirds):
    h = 1e-4
    out = eqx.filter_jit(fourth_derivatives)(LOSS, W, U, jnp.asarray(3))
    for i in range(3):
        u = U[:, i : i + 1]
        columns = jnp.tile(u, (1, 4))
        ahead, behind = (
            thirds(LOSS, W + sign * h * u[:, 0], columns, jnp.asarray(1)) for sign in (1, -1)
        )
        expected = (ahead - behind)[0] @ u[:, 0] / (2 * h)
        np.testing.assert_allclose(out[i], expected, rtol=1e-6)
    assert out[3] == 0


# --- eigenpairs -------------------------------------------------------------------------------

D, M = 64, 6
TOP = np.array([5.0, 4.0, 3.2, 2.5, 1.2])  # four above `track_above`, one guard
BULK = np.linspace(1.0, -1.0, D - len(TOP))
SPECTRUM = np.concatenate([TOP, BULK])
TRACKER = EigenTracker()


@eqx.filter_jit
def _solve(tracker, H, gain, pairs, explore, exact_above, oscillating):
    model = LocalModel(jnp.zeros((), H.dtype), jnp.zeros(len(H), H.dtype), lambda v: H @ v, 0)
    return tracker.solve(
        model, gain, pairs, explore=explore, exact_above=exact_above, oscillating=oscillating
    )


def solve(H, K, pairs, *, tracker=TRACKER, explore=False, exact_above=ALL, oscillating=False):
    """Solve for the pencil (H, K^-1); `K` is a matrix, or a vector for a diagonal gain."""
    H, K = jnp.asarray(H, pairs.Y.dtype), jnp.asarray(K, pairs.Y.dtype)
    gain = lx.DiagonalLinearOperator(K) if K.ndim == 1 else lx.MatrixLinearOperator(K)
    # arrays, so that all values share the compiled code
    options = jnp.asarray(explore), jnp.asarray(exact_above, H.dtype)
    return _solve(tracker, H, gain, pairs, *options, oscillating)


def cold(d=D, m=M, dtype=jnp.float64, seed=0):
    return unsolved(d, m, dtype, jr.fold_in(KEY, seed))


GAIN = np.exp(np.random.default_rng(4).normal(size=D))
DENSE_GAIN = symmetric(GAIN, seed=5)
IDENTITY = np.ones(D)


def pencil(spectrum, K, seed=7):
    """A Hessian H whose pencil H u = theta K^-1 u has this spectrum, and its eigenvectors U."""
    K = np.diag(K) if K.ndim == 1 else K
    k, basis = np.linalg.eigh(K)
    root, inverse = (basis * np.sqrt(k)) @ basis.T, (basis / np.sqrt(k)) @ basis.T
    Q = orthogonal(len(K), seed)
    H = inverse @ (Q * spectrum) @ Q.T @ inverse
    return (H + H.T) / 2, root @ Q


def check(pairs, H, K, tol=1e-6):
    """Everything an `Eigenpairs` promises, recomputed densely."""
    H, K = np.asarray(H, np.float64), np.diag(K) if np.ndim(K) == 1 else np.asarray(K)
    active = int(pairs.active)
    Y, V, theta, res = (
        np.asarray(x, np.float64)[..., :active]
        for x in (pairs.Y, pairs.U, pairs.theta, pairs.residuals)
    )
    eps = float(jnp.finfo(pairs.Y.dtype).eps)
    assert pairs.converged
    assert np.all(np.diff(pairs.theta) <= 0)
    np.testing.assert_allclose(V, K @ Y, rtol=0, atol=1e3 * eps * np.abs(V).max())
    np.testing.assert_allclose(V.T @ Y, np.eye(active), rtol=0, atol=1e4 * eps)  # U^T P U
    defect = H @ V - Y * theta
    again = np.sqrt(np.sum(defect * (K @ defect), 0)) / np.maximum(np.abs(theta), 1e-3)
    np.testing.assert_allclose(res, again, rtol=1e-3, atol=1e4 * eps)
    assert np.all(again <= tol + 1e4 * eps)


@pytest.mark.parametrize("K", [GAIN, DENSE_GAIN], ids=["diagonal", "dense"])
def test_a_prescribed_spectrum(K):
    H, vectors = pencil(SPECTRUM, K)
    pairs = solve(H, K, cold())
    check(pairs, H, K)
    assert pairs.active == 5
    assert list(pairs.mask) == [True] * 5 + [False]
    np.testing.assert_allclose(pairs.theta[:5], TOP, rtol=1e-10)
    # U^T P u of the exact eigenvectors: an orthogonal matrix, here diagonal
    overlap = np.abs(pairs.Y[:, :5].T @ vectors[:, :5])
    np.testing.assert_allclose(overlap, np.eye(5), atol=1e-5)


def test_watched_directions_need_only_half_the_digits():
    H, _ = pencil(np.concatenate([TOP, np.linspace(1.18, -1, D - 5)]), GAIN)
    exact, watched, some = (
        solve(H, GAIN, cold(), exact_above=above) for above in (ALL, np.inf, 3.0)
    )
    assert watched.products <= some.products < exact.products
    check(watched, H, GAIN, tol=1e-3)
    check(some, H, GAIN, tol=1e-3)
    assert np.all(some.residuals[:3] <= 1e-6)
    np.testing.assert_allclose(watched.theta[:5], TOP, rtol=1e-5)


def test_clustered_and_repeated_eigenvalues():
    spectrum = np.concatenate([[3.0, 3.0, 3.0, 3.0 - 1e-5, 1.2], BULK])
    H, vectors = pencil(spectrum, GAIN)
    pairs = solve(H, GAIN, cold())
    check(pairs, H, GAIN)
    np.testing.assert_allclose(pairs.theta[:5], spectrum[:5], rtol=1e-10)
    # the cluster's space as a whole is determined, though not its basis
    overlap = pairs.Y[:, :4].T @ vectors[:, :4]
    np.testing.assert_allclose(overlap @ overlap.T, np.eye(4), atol=1e-8)


def test_a_negative_definite_hessian():
    spectrum = np.concatenate([[-0.5], np.linspace(-1, -9, D - 1)])
    H, _ = pencil(spectrum, GAIN)
    pairs = solve(H, GAIN, cold())
    check(pairs, H, GAIN)
    assert pairs.active == 1
    np.testing.assert_allclose(pairs.theta[0], -0.5, rtol=1e-10)


def test_single_precision():
    H, _ = pencil(SPECTRUM, GAIN)
    tracker = EigenTracker(tol=1e-4)
    pairs = solve(H, GAIN, cold(dtype=jnp.float32), tracker=tracker)
    assert {x.dtype for x in (pairs.Y, pairs.U, pairs.theta, pairs.residuals)} == {
        jnp.dtype(jnp.float32)
    }
    check(pairs, np.float32(H), np.float32(GAIN), tol=1e-4)
    np.testing.assert_allclose(pairs.theta[:5], TOP, rtol=1e-5)


def dead_pencil(d, live_spectrum):
    """Two coordinates that never move: no gain, and zero rows in H."""
    live = np.arange(d) >= 2
    gain = np.exp(np.random.default_rng(4).normal(size=d)) * live
    H = np.zeros((d, d))
    H[2:, 2:] = pencil(live_spectrum, gain[2:])[0]
    return H, gain


@pytest.mark.parametrize("m", [M, 24], ids=["some dimensions", "all dimensions"])
def test_directions_without_gain_are_never_entered(m):
    H, gain = dead_pencil(D, SPECTRUM[: D - 2])
    pairs = solve(H, gain, cold(m=m))
    check(pairs, H, gain)
    np.testing.assert_allclose(pairs.theta[:5], TOP, rtol=1e-10)
    assert np.abs(pairs.Y[:2]).max() < 1e-14
    assert np.abs(pairs.U[:2]).max() < 1e-14


@pytest.mark.parametrize("m", [2, 4], ids=["some dimensions", "all dimensions"])
def test_directions_without_gain_are_no_eigenvectors(m):
    """A negative definite Hessian: the dead coordinates would come first, with eigenvalue 0."""
    spectrum = -np.arange(1.0, 11.0)
    H, gain = dead_pencil(12, spectrum)
    pairs = solve(H, gain, cold(d=12, m=m), tracker=EigenTracker(initial=2))
    check(pairs, H, gain)
    np.testing.assert_allclose(pairs.theta[:2], spectrum[:2], rtol=1e-10)


@pytest.mark.parametrize("K", [GAIN[:20], DENSE_GAIN[:20, :20]], ids=["diagonal", "dense"])
def test_few_dimensions_are_solved_to_rounding(K):
    """A basis of up to 2 m + 8 dimensions holds them all."""
    H, vectors = pencil(SPECTRUM[:20], K)
    pairs = solve(H, K, cold(d=20, m=M), exact_above=np.inf)
    check(pairs, H, K)
    assert pairs.products <= 20
    np.testing.assert_allclose(pairs.theta[:5], TOP, rtol=1e-12)
    np.testing.assert_allclose(np.abs(pairs.Y[:, :5].T @ vectors[:, :5]), np.eye(5), atol=1e-10)


@pytest.mark.parametrize("spectrum", [SPECTRUM[:16], -np.arange(1.0, 17.0)], ids=["some", "none"])
def test_no_more_rows_than_dimensions(spectrum):
    """With a gain of four decades what is left of a dependent vector is a hundred roundings."""
    K = symmetric(np.logspace(-2, 2, 16), seed=5)
    pairs = solve(pencil(spectrum, K)[0], K, cold(d=16, m=M))
    assert pairs.converged
    assert pairs.products <= 16
    active = int(pairs.active)
    assert active == min(M, np.sum(spectrum > 1.5) + 1)
    np.testing.assert_allclose(pairs.theta[:active], spectrum[:active], rtol=1e-9)
    np.testing.assert_allclose(pairs.U.T @ pairs.Y, np.eye(M), atol=1e-9)


def test_a_hessian_without_a_threshold_may_be_small():
    H, _ = pencil(1e-9 * SPECTRUM, IDENTITY)
    tracker = EigenTracker(track_above=float("inf"), initial=3)
    pairs = solve(H, IDENTITY, cold(), tracker=tracker)
    assert pairs.converged
    np.testing.assert_allclose(pairs.theta[:3], 1e-9 * TOP[:3], rtol=1e-10)


def test_no_more_columns_than_dimensions():
    H = np.diag([3.0, 2.0, 1.9])
    pairs = solve(H, np.ones(3), cold(d=3, m=8))
    check(pairs, H, np.ones(3))
    np.testing.assert_allclose(pairs.theta, [3.0, 2.0, 1.9], rtol=1e-14)
    assert pairs.active == 3
    assert not TRACKER.overflows(pairs)


def test_products_are_counted():
    counted = []

    def product(v):
        jax.debug.callback(lambda: counted.append(1))
        return H @ v

    H = jnp.asarray(pencil(SPECTRUM, IDENTITY)[0])
    gain = lx.DiagonalLinearOperator(jnp.asarray(IDENTITY))

    @jax.jit
    def run(pairs):
        model = LocalModel(jnp.zeros(()), jnp.zeros(len(H)), product, 0)
        return TRACKER.solve(model, gain, pairs, exact_above=3.0)

    pairs = run(cold())
    jax.effects_barrier()
    assert pairs.converged
    assert sum(counted) == pairs.products > 2 * M


def test_a_solve_that_runs_out_of_iterations_says_so():
    H, _ = pencil(SPECTRUM, GAIN)
    pairs = solve(H, GAIN, cold(), tracker=EigenTracker(max_iterations=3))
    assert not pairs.converged
    assert M <= pairs.products <= 4 * M
    # another solve goes on from there
    for _ in range(60):
        pairs = solve(H, GAIN, pairs, tracker=EigenTracker(max_iterations=3))
    check(pairs, H, GAIN)
    np.testing.assert_allclose(pairs.theta[:5], TOP, rtol=1e-10)


def test_a_solve_that_was_poisoned_starts_anew():
    H, _ = pencil(SPECTRUM, GAIN)
    known = solve(H, GAIN, cold())
    for spoilt in (jnp.nan, jnp.inf):
        poisoned = solve(spoilt * H, GAIN, known)
        assert not poisoned.converged
        again = solve(H, GAIN, poisoned)
        check(again, H, GAIN)
        np.testing.assert_allclose(again.theta[:5], TOP, rtol=1e-10)


def rotated(H, angle):
    """H seen from weights that have moved: all eigenvectors turn by about `angle`."""
    skew = np.random.default_rng(6).normal(size=(D, D)) / np.sqrt(D)
    turn = np.linalg.qr(np.eye(D) + angle * (skew - skew.T))[0]
    return turn @ H @ turn.T


def test_a_warm_start_saves_products():
    H, _ = pencil(SPECTRUM, IDENTITY)
    first = solve(H, IDENTITY, cold())
    moved = rotated(H, 1e-3)
    warm, again = solve(moved, IDENTITY, first), solve(moved, IDENTITY, cold(seed=1))
    check(warm, moved, IDENTITY)
    assert warm.products < 0.8 * again.products
    # What has not moved costs a product for every tracked column, and exploring two for a guard.
    assert solve(H, IDENTITY, first).products == first.active
    assert solve(H, IDENTITY, first, explore=True).products == first.active + 2


def test_steady_motion_is_extrapolated():
    H, _ = pencil(SPECTRUM, IDENTITY)
    path = [rotated(H, 1e-4 * i) for i in range(4)]
    moving = cold()
    for here in path[:3]:
        moving = solve(here, IDENTITY, moving)
    standing = solve(path[2], IDENTITY, moving)  # twice at the same point: nothing to extrapolate
    ahead, behind = (solve(path[3], IDENTITY, pairs) for pairs in (moving, standing))
    check(ahead, path[3], IDENTITY)
    assert ahead.products < behind.products


def test_a_gain_that_jumps_cancels_no_forecast():
    """Four times the gain is half the eigenvector: twice that, less the one before, is nothing."""
    H, first = np.diag(0.06 * SPECTRUM), jnp.eye(D)[:, :1]
    pairs = eqx.tree_at(
        lambda p: (p.Y, p.U, p.previous, p.fresh, p.active),
        cold(m=1),
        (first / 2, 2 * first, first, jnp.zeros(1, bool), jnp.asarray(1, jnp.int32)),
    )
    pairs = solve(H, 4 * IDENTITY, pairs)
    check(pairs, H, 4 * IDENTITY)
    np.testing.assert_allclose(pairs.theta[0], 1.2, rtol=1e-14)


def test_nothing_is_known_of_a_spectrum_without_a_gain():
    """As at the start of a schedule from zero: the next solve is like a first one."""
    spectrum = np.concatenate([[3.0, 3.0, 3.0, 2.0, 1.2], BULK])
    H, _ = pencil(spectrum, IDENTITY)
    pairs = solve(H, 0 * IDENTITY, cold())
    assert pairs.theta[0] == 0
    pairs = solve(H, IDENTITY, pairs)
    check(pairs, H, IDENTITY)
    np.testing.assert_allclose(pairs.theta[:5], spectrum[:5], rtol=1e-10)


def test_oscillation_with_period_two_starts_from_the_solve_before_the_last():
    H, _ = pencil(SPECTRUM, IDENTITY)
    there = rotated(H, 0.05)
    products = {}
    for oscillating in (True, False):
        pairs = cold()
        for here in (H, there, H, there):
            pairs = solve(here, IDENTITY, pairs, oscillating=oscillating)
            check(pairs, here, IDENTITY)
        products[oscillating] = int(pairs.products)
    assert products[True] == pairs.active < products[False]


def test_a_hidden_direction_is_found_by_exploring():
    """Eigenvectors along coordinates, and a start with no component at all along the hidden one."""
    H = np.diag(np.concatenate([[3.5], SPECTRUM[:-1]]))
    Y = np.eye(D)[:, 1 : M + 1]
    known = eqx.tree_at(
        lambda p: (p.Y, p.U, p.previous, p.fresh, p.theta),
        cold(),
        (*(jnp.asarray(Y),) * 3, jnp.zeros(M, bool), jnp.asarray(SPECTRUM[:M])),
    )
    found = {}
    for explore in (False, True):
        pairs = known
        for _ in range(6):
            pairs = solve(H, IDENTITY, pairs, explore=explore)
        found[explore] = pairs
    np.testing.assert_allclose(found[False].theta[:5], TOP, rtol=1e-12)
    check(found[True], H, IDENTITY)
    np.testing.assert_allclose(found[True].theta[:5], [5.0, 4.0, 3.5, 3.2, 2.5], rtol=1e-10)


def test_an_overflow_is_reported_and_cured_by_widening():
    H, _ = pencil(SPECTRUM, GAIN)
    narrow = solve(H, GAIN, cold(m=3))
    assert narrow.active == 3
    assert TRACKER.overflows(narrow)
    wide = widen(narrow, M)
    for name in ("Y", "U", "theta", "residuals", "previous"):
        assert jnp.all(getattr(wide, name)[..., :3] == getattr(narrow, name))
    assert list(wide.fresh) == [False] * 3 + [True] * 3
    pairs = solve(H, GAIN, wide)
    check(pairs, H, GAIN)
    assert not TRACKER.overflows(pairs)
    assert pairs.active == 5
    np.testing.assert_allclose(pairs.theta[:5], TOP, rtol=1e-10)


def test_a_network_with_an_optimizers_gain():
    """The real thing: products by differentiation and a diagonal gain."""
    gain = np.exp(np.random.default_rng(8).normal(size=TinyMLP.SIZE))
    tracker = EigenTracker(track_above=0.05, initial=3)
    H = np.asarray(jax.jit(jax.hessian(LOSS))(W))
    exact = np.linalg.eigvalsh(np.sqrt(gain)[:, None] * H * np.sqrt(gain))[::-1]

    @eqx.filter_jit
    def run(loss, w, pairs):
        operator = lx.DiagonalLinearOperator(jnp.asarray(gain))
        return tracker.solve(local_model(loss, w), operator, pairs, exact_above=0.0)

    pairs = run(LOSS, W, cold(d=TinyMLP.SIZE, m=8))
    check(pairs, H, gain)
    assert pairs.active == min(8, np.sum(exact > 0.05) + 1)
    active = int(pairs.active)
    np.testing.assert_allclose(pairs.theta[:active], exact[:active], rtol=1e-9)


def test_a_quadratic_has_no_higher_derivatives(thirds):
    loss = Quadratic(jnp.asarray(symmetric(SPECTRUM[:8])), jnp.ones(8))
    w, V = jnp.ones(8), jnp.asarray(orthogonal(8)[:, :3])
    np.testing.assert_allclose(local_model(loss, w).hvps(V), loss.H @ V, rtol=1e-12, atol=1e-13)
    assert jnp.all(thirds(loss, w, V, jnp.asarray(3)) == 0)
