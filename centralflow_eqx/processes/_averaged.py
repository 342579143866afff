"""Flows of an optimizer's time average, in substeps over which the oscillation is constant."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..engine.complementarity import RESULTS
from ..engine.curvature import Eigenpairs, leading
from ..engine.oscillation import Oscillation, Point, count_critical, oscillate
from ..engine.response import State, Vector, relax
from ._base import STOP, AbstractProcess, Setting, Swing, Verdict, View, flow_refusal
from ._spectra import common_series

S = TypeVar("S")


class AveragedState(eqx.Module):
    """Weights, the optimizer state in the convention of the state rate, tracked eigenpairs.

    `slack` is how far eigenvalues may still exceed 2 because the flow started unstable.
    """

    w: Vector
    s: State
    pairs: Eigenpairs
    slack: Float[Array, ""]


class Work(NamedTuple):
    """What the substeps of a step cost, and how good their solutions are at worst."""

    hvps: Array
    third_derivatives: Array
    sdcp_iterations: Array
    sdcp_residual: Array
    converged: Array


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


class AbstractAveragedFlow(AbstractProcess):
    """An explicit Euler flow of weights and state, with the oscillation that keeps it stable.

    Over a substep the oscillation's covariance Sigma is constant. It adds its own share to the
    averages in the optimizer's state and, where `penalised`, grad <H, Sigma> / 2 to the mean
    gradient. `thorough` compiles the path-following solver for problems that Newton's method fails
    on; without it such a problem ends the process.
    """

    setting: eqx.AbstractVar[Setting]
    thorough: eqx.AbstractVar[bool]
    penalised: eqx.AbstractClassVar[bool]

    def refusal(self) -> str:
        return flow_refusal(self.setting)

    def init(self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray) -> AveragedState:
        setting = self.setting
        grad = jax.grad(setting.loss)(w)
        dt = setting.settings.dt
        start = setting.rate.start(setting.response, relax(s, w), grad, w, dt)
        anything = jnp.asarray(jnp.inf, w.dtype)
        return AveragedState(w, start, pairs, anything)

    def move(self, state: AveragedState) -> tuple[AveragedState, View, Verdict]:
        def substep(state: AveragedState, first: Array) -> tuple[AveragedState, Moment]:
            return _substep(self.setting, state, first, self.penalised, self.thorough)

        return take_substeps(self.setting, substep, state)

    def tracked(self, state: AveragedState) -> Eigenpairs:
        return state.pairs


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
        return _Seen(_view(setting, moment), _work(moment), _judge(setting, moment))

    # Traced once, but called twice.
    once = jax.jit(lambda state, first: substep(state, first), inline=True)
    shapes = jax.eval_shape(see, jax.eval_shape(once, state, jnp.asarray(True))[1])
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(i: Array, carry: tuple[S, _Seen]) -> tuple[S, _Seen]:
        state, before = carry
        first = i == 0
        state, moment = once(state, first)
        verdict = _judge(setting, moment)
        verdict = Verdict(
            before.verdict.overflow | verdict.overflow,
            # The first reason to stop counts.
            STOP.where(
                first | (before.verdict.stop == STOP.running), verdict.stop, before.verdict.stop
            ),
        )
        view = jax.lax.cond(first, lambda m: _view(setting, m), lambda _: before.view, moment)
        return state, _Seen(view, _together(first, before.work, _work(moment)), verdict)

    number = jnp.asarray(setting.settings.substeps)
    state, done = jax.lax.fori_loop(0, number, body, (state, nothing))
    work = done.work._asdict()
    work |= {"gradients": number, "converged": work["converged"].astype(jnp.int32)}
    view = eqx.tree_at(lambda v: v.series, done.view, done.view.series | work)
    return state, view, done.verdict


def _together(first: Array, before: Work, new: Work) -> Work:
    """Costs add up, the worst quality counts."""
    return Work(
        before.hvps + new.hvps,
        before.third_derivatives + new.third_derivatives,
        jnp.maximum(before.sdcp_iterations, new.sdcp_iterations),
        jnp.maximum(before.sdcp_residual, new.sdcp_residual),
        (first | before.converged) & new.converged,
    )


def _substep(
    setting: Setting,
    state: AveragedState,
    first: Bool[Array, ""],
    penalised: bool,
    thorough: bool,
) -> tuple[AveragedState, Moment]:
    w, response, rate, settings = state.w, setting.response, setting.rate, setting.settings
    model = setting.local_model(w)
    post = rate.post(response, state.s, model.grad, w, settings.dt)
    gain = response.gain(post, w)
    pairs = setting.tracker.solve(
        model, gain, state.pairs, explore=first, exact_above=settings.critical_above
    )
    critical = leading(pairs, critical_room(pairs))
    point = Point(w, post, model.grad, gain, critical)
    slack = jnp.where(_known(state.pairs, critical), state.slack, jnp.inf)
    oscillation = oscillate(setting.loss, response, rate, point, settings, slack, fallback=thorough)
    penalty = oscillation.penalty if penalised else jnp.zeros_like(w)
    gradients = (model.grad, model.grad + penalty)
    w_new, s_new = rate.substep(response, state.s, w, gradients, oscillation.excess, settings.dt)
    moment = Moment(w, post, model.loss, model.grad, pairs, oscillation)
    return AveragedState(w_new, s_new, pairs, oscillation.slack), moment


def _known(before: Eigenpairs, now: Eigenpairs) -> Bool[Array, " m"]:
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


def _work(moment: Moment) -> Work:
    solution, critical = moment.oscillation.solution, moment.oscillation.critical
    return Work(
        moment.pairs.products,
        critical * (critical + 1) // 2,
        solution.iterations,
        solution.residual,
        moment.pairs.converged,
    )


def _judge(setting: Setting, moment: Moment) -> Verdict:
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


def _view(setting: Setting, moment: Moment) -> View:
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
