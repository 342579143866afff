"""Where an optimizer's statistics settle when the weights stand still.

The oscillation feeds the statistics, and the statistics decide what oscillates. With the weights
fixed both settle: the state s and the covariance Sigma = U X U^T solve

    s = F(s, g) + excess(X),    X >= 0,    Z = U^T (2P(s) - H) U >= 0,    <X, Z> = 0.

For RMSProp this is the stationary nu of arXiv 2410.24206, whose P = sqrt(nu)/lr solves a convex
program: min tr P + g^T P^{-1} g / lr^2 over diagonal P with H <= 2 P. Without the second term it is
the preconditioner that only stability asks for (`stability_only`).
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .complementarity import ComplementarySolution, solve_complementarity
from .curvature import Eigenpairs, EigenTracker, LocalModel
from .oscillation import (
    Point,
    average_excess,
    count_critical,
    gain_change,
    restrict,
    state_columns,
)
from .response import Response, State, Structure, Vector
from .symmetric import smat

_MOST_ITERATIONS = 200
# An iteration goes half of the way to the linearised solution, and all of it near the end. Further
# away a whole step could drop averages to nothing, and curvature would seem immense.
_SHARE, _NEAR = 0.5, 0.1


def stationary_refusal(structure: Structure) -> str:
    """Why a rule's state settles nowhere, empty if it does."""
    if structure.sums:
        return "a statistic in the optimizer's state only grows, it has no stationary value"
    if not structure.averages:
        return "no statistic in the optimizer's state is an average of squared gradients"
    return ""


class StationaryState(eqx.Module):
    """What `solve_stationary` found.

    `point.post` is the stationary state and `solution` its oscillation in the basis
    `point.pairs.U`. `change` is the relative distance from the solution that was left, as far as
    the last iteration tells.
    """

    point: Point
    solution: ComplementarySolution
    change: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


class _Iterate(NamedTuple):
    """The state `post` of an iterate, and what was found at the state `at` of the one before.

    The gain there is not kept: of some rules it is a function.
    """

    post: State
    at: State
    pairs: Eigenpairs
    solution: ComplementarySolution
    change: Float[Array, ""]
    iterations: Int[Array, ""]
    share: Float[Array, ""]
    products: Int[Array, ""]


def solve_stationary(
    model: LocalModel,
    response: Response,
    tracker: EigenTracker,
    w: Vector,
    guess: State,
    pairs: Eigenpairs,
    *,
    tol: float | None = None,
    exact_above: float | Float[Array, ""] = 1.95,
) -> StationaryState:
    """The stationary state at the weights of `model`, from a post-update state `guess`.

    A Newton iteration: the complementarity problem of the margin's linearisation in the state,
    over all directions above `tracker.track_above`, then a share of the way to its solution. Each
    costs the eigensolver's products, converged for directions above `exact_above`, and no third
    derivative. Entries that never forget (counters) keep their values.
    `tol`, on the relative change and on the eigenpairs, is 1e-7 in float64 and 1e-4 in float32.
    `products` of the returned pairs are those of all iterations, and they count as `converged` only
    if the state is too.
    """
    tol = tol or (1e-7 if w.dtype == jnp.float64 else 1e-4)
    # An iteration comes no nearer than the eigenpairs that it goes by.
    tracker = eqx.tree_at(lambda t: t.tol, tracker, jnp.minimum(jnp.asarray(tracker.tol), tol))

    def body(now: _Iterate) -> _Iterate:
        gain = response.gain(now.post, w)
        pairs = tracker.solve(model, gain, now.pairs, explore=True, exact_above=exact_above)
        point = Point(w, now.post, model.grad, gain, pairs)
        solution, step = _newton_step(response, point, tracker.track_above, now.share)
        change = _relative(step, now.post) / now.share
        near = (change < _NEAR) & (change < now.change)
        share = jnp.where(near, 1, _SHARE).astype(now.share.dtype)
        post = jax.tree.map(jnp.add, now.post, step)
        products = now.products + pairs.products
        return _Iterate(
            post, now.post, pairs, solution, change, now.iterations + 1, share, products
        )

    def unfinished(now: _Iterate) -> Bool[Array, ""]:
        # From what is no number nothing comes of further iterations.
        return (now.change > tol) & (now.iterations < _MOST_ITERATIONS)

    last = jax.lax.while_loop(unfinished, body, _start(guess, pairs))
    converged = last.change <= tol
    pairs = eqx.tree_at(
        lambda p: (p.products, p.converged),
        last.pairs,
        (last.products, last.pairs.converged & converged),
    )
    point = Point(w, last.at, model.grad, response.gain(last.at, w), pairs)
    return StationaryState(point, last.solution, last.change, last.iterations, converged)


def _start(guess: State, pairs: Eigenpairs) -> _Iterate:
    m, dtype = pairs.theta.size, pairs.theta.dtype
    solution = jax.eval_shape(
        solve_complementarity, jnp.zeros((m, m)), jnp.zeros((m * (m + 1) // 2,) * 2)
    )
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), solution)
    zero = jnp.zeros((), jnp.int32)
    far = jnp.asarray(jnp.inf, dtype)
    return _Iterate(guess, guess, pairs, nothing, far, zero, jnp.asarray(_SHARE, dtype), zero)


def _newton_step(
    response: Response, point: Point, above: float | Float[Array, ""], share: Float[Array, ""]
) -> tuple[ComplementarySolution, State]:
    """The oscillation of the linearised problem, and `share` of the way to its state."""
    pairs, post, w = point.pairs, point.post, point.w
    J = response.slopes(post, w)

    def settle(gap: State) -> State:
        """The share of the way that closes a gap F(s) - s, slopes J."""
        rest = jax.tree.map(lambda j: jnp.where(j == 1, 1, 1 - j), J)
        return jax.tree.map(
            lambda x, j, r: jnp.where(j == 1, 0, share.astype(x.dtype) * x / r), gap, J, rest
        )

    change, still = gain_change(response, point), jnp.zeros_like(w)
    gap = jax.tree.map(jnp.subtract, response.advance(post, point.grad, w), post)
    drift = change(still, settle(gap)).astype(jnp.float64)
    alpha = jnp.diag(2 - pairs.theta.astype(jnp.float64)) + smat(drift, pairs.theta.size)
    critical = count_critical(pairs, above)
    # A stationary oscillation is critical: H u = 2 P u, which also makes beta symmetric.
    amplitudes = 2 * pairs.Y
    beta = state_columns(
        response, point, amplitudes, critical, lambda excess: change(still, settle(excess))
    )
    solution = solve_complementarity(*restrict(alpha, beta, jnp.arange(len(alpha)) < critical))
    excess = average_excess(response, point, amplitudes, solution.X, critical)
    return solution, settle(jax.tree.map(jnp.add, gap, excess))


def _relative(step: State, post: State) -> Float[Array, ""]:
    """The largest relative change of a leaf."""
    changes = [
        jnp.linalg.norm(d) / jnp.maximum(jnp.linalg.norm(s), jnp.finfo(s.dtype).tiny)
        for d, s in zip(jax.tree.leaves(step), jax.tree.leaves(post), strict=True)
    ]
    return jnp.max(jnp.stack(changes))


class StabilityOnly(eqx.Module):
    """The least preconditioner that is stable, and the factor that certifies it.

    P = diag(`diagonal`) has least trace among those with H <= 2 P. Rows of `factor` V have length
    sqrt(1/2); H V = 2 P V, so that trace is <V, H V>. `rank_deficient` says that V has columns to
    spare, which makes a local optimum of the factorised problem the global one.
    """

    diagonal: Float[Array, " d"]
    factor: Float[Array, "d r"]
    rank_deficient: Bool[Array, ""]
    iterations: Int[Array, ""]


def start_factor(d: int, columns: int, dtype: DTypeLike, key: PRNGKeyArray) -> Array:
    """A random factor to start `stability_only` from."""
    return _unit_rows(jax.random.normal(key, (d, columns), dtype))


def stability_only(
    hvps: Callable[[Float[Array, "d r"]], Float[Array, "d r"]],
    scale: Float[Array, " d"],
    factor: Float[Array, "d r"],
    tol: float | None = None,
) -> StabilityOnly:
    """min tr P over diagonal P with H <= 2 P, by its dual in factorised form.

    max <M, H> over M >= 0 with M_ii = 1/2 is maximised over M = V V^T, V with rows of equal length
    (Burer and Monteiro, Math. Program. 95, 2003), by L-BFGS. `scale`, positive, is a guess of P
    that conditions the problem. One product with all columns of V an iteration.
    """
    tol = tol or (1e-8 if factor.dtype == jnp.float64 else 1e-4)
    root = jnp.sqrt(scale)[:, None]

    def objective(Y: Float[Array, "d r"], args: None) -> Float[Array, ""]:
        V = _unit_rows(Y / root).astype(factor.dtype)
        return -jnp.vdot(V, hvps(V)).astype(jnp.float64)

    # Optimistix keeps its history in float64 wherever that is switched on.
    start = (root * factor).astype(jnp.float64)
    solution = optx.minimise(objective, optx.LBFGS(tol, tol), start, max_steps=500, throw=False)
    V = _unit_rows(solution.value / root).astype(factor.dtype)
    HV = hvps(V)
    spectrum = jnp.linalg.eigvalsh(V.T @ V)
    return StabilityOnly(
        diagonal=jnp.maximum(jnp.sum(HV * V, axis=1), 0),
        factor=V,
        rank_deficient=spectrum[0] <= 1e-6 * spectrum[-1],
        iterations=solution.stats["num_steps"],
    )


def _unit_rows(V: Float[Array, "d r"]) -> Float[Array, "d r"]:
    return V / (jnp.sqrt(2.0).astype(V.dtype) * jnp.linalg.norm(V, axis=1, keepdims=True))
