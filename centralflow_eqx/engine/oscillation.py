"""Which oscillation keeps an optimizer at the edge of stability.

The covariance Sigma = U X U^T of the oscillation is fixed by three conditions: the flow stays
stable, Sigma is positive semidefinite, and oscillation happens only along critical directions
(arXiv 2410.24206). Over a substep the projected margin U^T (2P - H) U moves linearly in X, which
turns the conditions into a semidefinite complementarity problem.
"""

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from .complementarity import (
    RESULTS,
    ComplementarySolution,
    solve_complementarity,
    violation,
)
from .curvature import Eigenpairs, Loss, apply_columns, third_derivatives
from .noise import BatchNoise, balanced, told, told_of_nothing
from .response import Response, State, Vector
from .settings import Resolved
from .state_rate import AbstractStateRate
from .symmetric import pairs as pair_indices
from .symmetric import smat, svec

MarginChange = Callable[[Vector, State], Float[Array, " p"]]
"""Maps small changes of weights and state to that of the margin, in coordinates."""


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
    average of the state's update gains. `pull` has D3^T K D3 for the third derivatives
    D3 = D3[u_i, u_i]. `slack` is the largest excess of an eigenvalue over 2 that was left for the
    next substep, `by_state` the share of the stabilisation <X, beta[X]> that the optimizer's state
    does by adapting; falling curvature does the rest. NaN where nothing oscillates. `noise` has
    what is recorded of mini-batch noise, nothing where there is none.
    """

    solution: ComplementarySolution
    penalty: Vector
    excess: State
    pull: Float[Array, " m"]
    critical: Int[Array, ""]
    slack: Float[Array, ""]
    by_state: Float[Array, ""]
    noise: dict[str, Float[Array, ""]] = eqx.field(default_factory=dict)


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


def modes(
    Y: Float[Array, "d m"],
    U: Float[Array, "d m"],
    theta: Float[Array, " m"],
    X: Float[Array, "m m"],
) -> Modes:
    """The modes of the covariance U X U^T, with U = K Y and H U = Y diag(theta)."""
    variances, V = jnp.linalg.eigh(X)
    V = V[:, ::-1].astype(U.dtype)
    return Modes(
        vectors=U @ V,
        gradients=(Y * theta) @ V,
        projectors=Y @ V,
        variances=jnp.maximum(variances[::-1], 0),
    )


def oscillate(
    loss: Loss,
    response: Response,
    rate: AbstractStateRate,
    point: Point,
    settings: Resolved,
    slack: Float[Array, " m"],
    *,
    fallback: bool = True,
    held: bool = False,
    noise: BatchNoise | None = None,
) -> Oscillation:
    """Solve for the oscillation at `point` over a substep.

    Eigenvalues may exceed 2 by up to `slack` where a flow started unstable. That excess shrinks at
    the rate of restoration, at most to nothing within the substep; any other ends at once.
    Where `held`, critical eigenvalues are to stay as they are. `fallback` is that of
    `solve_complementarity`. With `noise` the oscillation is the one that mini-batches drive
    (`balance`), and they have a share of their own in the state's averages.
    """
    pairs, dt = point.pairs, settings.dt
    ambient = None if noise is None else noise.excess(response, point.post, point.grad, point.w)
    critical = count_critical(pairs, settings.critical_above)
    left = pairs.theta - 2 if held else _excess_left(settings, pairs.theta, slack)

    def active() -> Oscillation:
        third = weighted_thirds(loss, point, critical)
        change = gain_change(response, point)
        amplitudes = pairs.theta * pairs.Y  # the gradient oscillates by H u = theta P u
        answers = margin_response(response, rate, point, amplitudes, change, third, critical, dt)
        by_weights, by_state = answers
        drift = margin_drift(response, rate, point, change, third, dt, ambient)
        margin = jnp.diag(2 - pairs.theta.astype(drift.dtype)) + smat(drift, pairs.theta.size)
        alpha = margin + jnp.diag(left.astype(margin.dtype))
        alpha, beta = restrict(alpha, by_weights + by_state, jnp.arange(len(alpha)) < critical)
        if noise is None:
            solution = solve(response, alpha, beta, fallback)
            solution, found = nothing_to_solve(solution, alpha, point.w.dtype), {}
        else:
            driven = noise.along(point.w, pairs.U, pairs.theta, critical)
            beta = solvable(response, beta)
            solution = balanced(driven, alpha, beta, critical, fallback=fallback)
            found = told(driven, solution)
        X = svec(solution.X)
        return Oscillation(
            solution,
            X.astype(third.dtype) @ third / 2,
            average_excess(response, point, amplitudes, solution.X, critical),
            pull(point, third),
            critical,
            jnp.max(left),
            (X @ by_state @ X) / (X @ beta @ X),
            found,
        )

    def quiet() -> Oscillation:
        still = nothing(point.w, point.post, pairs.theta, left)
        return still if noise is None else replace(still, noise=told_of_nothing(still.solution))

    return _amid(jax.lax.cond(critical > 0, active, quiet), ambient)


def _excess_left(
    settings: Resolved, theta: Float[Array, " m"], slack: Float[Array, " m"]
) -> Float[Array, " m"]:
    """By how much eigenvalues may exceed 2 after a substep."""
    kept = 1 - jnp.minimum(1, settings.restoration * settings.dt)
    return kept * jnp.clip(theta - 2, 0, slack)


def _amid(oscillation: Oscillation, ambient: State | None) -> Oscillation:
    """The oscillation with what else adds to the average of the state's update."""
    if ambient is None:
        return oscillation
    return replace(oscillation, excess=jax.tree.map(jnp.add, oscillation.excess, ambient))


def solve(
    response: Response, alpha: Float[Array, "m m"], beta: Float[Array, "p p"], fallback: bool
) -> ComplementarySolution:
    """The solution of the complementarity problem; its residual is that of the true beta."""
    solved = solvable(response, beta)
    solution = solve_complementarity(alpha, solved, fallback=fallback)
    if solved is beta:
        return solution
    residual = violation(alpha, beta, solution.X)
    return eqx.tree_at(lambda s: s.residual, solution, residual)


def solvable(response: Response, beta: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """The beta that is solved with.

    Of rules with a diagonal gain beta is symmetric at criticality, and its symmetric part makes the
    problem a convex program beyond (a start above the threshold). Of others it is a little
    unsymmetric everywhere, which the normal map does not mind.
    """
    symmetric = response.structure.gain in ("scalar", "diagonal")
    if symmetric and response.structure.statistics:  # without, it is wherever the flow stands
        return (beta + beta.T) / 2
    return beta


def nothing_to_solve(
    solution: ComplementarySolution, alpha: Float[Array, "m m"], dtype: DTypeLike
) -> ComplementarySolution:
    """No oscillation where a problem without a solution has a margin of no more than rounding.

    So it is at the threshold itself where no force drives the flow beyond: eigenvalues of 2 are
    known to rounding.
    """
    rounding = 100 * float(jnp.finfo(dtype).eps)
    rest = ComplementarySolution(
        jnp.zeros_like(solution.X),
        alpha,
        jnp.zeros_like(solution.residual),
        solution.iterations,
        RESULTS.solved,
    )
    instead = (solution.result != RESULTS.solved) & (jnp.max(jnp.abs(alpha)) <= rounding)
    return jax.tree.map(lambda a, b: jnp.where(instead, a, b), rest, solution)


def count_critical(pairs: Eigenpairs, above: float | Float[Array, ""]) -> Int[Array, ""]:
    """How many directions may oscillate."""
    return jnp.sum(pairs.mask & (pairs.theta > above)).astype(jnp.int32)


def nothing(
    w: Vector, post: State, theta: Float[Array, " m"], left: Float[Array, " m"]
) -> Oscillation:
    """What there is where no direction may oscillate."""
    m = theta.size
    zero = jnp.zeros((m, m), jnp.float64)
    margin = jnp.diag(2 - theta.astype(jnp.float64))
    none = jnp.zeros((), jnp.int64)
    solved = ComplementarySolution(zero, margin, jnp.zeros(()), none, RESULTS.solved)
    return Oscillation(
        solved,
        jnp.zeros_like(w),
        jax.tree.map(jnp.zeros_like, post),
        jnp.zeros(m, w.dtype),
        jnp.zeros((), jnp.int32),
        jnp.max(left),
        jnp.full((), jnp.nan, jnp.float64),
    )


def pair_weights(m: int, dtype: DTypeLike) -> Float[Array, " p"]:
    """Weights of the pairs of m directions with which sums over X are dot products.

    Coordinates of X are its lower triangle with off-diagonal entries times sqrt 2.
    """
    rows, columns = pair_indices(m)
    return jnp.where(rows == columns, 1, 2**0.5).astype(dtype)


def weighted_thirds(
    loss: Loss,
    point: Point,
    critical: Int[Array, ""],
    due: Bool[Array, " p"] | None = None,
) -> Float[Array, "p d"]:
    """Third derivatives of critical pairs as coordinates, so that those of X are their weights.

    Those of pairs that are not `due` are zero.
    """
    weights = pair_weights(point.pairs.theta.size, point.w.dtype)
    return weights[:, None] * third_derivatives(loss, point.w, point.pairs.U, critical, due)


def curvature_penalty(
    loss: Loss, point: Point, X: Float[Array, "m m"], critical: Int[Array, ""]
) -> tuple[Vector, Float[Array, " m"]]:
    """grad <H, Sigma> / 2 for the covariance `X`, and `Oscillation.pull`."""
    third = weighted_thirds(loss, point, critical)
    return svec(X).astype(third.dtype) @ third / 2, pull(point, third)


def pull(point: Point, third: Float[Array, "p d"]) -> Float[Array, " m"]:
    """`Oscillation.pull`."""
    rows, columns = pair_indices(point.pairs.theta.size)
    own = third[rows == columns]
    return jax.vmap(jnp.vdot)(own, apply_columns(point.gain, own.T).T)


def average_excess(
    response: Response,
    point: Point,
    amplitudes: Float[Array, "d m"],
    X: Float[Array, "m m"],
    critical: Int[Array, ""],
) -> State:
    """What an oscillation of covariance `X` adds to the average of F.

    Column i of `amplitudes` is that of the gradient's oscillation in direction i. The sum over
    pairs of directions is one over the modes of X, of which at most `critical` are not zero.
    """
    none = jax.tree.map(jnp.zeros_like, point.post)
    if not response.structure.statistics:
        return none
    variances, V = jnp.linalg.eigh(X.astype(point.w.dtype))
    Q = amplitudes @ V[:, ::-1]
    variances = jnp.maximum(variances[::-1], 0)

    def add(k: Array, excess: State) -> State:
        more = response.quadratic(point.post, point.grad, point.w, Q[:, k], Q[:, k])
        return jax.tree.map(lambda e, c: e + variances[k].astype(c.dtype) * c, excess, more)

    return jax.lax.fori_loop(0, critical, add, none)


def state_columns(
    response: Response,
    point: Point,
    amplitudes: Float[Array, "d m"],
    critical: int | Int[Array, ""],
    change: Callable[[State], Float[Array, " p"]],
) -> Float[Array, "p p"]:
    """For every pair of critical directions, how the margin changes with its share of the excess.

    `change` maps what a pair adds to the average of F to the change of the margin. Columns of other
    pairs are zero; one pair is at work at a time.
    """
    m = point.pairs.theta.size
    rows, columns = (jnp.asarray(i) for i in pair_indices(m))
    weights = pair_weights(m, point.w.dtype)
    none = jnp.zeros((len(rows), len(rows)), jnp.float64)
    if not response.structure.statistics:
        return none

    def fill(p: Array, beta: Float[Array, "p p"]) -> Float[Array, "p p"]:
        q, r = amplitudes[:, rows[p]], amplitudes[:, columns[p]]
        excess = response.quadratic(point.post, point.grad, point.w, q, r)
        excess = jax.tree.map(lambda c: weights[p].astype(c.dtype) * c, excess)
        return beta.at[:, p].set(change(excess).astype(beta.dtype))

    return jax.lax.fori_loop(0, critical * (critical + 1) // 2, fill, none)


def gain_change(response: Response, point: Point) -> MarginChange:
    """Change of U^T 2P U with the weights and the state: dP = -P dK P makes it -2 Y^T dK Y."""
    Y, diagonal = point.pairs.Y, response.structure.gain in ("scalar", "diagonal")

    def gain(s: State, w: Vector) -> Array:
        gain = response.gain(s, w)
        return lx.diagonal(gain) if diagonal else apply_columns(gain, Y)

    _, tangent = jax.linearize(gain, point.post, point.w)

    def change(dw: Vector, ds: State) -> Float[Array, " p"]:
        dK = tangent(ds, dw)
        return -2 * svec(Y.T @ (dK[:, None] * Y if diagonal else dK))

    return change


def margin_response(
    response: Response,
    rate: AbstractStateRate,
    point: Point,
    amplitudes: Float[Array, "d m"],
    change: MarginChange,
    third: Float[Array, "p d"],
    critical: int | Int[Array, ""],
    dt: Float[Array, ""],
) -> tuple[Float[Array, "p p"], Float[Array, "p p"]]:
    """How the margin U^T (2P - H) U after `dt` depends on X: by the weights, and by the state.

    The oscillation moves it through the weights, which turn to where curvature falls (and the
    gain changes, where it depends on them), and through the optimizer's state. `amplitudes` are
    those of `average_excess`, `change` is `gain_change` at `point`.
    """
    w, post = point.w, point.post
    still, kept = jnp.zeros_like(w), jax.tree.map(jnp.zeros_like, post)
    J = response.slopes(post, w)

    def moved(dw: Vector) -> Float[Array, " p"]:
        turned = -third @ dw
        return turned + change(dw, kept) if response.structure.follows_weights else turned

    def by_weights(p: Array, beta: Float[Array, "p p"]) -> Float[Array, "p p"]:
        dw = dt * response.mean_gain(post, w, third[p] / 2)
        return beta.at[:, p].set(moved(dw).astype(beta.dtype))

    def by_state(excess: State) -> Float[Array, " p"]:
        return change(still, jax.tree.map(lambda c, j: rate.fraction(j, dt) * c, excess, J))

    size, number = len(third), critical * (critical + 1) // 2
    return (
        jax.lax.fori_loop(0, number, by_weights, jnp.zeros((size, size), jnp.float64)),
        state_columns(response, point, amplitudes, critical, by_state),
    )


def margin_drift(
    response: Response,
    rate: AbstractStateRate,
    point: Point,
    change: MarginChange,
    third: Float[Array, "p d"],
    dt: Float[Array, ""],
    ambient: State | None = None,
) -> Float[Array, " p"]:
    """How the margin would change over `dt` if nothing oscillated.

    `ambient` is added to the average of F.
    """
    dw, ds = rate.velocity(response, point.post, point.w, point.grad, dt)
    if ambient is not None:
        J = response.slopes(point.post, point.w)
        ds = jax.tree.map(lambda x, j, a: x + rate.fraction(j, dt) * a, ds, J, ambient)
    return (change(dw, ds) - third @ dw).astype(jnp.float64)


def restrict(
    alpha: Float[Array, "m m"], beta: Float[Array, "p p"], kept: Bool[Array, " m"]
) -> tuple[Float[Array, "m m"], Float[Array, "p p"]]:
    """Decouple the directions that are not `kept`, with a positive margin of their own."""
    m = alpha.shape[0]
    alpha = jnp.where(kept[:, None] & kept, alpha, 0)
    size = jnp.max(jnp.abs(alpha))
    margin = jnp.where(size > 0, size, 1)
    rows, columns = pair_indices(m)
    pair_kept = kept[rows] & kept[columns]
    beta = jnp.where(pair_kept[:, None] & pair_kept, beta, 0)
    return alpha + jnp.diag(jnp.where(kept, 0, margin)), beta
