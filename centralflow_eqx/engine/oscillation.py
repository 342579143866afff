"""Which oscillation keeps an optimizer at the edge of stability.

The covariance Sigma = U X U^T of the oscillation is fixed by three conditions: the flow stays
stable, Sigma is positive semidefinite, and oscillation happens only along critical directions
(arXiv 2410.24206). Over a substep the projected margin U^T (2P - H) U moves linearly in X, which
turns the conditions into a semidefinite complementarity problem.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int

from .complementarity import (
    ComplementarySolution,
    smat,
    solve_complementarity,
    svec,
)
from .complementarity import (
    pairs as pair_indices,
)
from .curvature import Eigenpairs, Loss, third_derivatives
from .response import Response, State, Vector, apply_columns
from .state_rate import AbstractStateRate


class Point(eqx.Module):
    """Where a flow stands: weights, post-update state, gradient, gain and leading eigenpairs."""

    w: Vector
    post: State
    grad: Vector
    gain: lx.AbstractLinearOperator
    pairs: Eigenpairs


class Oscillation(eqx.Module):
    """The oscillation over one substep and its effect on the averages.

    `solution.X` is the covariance in the basis U, so its eigenvalues are variances in the P
    metric. `penalty` is grad <H, Sigma> / 2, what the mean gradient gains; `excess` is what the
    average of the state's update gains. `third` has the third derivatives D3[u_i, u_i] as rows.
    `slack` is the largest excess of an eigenvalue over 2 that was left for the next substep,
    `by_state` the share of the stabilisation <X, beta[X]> that the optimizer's state does by
    adapting; falling curvature does the rest. NaN where nothing oscillates.
    """

    solution: ComplementarySolution
    penalty: Vector
    excess: State
    third: Float[Array, "m d"]
    critical: Int[Array, ""]
    slack: Float[Array, ""]
    by_state: Float[Array, ""]


class Modes(eqx.Module):
    """An oscillation as independent modes: Sigma = sum_k variances[k] u_k u_k^T, largest first.

    `vectors` has the u_k as columns, with u_k^T P u_k = 1; `gradients` the H u_k by which the
    gradient oscillates; `projectors` the P u_k, whose products with a displacement of the weights
    are its coordinates.
    """

    vectors: Float[Array, "d m"]
    gradients: Float[Array, "d m"]
    projectors: Float[Array, "d m"]
    variances: Float[Array, " m"]


def modes(pairs: Eigenpairs, X: Float[Array, "m m"]) -> Modes:
    """The modes of the covariance U X U^T."""
    variances, V = jnp.linalg.eigh(X)
    V = V[:, ::-1].astype(pairs.U.dtype)
    return Modes(
        vectors=pairs.U @ V,
        gradients=(pairs.Y * pairs.theta) @ V,
        projectors=pairs.Y @ V,
        variances=jnp.maximum(variances[::-1], 0),
    )


def oscillate(
    loss: Loss,
    response: Response,
    rate: AbstractStateRate,
    point: Point,
    critical_above: float,
    slack: Float[Array, ""],
    restoration: float,
    dt: float,
) -> Oscillation:
    """Solve for the oscillation at `point` over a substep of length `dt`.

    Eigenvalues may exceed 2 by up to `slack` where a flow started unstable. That excess shrinks at
    the rate `restoration`, at most to nothing within the substep; any other ends at once.
    """
    pairs = point.pairs
    critical = jnp.sum(pairs.mask & (pairs.theta > critical_above)).astype(jnp.int32)
    weights = pair_weights(pairs.theta.size, point.w.dtype)
    third = third_derivatives(loss, point.w, pairs.U, critical)
    # The gradient oscillates by H u = theta P u.
    excesses = pair_excesses(response, point, pairs.theta * pairs.Y)
    margin = _margin(response, rate, point, weights[:, None] * third, excesses, dt)
    left = (1 - jnp.minimum(1, restoration * dt)) * jnp.clip(pairs.theta - 2, 0, slack)
    alpha = margin.alpha + jnp.diag(left.astype(margin.alpha.dtype))
    # At criticality beta is symmetric; its symmetric part makes the problem a convex program
    # beyond (a start above the threshold).
    beta = margin.by_weights + margin.by_state
    solution = solve_complementarity(*restrict(alpha, (beta + beta.T) / 2, critical))
    X = svec(solution.X)
    x = X.astype(point.w.dtype)
    rows, columns = pair_indices(pairs.theta.size)
    return Oscillation(
        solution=solution,
        penalty=x @ (weights[:, None] * third) / 2,
        excess=combine(excesses, x),
        third=third[rows == columns],
        critical=critical,
        slack=jnp.max(left),
        by_state=(X @ margin.by_state @ X) / (X @ beta @ X),
    )


def pair_weights(m: int, dtype: jnp.dtype) -> Float[Array, " p"]:
    """Weights of the pairs of m directions with which sums over X are dot products.

    Coordinates of X are its lower triangle with off-diagonal entries times sqrt 2.
    """
    rows, columns = pair_indices(m)
    return jnp.where(rows == columns, 1, 2**0.5).astype(dtype)


def pair_excesses(response: Response, point: Point, amplitudes: Float[Array, "d m"]) -> State:
    """What an oscillation adds to the average of F, for every pair of directions, weighted.

    Column i of `amplitudes` is that of the gradient's oscillation in direction i. Leaves have a
    leading axis of pairs.
    """
    m = amplitudes.shape[1]
    rows, columns = (jnp.asarray(i) for i in pair_indices(m))

    def excess(row: Array, column: Array, weight: Array) -> State:
        q, r = amplitudes[:, row], amplitudes[:, column]
        added = response.quadratic(point.post, point.grad, point.w, q, r)
        return jax.tree.map(lambda c: weight * c, added)

    return jax.vmap(excess)(rows, columns, pair_weights(m, point.w.dtype))


def combine(excesses: State, x: Float[Array, " p"]) -> State:
    """The excess of the oscillation with coordinates `x`."""
    return jax.tree.map(lambda c: jnp.tensordot(x.astype(c.dtype), c, 1), excesses)


def gain_change(response: Response, point: Point) -> Callable[[Vector, State], Float[Array, " p"]]:
    """Change of U^T 2P U with the weights and the state: dP = -P dK P makes it -2 Y^T dK Y."""
    pairs, w, post = point.pairs, point.w, point.post

    def projected_gain(s: State, w: Vector) -> Float[Array, " p"]:
        return svec(pairs.Y.T @ apply_columns(response.gain(s, w), pairs.Y))

    def change(dw: Vector, ds: State) -> Float[Array, " p"]:
        return -2 * jax.jvp(projected_gain, (post, w), (ds, dw))[1]

    return change


class _Margin(NamedTuple):
    """The next margin U^T (2P - H) U = alpha + (by_weights + by_state)[X]."""

    alpha: Float[Array, "m m"]
    by_weights: Float[Array, "p p"]
    by_state: Float[Array, "p p"]


def _margin(
    response: Response,
    rate: AbstractStateRate,
    point: Point,
    third: Float[Array, "p d"],
    excesses: State,
    dt: float,
) -> _Margin:
    """The margin after `dt`, in terms of X.

    The oscillation moves it through the weights, which turn to where curvature falls (and the
    gain changes, where it depends on them), and through the optimizer's state.
    """
    pairs, w, post = point.pairs, point.w, point.post
    change = gain_change(response, point)
    still, kept = jnp.zeros_like(w), jax.tree.map(jnp.zeros_like, post)
    J = response.slopes(post, w)

    def by_weights(row: Vector) -> Float[Array, " p"]:
        dw = dt * response.mean_gain(post, w, row / 2)
        return change(dw, kept) - third @ dw

    def by_state(excess: State) -> Float[Array, " p"]:
        return change(still, jax.tree.map(lambda c, j: rate.fraction(j, dt) * c, excess, J))

    dw, ds = rate.velocity(response, post, w, point.grad, dt)
    drift = (change(dw, ds) - third @ dw).astype(jnp.float64)
    return _Margin(
        jnp.diag(2 - pairs.theta.astype(jnp.float64)) + smat(drift, pairs.theta.size),
        jax.vmap(by_weights, out_axes=1)(third).astype(jnp.float64),
        jax.vmap(by_state, out_axes=1)(excesses).astype(jnp.float64),
    )


def restrict(
    alpha: Float[Array, "m m"], beta: Float[Array, "p p"], critical: Int[Array, ""]
) -> tuple[Float[Array, "m m"], Float[Array, "p p"]]:
    """Decouple the directions that are not critical, with a positive margin of their own."""
    m = alpha.shape[0]
    kept = jnp.arange(m) < critical
    alpha = jnp.where(kept[:, None] & kept, alpha, 0)
    size = jnp.max(jnp.abs(alpha))
    margin = jnp.where(size > 0, size, 1)
    rows, columns = pair_indices(m)
    pair_kept = kept[rows] & kept[columns]
    beta = jnp.where(pair_kept[:, None] & pair_kept, beta, 0)
    return alpha + jnp.diag(jnp.where(kept, 0, margin)), beta
