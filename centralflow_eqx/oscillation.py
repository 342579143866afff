"""Which oscillation keeps an optimizer at the edge of stability.

The covariance Sigma = U X U^T of the oscillation is fixed by three conditions: the flow stays
stable, Sigma is positive semidefinite, and oscillation happens only along critical directions
(arXiv 2410.24206). Over a substep the projected margin U^T (2P - H) U moves linearly in X, which
turns the conditions into a semidefinite complementarity problem.
"""

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
    `slack` is the largest excess of an eigenvalue over 2 that was left for the next substep.
    """

    solution: ComplementarySolution
    penalty: Vector
    excess: State
    third: Float[Array, "m d"]
    critical: Int[Array, ""]
    slack: Float[Array, ""]


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
    rows, columns = pair_indices(pairs.theta.size)
    # Coordinates of X are its lower triangle with off-diagonal entries times sqrt 2; rows of
    # third derivatives carry the same weights, so that sums over X are dot products.
    weights = jnp.where(rows == columns, 1, 2**0.5).astype(point.w.dtype)
    third = third_derivatives(loss, point.w, pairs.U, critical)
    weighted = weights[:, None] * third
    amplitudes = pairs.theta * pairs.Y  # of the gradient: H u = theta P u

    def excess(row: Array, column: Array, weight: Array) -> State:
        q, r = amplitudes[:, row], amplitudes[:, column]
        added = response.quadratic(point.post, point.grad, point.w, q, r)
        return jax.tree.map(lambda c: weight * c, added)

    excesses = jax.vmap(excess)(jnp.asarray(rows), jnp.asarray(columns), weights)
    alpha, beta = _margin(response, rate, point, weighted, excesses, dt)
    left = (1 - jnp.minimum(1, restoration * dt)) * jnp.clip(pairs.theta - 2, 0, slack)
    alpha = alpha + jnp.diag(left.astype(alpha.dtype))
    solution = solve_complementarity(*_restrict(alpha, beta, critical))
    x = svec(solution.X).astype(point.w.dtype)
    return Oscillation(
        solution=solution,
        penalty=x @ weighted / 2,
        excess=jax.tree.map(lambda c: jnp.tensordot(x.astype(c.dtype), c, 1), excesses),
        third=third[rows == columns],
        critical=critical,
        slack=jnp.max(left),
    )


def _margin(
    response: Response,
    rate: AbstractStateRate,
    point: Point,
    third: Float[Array, "p d"],
    excesses: State,
    dt: float,
) -> tuple[Float[Array, "m m"], Float[Array, "p p"]]:
    """alpha and beta of the next margin, U^T (2P - H) U = alpha + beta[X] after `dt`.

    dP = -P dK P turns the change of 2P into -2 Y^T dK Y. At criticality beta is symmetric; its
    symmetric part makes the problem a convex program beyond (a start above the threshold).
    """
    pairs, w, post = point.pairs, point.w, point.post

    def projected_gain(s: State, w: Vector) -> Float[Array, " p"]:
        return svec(pairs.Y.T @ apply_columns(response.gain(s, w), pairs.Y))

    def change(dw: Vector, ds: State) -> Float[Array, " p"]:
        gain = jax.jvp(projected_gain, (post, w), (ds, dw))[1]
        return -2 * gain - third @ dw

    dw, ds = rate.velocity(response, post, w, point.grad, dt)
    J = response.slopes(post, w)

    def respond(row: Vector, excess: State) -> Float[Array, " p"]:
        dw = dt * response.mean_gain(post, w, row / 2)
        return change(dw, jax.tree.map(lambda c, j: rate.fraction(j, dt) * c, excess, J))

    drift = change(dw, ds).astype(jnp.float64)
    alpha = jnp.diag(2 - pairs.theta.astype(jnp.float64)) + smat(drift, pairs.theta.size)
    beta = jax.vmap(respond, out_axes=1)(third, excesses).astype(jnp.float64)
    return alpha, (beta + beta.T) / 2


def _restrict(
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
