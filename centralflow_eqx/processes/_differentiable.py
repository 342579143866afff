"""The central flow by Euler's method as a differentiable function of its beginning and its rule.

The steps are those of `_first_order`. What they solve for is differentiated by the implicit
function theorem, and what belongs to eigenvectors is written for any basis of the critical space.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ..engine.complementarity import RESULTS
from ..engine.curvature import Eigenpairs, Loss, leading, third_derivative, unsolved
from ..engine.implicit import Eigenspace, covariance, eigenspace, held
from ..engine.loop import checkpointed_scan
from ..engine.oscillation import (
    Point,
    count_critical,
    gain_change,
    margin_drift,
    margin_response,
    nothing_to_solve,
    pair_weights,
    restrict,
    solvable,
    solve,
)
from ..engine.response import State, Vector
from ..engine.symmetric import pairs as pair_indices
from ..engine.symmetric import smat, split, svec
from ._base import Setting
from ._first_order import EulerState, begin, critical_room, known


class End(NamedTuple):
    """Where a flow ends: weights, training loss, and the optimizer's average of it around them.

    `critical` is the largest number of directions that were critical at a time; `valid` whether all
    was solved for on the way: eigenpairs, the oscillation, and directions no more than there is
    room for.
    """

    weights: Vector
    train_loss: Float[Array, ""]
    predicted_loss: Float[Array, ""]
    critical: Int[Array, ""]
    valid: Bool[Array, ""]


class _Effect(NamedTuple):
    """An oscillation's: on the mean gradient, the average of F, and the average of the loss.

    `slack` is that of `Oscillation`.
    """

    penalty: Vector
    excess: State
    loss: Float[Array, ""]
    slack: Float[Array, ""]
    solved: Bool[Array, ""]


def run_differentiably(
    setting: Setting, w: Vector, s: State, steps: int, substeps: int, room: int
) -> End:
    """The central flow's end, `steps` optimizer steps from `w` and the optimizer's own state `s`.

    `substeps` are those of `setting`, and `room` is for eigenpairs.
    """
    pairs = unsolved(w.size, room, w.dtype, jr.key(0))
    state = begin(setting, w, s, pairs)
    zero = jnp.zeros((), w.dtype)
    end = End(w, zero, zero, jnp.zeros((), jnp.int32), jnp.ones((), bool))

    def substep(now: tuple[EulerState, End], i: Int[Array, ""]) -> tuple[EulerState, End]:
        state, before = now
        state, end = _substep(setting, state, i % substeps == 0)
        critical = jnp.maximum(before.critical, end.critical)
        return state, end._replace(critical=critical, valid=before.valid & end.valid)

    # The last one only looks at where the flow has ended.
    return checkpointed_scan(substep, (state, end), steps * substeps + 1)[1]


def _substep(setting: Setting, state: EulerState, first: Bool[Array, ""]) -> tuple[EulerState, End]:
    """A substep further, and the end that it would be to stop where it begins."""
    w, response, rate = state.w, setting.response, setting.rate
    dt = setting.settings.dt
    loss, grad = jax.value_and_grad(setting.loss)(w)
    post = rate.post(response, state.s, grad, w, dt)
    pairs = _pairs(*held((setting, state.pairs, post, w)), first)
    critical = leading(pairs, critical_room(pairs))
    number = count_critical(critical, setting.settings.critical_above)
    slack = jnp.where(known(held(state.pairs), critical), state.slack, jnp.inf)
    point = Point(w, post, grad, response.gain(post, w), critical)

    def quiet(point: Point, _: Float[Array, " k"]) -> _Effect:
        none, excess = jnp.zeros_like(loss), jax.tree.map(jnp.zeros_like, point.post)
        return _Effect(jnp.zeros_like(w), excess, none, none, jnp.ones((), bool))

    def active(point: Point, slack: Float[Array, " k"]) -> _Effect:
        return _oscillate(setting, point, number, slack)

    effect = jax.lax.cond(number > 0, active, quiet, point, slack)
    gradients = (grad, grad + effect.penalty)
    w_new, s_new = rate.substep(response, state.s, w, gradients, effect.excess, dt)
    crowded = count_critical(pairs, setting.settings.critical_above) > critical.theta.size
    valid = pairs.converged & effect.solved & ~crowded & jnp.isfinite(loss)
    end = End(w, loss, loss + effect.loss, number, valid)
    return EulerState(w_new, s_new, pairs, effect.slack), end


def _pairs(
    setting: Setting, pairs: Eigenpairs, post: State, w: Vector, first: Bool[Array, ""]
) -> Eigenpairs:
    """The eigenpairs at `w` and the post-update state there."""
    model, gain = setting.local_model(w), setting.response.gain(post, w)
    above = setting.settings.critical_above
    return held(setting.tracker.solve(model, gain, pairs, explore=first, exact_above=above))


def _oscillate(
    setting: Setting, point: Point, number: Int[Array, ""], slack: Float[Array, " k"]
) -> _Effect:
    """As `oscillate` does, of the first `number` directions."""
    response, rate, settings = setting.response, setting.rate, setting.settings
    k = point.pairs.theta.size
    kept = jnp.arange(k) < number
    space = eigenspace(setting.loss, response, point.post, point.w, point.pairs, kept)
    point = eqx.tree_at(lambda p: (p.pairs.U, p.pairs.Y), point, (space.U, space.Y))
    third = _weighted_thirds(setting.loss, point, number)
    change = gain_change(response, point)
    by_weights, by_state = margin_response(
        response, rate, point, space.HU, change, third, k, settings.dt
    )
    drift = margin_drift(response, rate, point, change, third, settings.dt)
    over = jnp.where(kept[:, None] & kept, space.T - 2 * jnp.eye(k), 0).astype(drift.dtype)
    shrink = 1 - jnp.minimum(1, settings.restoration * settings.dt)
    left = shrink * _up_to(over, slack.astype(over.dtype))
    alpha, beta = restrict(left - over + smat(drift, k), by_weights + by_state, kept)
    beta = solvable(response, beta)
    solution = solve(response, *held((alpha, beta)), fallback=False)
    solution = held(nothing_to_solve(solution, alpha, point.w.dtype))
    X = covariance(alpha, beta, solution).astype(third.dtype)
    return _Effect(
        svec(X) @ third / 2,
        _excess(setting, point, space, X),
        jnp.vdot(X, space.T) / 2,
        _largest(left).astype(third.dtype),
        solution.result == RESULTS.solved,
    )


def _weighted_thirds(loss: Loss, point: Point, number: Int[Array, ""]) -> Float[Array, "p d"]:
    """`weighted_thirds` in a loop of known length; pairs that do not count take no time."""
    rows, columns = (jnp.asarray(i) for i in pair_indices(point.pairs.theta.size))
    weights = pair_weights(point.pairs.theta.size, point.w.dtype)

    @jax.checkpoint
    def third(p: Int[Array, ""]) -> Vector:
        U, w = point.pairs.U, point.w
        return weights[p] * third_derivative(loss, w, U[:, rows[p]], U[:, columns[p]])

    def if_counted(p: Int[Array, ""]) -> Vector:
        return jax.lax.cond(rows[p] < number, third, lambda _: jnp.zeros_like(point.w), p)

    return jax.lax.map(if_counted, jnp.arange(len(rows)))


def _excess(setting: Setting, point: Point, space: Eigenspace, X: Float[Array, "k k"]) -> State:
    """`average_excess` as a sum over directions u_i with sum_j X_ij u_j, which needs no modes."""
    response = setting.response
    if not response.structure.statistics:
        return jax.tree.map(jnp.zeros_like, point.post)

    def along(rows: tuple[Vector, Vector]) -> State:
        return response.quadratic(point.post, point.grad, point.w, *rows)

    each = jax.lax.map(along, (space.HU.T, (space.HU @ X).T))
    return jax.tree.map(lambda x: jnp.sum(x, 0), each)


def _up_to(over: Float[Array, "k k"], slack: Float[Array, " k"]) -> Float[Array, "k k"]:
    """A symmetric matrix with its eigenvalues between zero and the slack of their directions."""
    most = jax.lax.stop_gradient(1 + jnp.sum(jnp.abs(over)))
    return split(over)[0] - split(over - jnp.diag(jnp.minimum(slack, most)))[0]


def _largest(matrix: Float[Array, "k k"]) -> Float[Array, ""]:
    """The largest eigenvalue of a symmetric matrix."""
    vector = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))[1][:, -1]
    return vector @ matrix @ vector
