"""A step of a central flow that is accurate to second order and looks at one place only.

Over a step of `h` optimizer steps the oscillation's covariance X is constant. What the margin
depends on is extrapolated to the middle of the step (`geometry`); weights and state pass through
the step by gradients alone (`averages`); and X is corrected twice on the margin that the passage
ends with, which is affine in X but for what the passage itself bends.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from .averages import Field, Passage, Place, pass_through
from .complementarity import RESULTS, ComplementarySolution
from .curvature import Loss, apply_columns
from .geometry import Geometry, extrapolate, turn
from .oscillation import (
    Point,
    average_excess,
    gain_change,
    margin_response,
    nothing_to_solve,
    restrict,
    solve,
)
from .response import Response, State, Vector
from .settings import Resolved
from .state_rate import AbstractStateRate
from .symmetric import pairs as pair_indices
from .symmetric import smat, split, svec

_CORRECTIONS = 2  # with one, errors are three times as large
_SETTLED = 0.3  # share of the tolerance that a correction has to reach to be made


class Memory(NamedTuple):
    """What a step leaves for the next: where it looked, what it took, what it expected.

    `geometry` is that of its beginning, `X` and `X_before` its covariance and that of the step
    before, in the basis of `geometry`, and `margin` what it was to end with. `reach` is how far
    weights move for a change of a direction's margin, `error` how far the passage was off, `moved`
    how far it went, `pushed` how far the oscillation alone has pushed it, `h` the step's length and
    `h_before` that of the step before. `turn` is that of `Renewal`. Before the first step `moved`
    is negative.
    """

    geometry: Geometry
    X: Float[Array, "k k"]
    X_before: Float[Array, "k k"]
    margin: Float[Array, "k k"]
    reach: Float[Array, " k"]
    error: Float[Array, ""]
    moved: Float[Array, ""]
    pushed: Float[Array, ""]
    h: Float[Array, ""]
    h_before: Float[Array, ""]
    turn: Int[Array, ""]

    @property
    def exists(self) -> Bool[Array, ""]:
        """Whether there was a step."""
        return self.moved >= 0


class Flow(NamedTuple):
    """What flows. The oscillation adds its penalty to the mean gradient only where `penalised`,
    but is always the one that would; `fallback` is that of `solve_complementarity`."""

    loss: Loss
    response: Response
    rate: AbstractStateRate
    settings: Resolved
    penalised: bool
    fallback: bool


class Outlook(NamedTuple):
    """What a step begins with: where, the geometry there, and how that has turned since the last.

    Eigenvalues may exceed 2 by up to `slack`, where a flow started unstable; `turn` is that of the
    next step.
    """

    point: Point
    place: Place
    geometry: Geometry
    R: Float[Array, "k k"]
    memory: Memory
    slack: Float[Array, " k"]
    turn: Int[Array, ""]


class Course(NamedTuple):
    """A step: the oscillation during it, the passage, and the margin it ends with.

    `gradients` is what all passages took, `reach` that of `Memory`, `pushed` how far the
    oscillation moves the weights, `missed` how far they are, by the last margin, from where they
    should be; `slack` what is left of that of an unstable start; `by_state` as in `Oscillation`.
    """

    solution: ComplementarySolution
    passage: Passage
    margin: Float[Array, "k k"]
    gradients: Int[Array, ""]
    reach: Float[Array, " k"]
    pushed: Float[Array, ""]
    missed: Float[Array, ""]
    slack: Float[Array, ""]
    by_state: Float[Array, ""]


def no_memory(d: int, k: int, dtype: jnp.dtype) -> Memory:
    """Nothing came before; there is room for `k` critical directions."""
    p = k * (k + 1) // 2
    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    nowhere = Geometry(
        jnp.zeros((d, k), dtype),
        jnp.zeros(k, dtype),
        jnp.zeros((p, d), dtype),
        jnp.zeros((p, d), dtype),
        jnp.zeros((), jnp.int32),
    )
    still = jnp.zeros((k, k))
    reach, first = jnp.zeros(k, dtype), jnp.zeros((), jnp.int32)
    return Memory(nowhere, still, still, still, reach, zero, -one, zero, one, one, first)


def widen_memory(memory: Memory, k: int) -> Memory:
    """The same memory with room for `k` critical directions."""
    new = no_memory(len(memory.geometry.Y), k, memory.reach.dtype)

    def keep(old: Array, wide: Array) -> Array:
        """Pairs of the first directions come first, as these do."""
        return wide.at[tuple(slice(n) for n in old.shape)].set(old)

    return jax.tree.map(keep, memory, new)


class _Halfway(NamedTuple):
    """Half a step ahead: the point, the geometry, the slopes of the state's recursion there, for
    how long momentum lasts, how the margin that is kept answers to X, the margin at the start, and
    how negative it may be then and at the end.
    """

    point: Point
    geometry: Geometry
    slopes: State
    lifetime: Float[Array, ""]
    by_weights: Float[Array, "p p"]
    by_state: Float[Array, "p p"]
    start: Float[Array, "k k"]
    left: tuple[Float[Array, "k k"], Float[Array, "k k"]]

    @property
    def beta(self) -> Float[Array, "p p"]:
        return self.by_weights + self.by_state


class _Corrected(NamedTuple):
    """A passage with the oscillation `now`, the margin it ends with, that which is to be kept, and
    the oscillation that they ask for."""

    now: ComplementarySolution
    then: ComplementarySolution
    passage: Passage
    margin: Float[Array, "k k"]
    kept: Float[Array, "k k"]
    number: Int[Array, ""]
    gradients: Int[Array, ""]


def steer(flow: Flow, outlook: Outlook, h: Float[Array, ""]) -> Course:
    """A step of length `h` from `outlook`."""
    half = _look_ahead(flow, outlook, h)
    found = _correct(flow, outlook, half, h)
    if not flow.penalised:
        passage, margin, _ = _go(flow, outlook, half, found.now.X, h, penalised=False)
        gradients = found.gradients + passage.gradients
        found = found._replace(passage=passage, margin=margin, gradients=gradients)
    reach, X = _reach(flow, half, h), svec(found.now.X)
    pushed = jnp.linalg.norm(_push(flow, half, found.now.X, h))
    short = jnp.maximum(-jnp.diagonal(found.kept), 0).astype(reach.dtype)
    return Course(
        # whether there is a solution is what was found last
        eqx.tree_at(lambda s: s.result, found.now, found.then.result),
        found.passage,
        found.margin,
        found.gradients,
        reach,
        pushed,
        jnp.max(reach * short),
        jnp.max(half.left[1]).astype(reach.dtype),
        (X @ half.by_state @ X) / (X @ half.beta @ X),
    )


def _correct(flow: Flow, outlook: Outlook, half: _Halfway, h: Float[Array, ""]) -> _Corrected:
    """Passages with one oscillation after another, until the last asks for the same again."""
    critical, settings, w = half.geometry.critical, flow.settings, outlook.point.w

    def ask(
        now: ComplementarySolution, margin: Float[Array, "k k"], kept: Float[Array, "k k"]
    ) -> ComplementarySolution:
        rest = kept - smat(half.beta @ svec(now.X), len(margin))
        # Nothing begins to oscillate before it is critical, however fast it becomes so.
        quiet = (jnp.diagonal(now.X) <= 0) & (jnp.diagonal(margin) > 0)
        alpha, beta = restrict(rest, half.beta, (jnp.arange(len(rest)) < critical) & ~quiet)
        found = solve(flow.response, alpha, beta, flow.fallback)
        return nothing_to_solve(found, alpha, w.dtype)

    def once(before: _Corrected) -> _Corrected:
        now = before.then
        passage, margin, kept = _go(flow, outlook, half, now.X, h, penalised=True)
        then = jax.lax.cond(critical > 0, ask, lambda now, *_: now, now, margin, kept)
        gradients = before.gradients + passage.gradients
        return _Corrected(now, then, passage, margin, kept, before.number + 1, gradients)

    def unsettled(now: _Corrected) -> Array:
        apart = jnp.linalg.norm(_push(flow, half, now.then.X - now.now.X, h))
        moved = jnp.linalg.norm(now.passage.w - w)
        far = ~(apart <= _SETTLED * settings.step_tol * moved)
        if settings.stepping != "adaptive":
            far = jnp.ones((), bool)
        return (now.number == 0) | (far & (critical > 0) & (now.number <= _CORRECTIONS))

    guess, none = _guess(outlook, h), jnp.zeros((), jnp.int32)
    shapes = jax.eval_shape(lambda X: _go(flow, outlook, half, X, h, penalised=True), guess.X)
    passage, margin, kept = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    begin = _Corrected(guess, guess, passage, margin, kept, none, none)
    return jax.lax.while_loop(unsettled, once, begin)


def _go(
    flow: Flow,
    outlook: Outlook,
    half: _Halfway,
    X: Float[Array, "k k"],
    h: Float[Array, ""],
    *,
    penalised: bool,
) -> tuple[Passage, Float[Array, "k k"], Float[Array, "k k"]]:
    """The passage with an oscillation of covariance `X`, the margin after it, and the margin that
    is to be kept: the same, or where it would be if it went on for as long as momentum lasts.

    Momentum answers to a force when the step is long over. A margin that is kept in this sense
    comes to rest at zero, or what is left of an unstable start, as fast as momentum lets it.
    """
    passage = pass_through(
        flow.loss,
        flow.response,
        flow.rate,
        outlook.place,
        _field(flow, half, X, penalised),
        half.slopes,
        h,
        flow.settings.rows,
    )
    margin = _margin_after(flow, outlook, half, passage)
    begun, ended = half.start + half.left[0], margin + half.left[1]
    return passage, margin, ended + half.lifetime / h * (ended - begun)


def remember(outlook: Outlook, course: Course, h: Float[Array, ""]) -> Memory:
    """What the next step needs of this one."""
    passage, R = course.passage, outlook.R.astype(jnp.float64)
    return Memory(
        outlook.geometry,
        course.solution.X,
        R.T @ outlook.memory.X @ R,
        course.margin,
        course.reach,
        passage.error,
        jnp.linalg.norm(passage.w - outlook.point.w),
        course.pushed,
        h,
        outlook.memory.h,
        outlook.turn,
    )


def hindsight(flow: Flow, outlook: Outlook) -> Float[Array, ""]:
    """How far the last step was off, relative to what it moved, as is known where it has led.

    The largest of three errors: of the margin that was expected, of the third derivatives that were
    extrapolated, and of the passage's substeps.
    """
    memory, R, now, point = outlook.memory, outlook.R, outlook.geometry, outlook.point
    expected = jnp.diagonal(R.T @ memory.margin.astype(R.dtype) @ R)
    reach = (R**2).T @ memory.reach
    kept = jnp.sum(R**2, 0) > 0.5
    margin = jnp.max(jnp.where(kept, reach * jnp.abs(2 - now.theta - expected), 0), initial=0)
    # This does not add up, as the next step sees and corrects it: short steps share one.
    margin = margin * jnp.minimum(memory.h, 1)

    known = R.T @ R
    average = (turn(now.third, known) + turn(memory.geometry.third, R)) / 2
    X = svec(R.T @ memory.X.astype(R.dtype) @ R)
    middle = turn(memory.geometry.after(memory.h / 2), R)
    pressure = X @ (middle - average) / 2
    pushed = memory.h * flow.response.mean_gain(point.post, point.w, pressure)
    error = jnp.maximum(jnp.maximum(margin, jnp.linalg.norm(pushed)), memory.error)
    return error / jnp.where(memory.moved > 0, memory.moved, 1)


def _look_ahead(flow: Flow, outlook: Outlook, h: Float[Array, ""]) -> _Halfway:
    point, memory = outlook.point, outlook.memory
    response, rate = flow.response, flow.rate
    middle = extrapolate(memory.geometry, outlook.geometry, outlook.R, memory.h, h / 2)
    post = rate.post(response, point.post, point.grad, point.w, h / 2)
    pairs = eqx.tree_at(lambda p: p.Y, point.pairs, middle.Y)
    halfway = Point(point.w, post, point.grad, point.gain, pairs)
    by_weights, by_state = margin_response(
        response,
        rate,
        halfway,
        middle.theta * middle.Y,
        gain_change(response, halfway),
        middle.third,
        middle.critical,
        h,
    )
    slopes = response.slopes(post, point.w)
    lifetime = _lasting(flow, post, slopes, point.w)
    if response.structure.momentum:
        by_weights = by_weights + lifetime * _at_once(flow, halfway, middle.third)
        by_state = by_state * (1 + lifetime / h)
    left = jnp.diag(jnp.clip(middle.theta - 2, 0, outlook.slack).astype(jnp.float64))
    return _Halfway(
        halfway,
        middle,
        slopes,
        lifetime,
        by_weights,
        by_state,
        jnp.diag(2 - middle.theta.astype(jnp.float64)),
        (left, jnp.exp(-flow.settings.restoration * h) * left),
    )


def _guess(outlook: Outlook, h: Float[Array, ""]) -> ComplementarySolution:
    """The covariance extrapolated from the last two steps, in the basis of this one."""
    memory, R = outlook.memory, outlook.R.astype(jnp.float64)
    ahead = (h + memory.h) / (memory.h + memory.h_before)
    X = memory.X + ahead.astype(R.dtype) * (memory.X - memory.X_before)
    return ComplementarySolution(
        R.T @ split(X)[0] @ R,
        jnp.diag(2 - outlook.geometry.theta.astype(R.dtype)),
        jnp.zeros(()),
        jnp.zeros((), jnp.int64),
        RESULTS.solved,
    )


def _push(flow: Flow, half: _Halfway, X: Float[Array, "k k"], h: Float[Array, ""]) -> Vector:
    """How an oscillation of covariance `X` moves the weights in the end."""
    pressure = svec(X).astype(h.dtype) @ half.geometry.third / 2
    return h * flow.response.mean_gain(half.point.post, half.point.w, pressure)


def _field(flow: Flow, half: _Halfway, X: Float[Array, "k k"], penalised: bool) -> Field:
    third, geometry = half.geometry.third, half.geometry
    penalty = svec(X).astype(third.dtype) @ third / 2
    # The gradient oscillates by H u = theta P u.
    amplitudes = geometry.theta * geometry.Y
    excess = average_excess(flow.response, half.point, amplitudes, X, geometry.critical)
    return Field(penalty if penalised else jnp.zeros_like(penalty), excess)


def _margin_after(
    flow: Flow, outlook: Outlook, half: _Halfway, passage: Passage
) -> Float[Array, "k k"]:
    """The margin after a passage."""
    point, Y = outlook.point, half.geometry.Y
    turned = smat(half.geometry.third @ (passage.w - point.w), len(half.start))
    gain = flow.response.gain(passage.s, passage.w)
    if isinstance(gain, lx.DiagonalLinearOperator):
        change = (lx.diagonal(gain) - lx.diagonal(point.gain))[:, None] * Y
    else:
        change = apply_columns(gain, Y) - apply_columns(point.gain, Y)
    return half.start - turned - 2 * Y.T @ change


def _lasting(flow: Flow, post: State, slopes: State, w: Vector) -> Float[Array, ""]:
    """For how many optimizer steps momentum lasts; zero without."""
    longest = jnp.zeros((), w.dtype)
    if not flow.response.structure.momentum:
        return longest
    momenta = flow.response.momenta(post, w)
    for J, is_one in zip(jax.tree.leaves(slopes), jax.tree.leaves(momenta), strict=True):
        decays = is_one & (J > 0) & (J < 1)
        last = jnp.where(decays, flow.rate.lifetime(jnp.where(decays, J, 0.5)), 0)
        longest = jnp.maximum(longest, jnp.max(last, initial=0))
    return longest


def _at_once(flow: Flow, halfway: Point, third: Float[Array, "p d"]) -> Float[Array, "p p"]:
    """How the rate of the margin answers to X by the share of the gradient that no momentum has."""
    response, post, w = flow.response, halfway.post, halfway.w
    still = response.step_from(post, jnp.zeros_like(w), w)

    def answer(pressure: Vector) -> Float[Array, " p"]:
        return -third @ (response.step_from(post, pressure, w) - still)

    return jax.lax.map(answer, third / 2).T.astype(jnp.float64)


def _reach(flow: Flow, half: _Halfway, h: Float[Array, ""]) -> Float[Array, " k"]:
    """How far weights move while a direction's own oscillation changes its margin by one."""
    rows, columns = pair_indices(half.geometry.theta.size)
    own = rows == columns

    def moved(third: Vector) -> Float[Array, ""]:
        push = flow.response.mean_gain(half.point.post, half.point.w, third / 2)
        return jnp.linalg.norm(h * push)

    beta = jnp.diagonal(half.beta)[own]
    distance = jax.lax.map(moved, half.geometry.third[own])
    return jnp.where(beta > 0, distance / jnp.where(beta > 0, beta, 1), 0).astype(distance.dtype)
