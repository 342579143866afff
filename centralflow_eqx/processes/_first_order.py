"""Flows of an optimizer's time average, by Euler's method in substeps of an optimizer step."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..engine.complementarity import RESULTS
from ..engine.curvature import Eigenpairs, leading
from ..engine.oscillation import Oscillation, Point, count_critical, oscillate
from ..engine.response import State, Vector, relax
from ._base import STOP, Setting, Swing, Verdict, View
from ._spectra import common_series

S = TypeVar("S")


class EulerState(eqx.Module):
    """Weights, the optimizer state in the convention of the state rate, tracked eigenpairs.

    `slack` is how far eigenvalues may still exceed 2 because the flow started unstable.
    """

    w: Vector
    s: State
    pairs: Eigenpairs
    slack: Float[Array, ""]


class Work(NamedTuple):
    """What the substeps of a step cost, and how good their solutions are at worst."""

    gradients: Array
    hvps: Array
    third_derivatives: Array
    sdcp_iterations: Array
    sdcp_residual: Array
    converged: Array

    def series(self, free: Array | bool = False) -> dict[str, Array]:
        """For the record; what is `free` has cost nothing."""
        costs = ("gradients", "hvps", "third_derivatives")
        found = {k: jnp.where(free, 0, v) if k in costs else v for k, v in self._asdict().items()}
        return found | {"converged": self.converged.astype(jnp.int32)}


def no_work() -> Work:
    """Nothing done, and well."""
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros(())
    return Work(none, none, none, jnp.zeros((), jnp.int64), zero, jnp.ones((), bool))


class Moment(NamedTuple):
    """What is known of a flow where a substep begins.

    `pairs` are all that are tracked; the oscillation may be one of the leading ones alone.
    """

    w: Vector
    post: State
    loss: Float[Array, ""]
    grad: Vector
    pairs: Eigenpairs
    oscillation: Oscillation


class _Seen(NamedTuple):
    """The view of a step's first substep, and work and verdict of all so far."""

    view: View
    work: Work
    verdict: Verdict


def take_substeps(
    setting: Setting,
    substep: Callable[[S, Bool[Array, ""]], tuple[S, Moment]],
    state: S,
) -> tuple[S, View, Verdict]:
    """Take the substeps of a step, each told whether it is the first, and the first one's view.

    The view is of the state before the step, that is of the first substep; counters and the quality
    of solutions are over all substeps.
    """

    def see(moment: Moment) -> _Seen:
        return _Seen(
            view_of(setting, moment),
            work_of(moment),
            judge(setting, moment),
        )

    # Traced once, but called twice.
    once = jax.jit(lambda state, first: substep(state, first), inline=True)
    shapes = jax.eval_shape(see, jax.eval_shape(once, state, jnp.asarray(True))[1])
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(i: Array, carry: tuple[S, _Seen]) -> tuple[S, _Seen]:
        state, before = carry
        first = i == 0
        state, moment = once(state, first)
        verdict = judge(setting, moment)
        verdict = Verdict(
            before.verdict.overflow | verdict.overflow,
            # The first reason to stop counts.
            STOP.where(
                first | (before.verdict.stop == STOP.running), verdict.stop, before.verdict.stop
            ),
        )
        view = jax.lax.cond(first, lambda m: view_of(setting, m), lambda _: before.view, moment)
        return state, _Seen(view, together(first, before.work, work_of(moment)), verdict)

    number = jnp.asarray(setting.settings.substeps)
    state, done = jax.lax.fori_loop(0, number, body, (state, nothing))
    series = done.view.series | done.work.series()
    view = eqx.tree_at(lambda v: v.series, done.view, series)
    return state, view, done.verdict


def together(first: Array, before: Work, new: Work) -> Work:
    """Costs add up, the worst quality counts; `first` forgets what was before."""
    before = jax.tree.map(lambda b, n: jnp.where(first, n, b), before, no_work())
    return Work(
        before.gradients + new.gradients,
        before.hvps + new.hvps,
        before.third_derivatives + new.third_derivatives,
        jnp.maximum(before.sdcp_iterations, new.sdcp_iterations),
        jnp.maximum(before.sdcp_residual, new.sdcp_residual),
        before.converged & new.converged,
    )


def begin(setting: Setting, w: Vector, s: State, pairs: Eigenpairs) -> EulerState:
    """The state at weights `w` and the optimizer's own state `s` before its step there."""
    grad = jax.grad(setting.loss)(w)
    start = setting.rate.start(setting.response, relax(s, w), grad, w, setting.settings.dt)
    anything = jnp.asarray(jnp.inf, w.dtype)
    return EulerState(w, start, pairs, anything)


def advance(
    setting: Setting, state: EulerState, penalised: bool, thorough: bool
) -> tuple[EulerState, View, Verdict]:
    """One optimizer step further."""

    def substep(state: EulerState, first: Array) -> tuple[EulerState, Moment]:
        return _substep(setting, state, first, penalised, thorough)

    return take_substeps(setting, substep, state)


def _substep(
    setting: Setting,
    state: EulerState,
    first: Bool[Array, ""],
    penalised: bool,
    thorough: bool,
) -> tuple[EulerState, Moment]:
    w, response, rate, settings = state.w, setting.response, setting.rate, setting.settings
    model = setting.local_model(w)
    post = rate.post(response, state.s, model.grad, w, settings.dt)
    gain = response.gain(post, w)
    pairs = setting.tracker.solve(
        model, gain, state.pairs, explore=first, exact_above=settings.critical_above
    )
    critical = leading(pairs, critical_room(pairs))
    point = Point(w, post, model.grad, gain, critical)
    slack = jnp.where(known(state.pairs, critical), state.slack, jnp.inf)
    oscillation = oscillate(
        setting.loss,
        response,
        rate,
        point,
        settings,
        slack,
        fallback=thorough,
        noise=setting.noise,
    )
    penalty = oscillation.penalty if penalised else jnp.zeros_like(w)
    gradients = (model.grad, model.grad + penalty)
    w_new, s_new = rate.substep(response, state.s, w, gradients, oscillation.excess, settings.dt)
    moment = Moment(w, post, model.loss, model.grad, pairs, oscillation)
    return EulerState(w_new, s_new, pairs, oscillation.slack), moment


def known(before: Eigenpairs, now: Eigenpairs) -> Bool[Array, " m"]:
    """Which directions lie, for the better part, in the span of those tracked before.

    A direction that is found late may be unstable without having been let.
    """
    overlap = jnp.where(before.mask[:, None], before.Y.T @ now.U, 0)
    return jnp.sum(overlap**2, axis=0) > 0.5


def critical_room(pairs: Eigenpairs) -> int:
    """For how many critical directions there is room: half of those tracked.

    What the oscillation costs grows with the pairs of directions that there is room for.
    """
    d, m = pairs.Y.shape
    return m if m == d else max(1, m // 2)


def work_of(moment: Moment, gradients: Array | int = 1, thirds: Array | None = None) -> Work:
    """What a step from `moment` took, with so many gradients and third derivatives.

    Unless it is said, the latter are those of all critical pairs.
    """
    solution, critical = moment.oscillation.solution, moment.oscillation.critical
    return Work(
        jnp.asarray(gradients, jnp.int32),
        moment.pairs.products,
        critical * (critical + 1) // 2 if thirds is None else thirds.astype(jnp.int32),
        solution.iterations,
        solution.residual,
        moment.pairs.converged,
    )


def judge(setting: Setting, moment: Moment) -> Verdict:
    """How a step from `moment` went."""
    pairs, result = moment.pairs, moment.oscillation.solution.result
    stop = STOP.where(
        result == RESULTS.solved,
        STOP.running,
        STOP.where(result == RESULTS.no_solution, STOP.no_solution, STOP.unsolved),
    )
    finite = jnp.isfinite(moment.loss) & jnp.all(jnp.isfinite(moment.w))
    stop = STOP.where(finite, stop, STOP.not_finite)
    room = len(moment.oscillation.pull)
    crowded = count_critical(pairs, setting.settings.critical_above) > room
    return Verdict(setting.tracker.overflows(pairs) | crowded, stop)


def view_of(setting: Setting, moment: Moment) -> View:
    """What is seen at `moment`, costs aside."""
    w, post, loss, grad, pairs, _ = moment
    oscillation = _among(pairs, moment.oscillation)
    gain = setting.response.gain(post, w)
    series = common_series(setting, loss, grad, gain, pairs)
    del series["hvps"]  # they are counted over all substeps
    series |= _predictions(loss, grad, pairs, oscillation) | {
        "critical_directions": oscillation.critical,
        "trust_cubic": _cubic(pairs, oscillation),
        "stabilised_by_state": oscillation.by_state,
    }
    series |= oscillation.noise
    X = oscillation.solution.X
    swing = Swing(pairs.Y, pairs.theta, X, grad, oscillation.critical)
    return View(w, post, series, None, swing)


def _among(pairs: Eigenpairs, oscillation: Oscillation) -> Oscillation:
    """The oscillation of the leading directions as one of all that are tracked."""
    more = pairs.theta.size - len(oscillation.pull)
    return eqx.tree_at(
        lambda o: (o.solution.X, o.pull),
        oscillation,
        (jnp.pad(oscillation.solution.X, (0, more)), jnp.pad(oscillation.pull, (0, more))),
    )


def _predictions(
    loss: Float[Array, ""], grad: Vector, pairs: Eigenpairs, oscillation: Oscillation
) -> dict[str, Array]:
    """Time averages of the oscillating optimizer, to second order in the oscillation.

    E[L] = L + <H, Sigma>/2 and E|g|^2 = |g|^2 + tr(H Sigma H), with H U = P U diag(theta).
    """
    X, theta = oscillation.solution.X, pairs.theta
    HU = pairs.Y * theta
    return {
        "predicted_loss": loss + jnp.sum(jnp.diagonal(X) * theta) / 2,
        "predicted_grad_norm_sq": jnp.vdot(grad, grad) + jnp.vdot(HU.T @ HU, X.astype(HU.dtype)),
        "sigma_eigenvalues": jnp.maximum(jnp.linalg.eigvalsh(X)[::-1], 0),
    }


def _cubic(pairs: Eigenpairs, oscillation: Oscillation) -> Float[Array, " m"]:
    """`trust_cubic` of `trust.diagnose`, for which third derivatives are at hand here."""
    variance = jnp.maximum(jnp.diagonal(oscillation.solution.X), 0).astype(pairs.theta.dtype)
    size = jnp.where(pairs.theta != 0, jnp.abs(pairs.theta), 1)
    cubic = jnp.sqrt(variance * jnp.maximum(oscillation.pull, 0)) / size
    return jnp.where(pairs.mask, cubic, jnp.nan)
