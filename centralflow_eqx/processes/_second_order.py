"""Flows of an optimizer's time average, in steps of second order and of adaptive length."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from ..engine.averages import Place
from ..engine.complementarity import RESULTS
from ..engine.curvature import Eigenpairs, leading, widen
from ..engine.geometry import Geometry, match, plan_renewal, renew
from ..engine.midstep import (
    Course,
    Flow,
    Memory,
    Outlook,
    hindsight,
    no_memory,
    remember,
    steer,
    widen_memory,
)
from ..engine.oscillation import (
    Oscillation,
    Point,
    nothing,
    pull,
    weighted_thirds,
)
from ..engine.response import State, Vector, relax
from ..engine.step_control import (
    FAR_OFF,
    FIRST,
    aligned,
    arrival,
    next_length,
    onset_length,
    power_of_two,
    rejected,
)
from ._base import STOP, Setting, Verdict, View
from ._first_order import (
    Moment,
    Work,
    critical_room,
    judge,
    known,
    no_work,
    together,
    view_of,
    work_of,
)
from .discrete import finite

_STILL_CRITICAL = 0.05
"""How far a direction that was critical may fall below what makes one so: a set that changes at
every step cannot be extrapolated."""

_FINEST = 1e-2
"""The least share of their tolerance that eigenpairs may have to reach."""


class Stretch(eqx.Module):
    """The optimizer steps that a step of the flow leads over, and what is seen of them.

    `stations` are the places after 0, 1, ... of them, `length` how many there are, `pairs` and
    `oscillation` what was found at the first, `ends` the eigenvalues that are expected at the end.
    """

    stations: Place
    length: Int[Array, ""]
    pairs: Eigenpairs
    oscillation: Oscillation
    ends: Float[Array, " m"]


class Taken(eqx.Module):
    """What the steps since the last row took and found; `error` is that of the step before."""

    work: Work
    length: Float[Array, ""]
    error: Float[Array, ""]
    rejected: Int[Array, ""]


class SecondOrderState(eqx.Module):
    """Where the last step of a flow ended, what it leaves for the next, and the rows it passed.

    `s` is a post-update state; `pairs` are those of where the last step began; `phase` is the part
    of an optimizer step that is done, `row` how many rows of `stretch` have been shown, `taken`
    what they took.
    """

    w: Vector
    s: State
    pairs: Eigenpairs
    memory: Memory
    slack: Float[Array, ""]
    phase: Float[Array, ""]
    stretch: Stretch
    row: Int[Array, ""]
    taken: Taken


def begin(setting: Setting, w: Vector, s: State, pairs: Eigenpairs) -> SecondOrderState:
    """The state at weights `w` and the optimizer's own state `s` before its step there."""
    grad = jax.grad(setting.loss)(w)
    post = setting.rate.start(setting.response, relax(s, w), grad, w, 0.0)
    zero = jnp.zeros((), w.dtype)
    return SecondOrderState(
        w,
        post,
        pairs,
        no_memory(w.size, critical_room(pairs), w.dtype),
        jnp.asarray(jnp.inf, w.dtype),
        zero,
        _no_stretch(w, post, pairs, setting.settings.rows),
        jnp.zeros((), jnp.int32),
        Taken(no_work(), zero, zero, jnp.zeros((), jnp.int32)),
    )


def _no_stretch(w: Vector, post: State, pairs: Eigenpairs, rows: int) -> Stretch:
    """A stretch of no length."""
    place = Place(w, post, jnp.zeros((), w.dtype), w)
    stations = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), place)
    room = critical_room(pairs)
    still = nothing(w, post, pairs.theta[:room], jnp.zeros(room, w.dtype))
    return Stretch(stations, jnp.zeros((), jnp.int32), pairs, still, pairs.theta)


def widened(state: SecondOrderState, capacity: int) -> SecondOrderState:
    """The same state with room to track `capacity` eigenpairs, between two stretches."""
    pairs = widen(state.pairs, capacity)
    rows = len(state.stretch.stations.loss)
    return eqx.tree_at(
        lambda s: (s.pairs, s.memory, s.stretch, s.row),
        state,
        (
            pairs,
            widen_memory(state.memory, critical_room(pairs)),
            _no_stretch(state.w, state.s, pairs, rows),
            jnp.zeros((), jnp.int32),
        ),
    )


def advance(
    setting: Setting, state: SecondOrderState, penalised: bool, thorough: bool
) -> tuple[SecondOrderState, View, Verdict]:
    """One optimizer step further: the next row of the stretch, or of a new one."""
    settings = setting.settings
    flow = Flow(setting.loss, setting.response, setting.rate, settings, penalised, thorough)
    well = Verdict(jnp.zeros((), bool), STOP.running)
    state, verdict = jax.lax.cond(
        state.row >= state.stretch.length,
        lambda state: _go_on(setting, flow, state),
        lambda state: (state, well),
        state,
    )
    view, stop = _show(setting, state)
    stop = STOP.where(verdict.stop == STOP.running, stop, verdict.stop)
    state = eqx.tree_at(lambda s: s.row, state, state.row + 1)
    return state, view, Verdict(verdict.overflow, stop)


def _go_on(
    setting: Setting, flow: Flow, state: SecondOrderState
) -> tuple[SecondOrderState, Verdict]:
    """Steps of the flow until an optimizer step, or several, are done."""

    def unfinished(now: tuple[SecondOrderState, Verdict, Array]) -> Array:
        state, verdict, first = now
        well = (verdict.stop == STOP.running) & ~verdict.overflow
        return first | ((state.phase > 0) & well)

    def step(now: tuple[SecondOrderState, Verdict, Array]) -> tuple:
        return *_step(setting, flow, now[0]), jnp.zeros((), bool)

    well = Verdict(jnp.zeros((), bool), STOP.running)
    begin = (state, well, jnp.ones((), bool))
    state, verdict, _ = jax.lax.while_loop(unfinished, step, begin)
    return state, verdict


def _step(
    setting: Setting, flow: Flow, state: SecondOrderState
) -> tuple[SecondOrderState, Verdict]:
    """One step of the flow, of at most as many optimizer steps as there is room for."""
    place, gain, pairs = _look(setting, state)
    rates = _rates(state, pairs)
    h, critical, R = _foresee(setting, state, pairs, rates)
    outlook, thirds = _outlook(setting, state, place, gain, pairs, critical, R)
    error = hindsight(flow, outlook)
    if setting.settings.stepping == "adaptive":
        settings = setting.settings
        fit = next_length(state.memory.h, error, settings.step_tol, settings.longest)
        h = jnp.where(state.memory.exists, aligned(jnp.minimum(h, fit), state.phase), h)
    h, course, retries = _try(flow, outlook, h)
    oscillation = Oscillation(
        course.solution,
        jnp.zeros_like(state.w),
        jax.tree.map(jnp.zeros_like, state.s),
        pull(outlook.point, outlook.geometry.third),
        critical,
        course.slack,
        course.by_state,
    )
    moment = Moment(state.w, state.s, place.loss, place.grad, pairs, oscillation)
    taken = Taken(work_of(moment, course.gradients + 1, thirds), h, error, retries)
    ends = pairs.theta + h * rates
    expected = 2 - jnp.diagonal(course.margin).astype(ends.dtype)
    counts = jnp.arange(expected.size) < critical
    ends = ends.at[: expected.size].set(jnp.where(counts, expected, ends[: expected.size]))
    length = jnp.maximum(1, h).astype(jnp.int32)
    stretch = Stretch(course.passage.stations, length, pairs, oscillation, ends)
    first = state.phase == 0
    new = SecondOrderState(
        course.passage.w,
        course.passage.s,
        pairs,
        remember(outlook, course, h),
        course.slack,
        (state.phase + h) % 1,
        jax.tree.map(lambda a, b: jnp.where(first, a, b), stretch, state.stretch),
        jnp.zeros((), jnp.int32),
        _together(first, state.taken, taken),
    )
    return new, judge(setting, moment)


def _look(
    setting: Setting, state: SecondOrderState
) -> tuple[Place, lx.AbstractLinearOperator, Eigenpairs]:
    """Loss, gradient, gain and eigenpairs where a step begins."""
    model, memory = setting.local_model(state.w), state.memory
    gain = setting.response.gain(state.s, state.w)
    # Where loss and oscillation push against each other, directions matter more than what is left.
    rest = memory.moved / jnp.maximum(memory.pushed, jnp.finfo(state.w.dtype).tiny)
    share = jnp.where(memory.moved > 0, jnp.clip(rest, _FINEST, 1), 1)
    tracker = eqx.tree_at(lambda t: t.tol, setting.tracker, setting.settings.tol * share)
    pairs = tracker.solve(
        model,
        gain,
        state.pairs,
        explore=state.phase == 0,
        exact_above=setting.settings.critical_above,
        ahead=memory.h / memory.h_before,
    )
    return Place(state.w, state.s, model.loss, model.grad), gain, pairs


def _rates(state: SecondOrderState, pairs: Eigenpairs) -> Float[Array, " m"]:
    """How fast eigenvalues change per optimizer step; zero where they were not tracked before."""
    both = state.pairs.mask & pairs.mask & state.memory.exists
    return jnp.where(both, (pairs.theta - state.pairs.theta) / state.memory.h, 0)


def _foresee(
    setting: Setting, state: SecondOrderState, pairs: Eigenpairs, rates: Float[Array, " m"]
) -> tuple[Float[Array, ""], Int[Array, ""], Float[Array, "k k"]]:
    """How long a step may be for what begins to oscillate in it, and how many directions may.

    Also how the directions that were critical before are turned.
    """
    settings, theta, memory = setting.settings, pairs.theta, state.memory
    number, first = jnp.arange(theta.size), leading(pairs, critical_room(pairs))
    above = settings.critical_above
    was = (number < memory.geometry.critical) & (theta > above - _STILL_CRITICAL)
    sure = _leading(pairs, was | (theta > above))
    R = match(memory.geometry, first.U, (number[: len(memory.X)] < sure).astype(theta.dtype))
    h = settings.longest
    if settings.stepping == "adaptive":
        variances, before = (
            jnp.diagonal(R.T @ X.astype(R.dtype) @ R) for X in (memory.X, memory.X_before)
        )
        still = jnp.ones(theta.size, bool).at[: len(variances)].set(variances <= 0)
        comes = arrival(theta, rates, pairs.mask & still & (theta < 2), above)
        # what has just begun has no past to go by
        comes = jnp.where(jnp.any((variances > 0) & (before <= 0)), 0, comes)
        h = jnp.minimum(h, jnp.where(memory.exists, 2 * memory.h, FIRST))
        least = jnp.minimum(h, onset_length(settings.step_tol, setting.response.structure.momentum))
        h = aligned(power_of_two(jnp.clip(comes, least, h)), state.phase)
    return h, _leading(pairs, (number < sure) | (theta + h * rates > 2)), R


def _leading(pairs: Eigenpairs, wanted: Bool[Array, " m"]) -> Int[Array, ""]:
    """How many leading directions it takes to have all that are wanted."""
    return jnp.max(jnp.where(pairs.mask & wanted, jnp.arange(wanted.size) + 1, 0)).astype(jnp.int32)


def _outlook(
    setting: Setting,
    state: SecondOrderState,
    place: Place,
    gain: lx.AbstractLinearOperator,
    pairs: Eigenpairs,
    critical: Int[Array, ""],
    R: Float[Array, "k k"],
) -> tuple[Outlook, Int[Array, ""]]:
    """What a step begins with, and how many third derivatives that took."""
    memory, first = state.memory, leading(pairs, critical_room(pairs))
    critical = jnp.minimum(critical, first.theta.size)  # more of them are an overflow
    point = Point(state.w, state.s, place.grad, gain, first)
    # what drifts is no place to go by what was
    drifts = state.taken.error > FAR_OFF * setting.settings.step_tol
    X, before = R.T @ memory.X.astype(R.dtype) @ R, memory.geometry
    plan = plan_renewal(before, R, X, critical, memory.h, memory.turn, drifts)
    along = eqx.tree_at(lambda p: p.pairs.U, point, first.U @ plan.axes)
    third = weighted_thirds(setting.loss, along, critical, plan.due)
    geometry = Geometry(first.Y, first.theta, *renew(before, R, plan, third), critical)
    slack = jnp.where(known(state.pairs, first), state.slack, jnp.inf)
    return Outlook(point, place, geometry, R, memory, slack, plan.turn), jnp.sum(plan.due)


def _try(
    flow: Flow, outlook: Outlook, h: Float[Array, ""]
) -> tuple[Float[Array, ""], Course, Int[Array, ""]]:
    """A step of length `h`, or of half of it and so on where that is seen to be too long."""
    once = jax.jit(lambda h: steer(flow, outlook, h), inline=True)
    none = jnp.zeros((), jnp.int32)

    def too_long(now: tuple) -> Array:
        h, course, tries = now
        moved = jnp.linalg.norm(course.passage.w - outlook.point.w)
        error = jnp.maximum(course.missed, course.passage.error)
        # what has no solution over a long step may have one over a short one
        error = jnp.where(course.solution.result == RESULTS.solved, error, jnp.inf)
        tol = flow.settings.step_tol * moved
        return (tries == 0) | rejected(error, tol, h)

    def again(now: tuple) -> tuple:
        h, before, tries = now
        h = jnp.where(tries == 0, h, h / 2)
        course = once(h)
        gradients = before.gradients + course.gradients
        return h, course._replace(gradients=gradients), tries + 1

    shapes = jax.eval_shape(once, h)
    nothing_yet = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    if flow.settings.stepping != "adaptive":
        return h, once(h), none
    h, course, tries = jax.lax.while_loop(too_long, again, (h, nothing_yet, none))
    return h, course, tries - 1


def _together(first: Array, before: Taken, new: Taken) -> Taken:
    """The steps since a row as one."""
    return Taken(
        together(first, before.work, new.work),
        jnp.where(first, new.length, jnp.minimum(before.length, new.length)),
        jnp.where(first, new.error, jnp.maximum(before.error, new.error)),
        jnp.where(first, 0, before.rejected) + new.rejected,
    )


def _show(setting: Setting, state: SecondOrderState) -> tuple[View, STOP]:
    """The next row of the stretch, and why the process ends there."""
    stretch, taken, row = state.stretch, state.taken, state.row
    place = jax.tree.map(lambda x: x[row], stretch.stations)
    part = row / stretch.length
    theta = stretch.pairs.theta
    theta = theta + part.astype(theta.dtype) * (stretch.ends - theta)
    pairs = eqx.tree_at(lambda p: p.theta, stretch.pairs, theta)
    moment = Moment(place.w, place.s, place.loss, place.grad, pairs, stretch.oscillation)
    view = view_of(setting, moment)
    between = row > 0
    series = taken.work.series(free=between) | {
        "step_length": taken.length,
        "step_error": taken.error,
        "rejected_steps": jnp.where(between, 0, taken.rejected),
        "interpolated": between.astype(jnp.int32),
    }
    return eqx.tree_at(lambda v: v.series, view, view.series | series), finite(place.loss, place.w)
