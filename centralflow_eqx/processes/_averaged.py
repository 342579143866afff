"""Flows of an optimizer's time average, in substeps over which the oscillation is constant."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..engine.complementarity import RESULTS
from ..engine.curvature import LocalModel, fourth_derivatives
from ..engine.oscillation import Oscillation, Point, modes, oscillate
from ..engine.response import State, Vector, apply_columns, relax
from ._base import STOP, AbstractProcess, Observation, Setting, Spectra, flow_refusal
from ._spectra import common_series, track_raw, widen_spectra

S = TypeVar("S")

TOTALS = ("hvps", "third_derivatives", "gradients")
WORST = ("sdcp_residual", "sdcp_iterations")


class AveragedState(eqx.Module):
    """Weights, the optimizer state in the convention of the state rate, tracked spectra.

    `slack` is how far eigenvalues may still exceed 2 because the flow started unstable.
    """

    w: Vector
    s: State
    spectra: Spectra
    slack: Float[Array, ""]


class AbstractAveragedFlow(AbstractProcess):
    """An explicit Euler flow of weights and state, with the oscillation that keeps it stable.

    Over a substep the oscillation's covariance Sigma is constant. It adds its own share to the
    averages in the optimizer's state and, where `penalised`, grad <H, Sigma> / 2 to the mean
    gradient.
    """

    setting: eqx.AbstractVar[Setting]
    penalised: eqx.AbstractClassVar[bool]

    def refusal(self) -> str:
        return flow_refusal(self.setting)

    def init(self, w: Vector, s: State, spectra: Spectra, key: PRNGKeyArray) -> AveragedState:
        setting, dt = self.setting, 1 / self.setting.substeps
        grad = jax.grad(setting.loss)(w)
        start = setting.rate.start(setting.response, relax(s, w), grad, w, dt)
        anything = jnp.asarray(jnp.inf, w.dtype)
        return AveragedState(w, start, spectra, anything)

    def step(
        self, state: AveragedState, observed: Bool[Array, ""]
    ) -> tuple[AveragedState, Observation]:
        def substep(state: AveragedState, first: Array) -> tuple[AveragedState, Observation]:
            return _substep(self.setting, state, first, observed & first, self.penalised)

        return scan_substeps(substep, state, self.setting.substeps)

    def widen(self, state: AveragedState, capacity: int) -> AveragedState:
        return eqx.tree_at(lambda s: s.spectra, state, widen_spectra(state.spectra, capacity))


def scan_substeps(
    substep: Callable[[S, Bool[Array, ""]], tuple[S, Observation]], state: S, number: int
) -> tuple[S, Observation]:
    """Take `number` substeps, each told whether it is the first, and observe the step.

    The record is of the state before the step, that is of the first substep; counters and the
    quality of solutions are over all substeps.
    """
    shapes = jax.eval_shape(substep, state, jnp.asarray(True))[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(carry: tuple[S, Observation], first: Array) -> tuple:
        state, seen = substep(carry[0], first)
        # Only small arrays are kept of the others: an observation holds several vectors.
        small = {k: seen.series[k] for k in TOTALS + WORST}, seen.overflow, seen.stop
        held = jax.tree.map(lambda new, old: jnp.where(first, new, old), seen, carry[1])
        return (state, held), small

    first = jnp.arange(number) == 0
    (state, held), (series, overflow, stops) = jax.lax.scan(body, (state, nothing), first)
    over_all = {k: jnp.sum(series[k]) for k in TOTALS} | {k: jnp.max(series[k]) for k in WORST}
    stopped = stops != STOP.running
    stop = jax.tree.map(lambda code: code[jnp.argmax(stopped)], stops)
    return state, eqx.tree_at(
        lambda o: (o.series, o.overflow, o.stop),
        held,
        (held.series | over_all, jnp.any(overflow), stop),
    )


def _substep(
    setting: Setting,
    state: AveragedState,
    first: Bool[Array, ""],
    observed: Bool[Array, ""],
    penalised: bool,
) -> tuple[AveragedState, Observation]:
    w, response, rate, dt = state.w, setting.response, setting.rate, 1 / setting.substeps
    model = setting.local_model(w)
    post = rate.post(response, state.s, model.grad, w, dt)
    gain = response.gain(post, w)
    pairs = setting.tracker.solve(
        model, gain, state.spectra.effective, explore=first, exact_above=setting.critical_above
    )
    spectra = track_raw(setting, model, Spectra(pairs, state.spectra.raw), observed)
    point = Point(w, post, model.grad, gain, pairs)
    oscillation = oscillate(
        setting.loss,
        response,
        rate,
        point,
        setting.critical_above,
        state.slack,
        setting.restoration,
        dt,
    )
    penalty = oscillation.penalty if penalised else jnp.zeros_like(w)
    gradients = (model.grad, model.grad + penalty)
    w_new, s_new = rate.substep(response, state.s, w, gradients, oscillation.excess, dt)
    observation = observe_averaged(setting, model, point, oscillation, spectra, observed)
    return AveragedState(w_new, s_new, spectra, oscillation.slack), observation


def observe_averaged(
    setting: Setting,
    model: LocalModel,
    point: Point,
    oscillation: Oscillation,
    spectra: Spectra,
    observed: Bool[Array, ""],
) -> Observation:
    """What is known of a flow that oscillates at `point`."""
    series = common_series(setting, model, point.post, point.gain, spectra)
    series |= _predictions(model, point, oscillation)
    series |= _diagnostics(setting, point, oscillation, observed)
    return Observation(
        point.w,
        point.post,
        series,
        setting.tracker.overflows(point.pairs),
        _stop(oscillation),
        modes(point.pairs, oscillation.solution.X),
    )


def _stop(oscillation: Oscillation) -> STOP:
    result = oscillation.solution.result
    return STOP.where(
        result == RESULTS.solved,
        STOP.running,
        STOP.where(result == RESULTS.no_solution, STOP.no_solution, STOP.unsolved),
    )


def _predictions(model: LocalModel, point: Point, oscillation: Oscillation) -> dict[str, Array]:
    """Time averages of the oscillating optimizer, to second order in the oscillation.

    E[L] = L + <H, Sigma>/2 and E|g|^2 = |g|^2 + tr(H Sigma H), with H U = P U diag(theta).
    """
    X, theta = oscillation.solution.X, point.pairs.theta
    HU = point.pairs.Y * theta
    return {
        "predicted_loss": model.loss + jnp.sum(jnp.diagonal(X) * theta) / 2,
        "predicted_grad_norm_sq": jnp.vdot(model.grad, model.grad)
        + jnp.vdot(HU.T @ HU, X.astype(HU.dtype)),
        "sigma_eigenvalues": jnp.maximum(jnp.linalg.eigvalsh(X)[::-1], 0),
    }


def _diagnostics(
    setting: Setting, point: Point, oscillation: Oscillation, observed: Bool[Array, ""]
) -> dict[str, Array]:
    """How far the flow can be trusted: the theory is of second order in a small oscillation.

    Per direction, `trust_cubic` is the fraction by which a move as large as the oscillation can
    change the eigenvalue, sqrt(X_ii) (D3^T K D3)^(1/2) / theta_i with D3 = D3[u_i, u_i];
    `trust_quartic` the neglected quartic share of the averaged loss,
    X_ii |D4[u_i, u_i, u_i, u_i]| / (12 theta_i); `trust_response` the share of the optimizer's
    step that is not linear in a gradient as large as it gets (clipping that has become active).
    Above 0.3 in any, or with unconverged eigenpairs, the row is flagged `untrusted`.

    `stabilised_by_state` is the share of the stabilisation that the optimizer's state does.
    """
    pairs, solution, critical = point.pairs, oscillation.solution, oscillation.critical
    variance = jnp.maximum(jnp.diagonal(solution.X), 0).astype(point.w.dtype)
    size = jnp.where(pairs.theta != 0, jnp.abs(pairs.theta), 1)
    pull = jax.vmap(jnp.vdot)(oscillation.third, apply_columns(point.gain, oscillation.third.T).T)
    cubic = jnp.sqrt(variance * jnp.maximum(pull, 0)) / size
    watched = jnp.where(observed, critical, 0)
    quartic = (
        variance
        * jnp.abs(fourth_derivatives(setting.loss, point.w, pairs.U, watched))
        / (12 * size)
    )
    peak = point.grad + pairs.Y @ (pairs.theta * jnp.sqrt(variance))
    nonlinearity = setting.response.nonlinearity(point.post, point.w, peak)
    small = jnp.all(cubic <= 0.3) & jnp.all(quartic <= 0.3) & (nonlinearity <= 0.3)
    doubtful = ~(small & pairs.converged)
    return {
        "critical_directions": critical,
        "sdcp_residual": solution.residual,
        "sdcp_iterations": solution.iterations,
        "third_derivatives": critical * (critical + 1) // 2,
        "gradients": jnp.ones((), jnp.int32),
        "stabilised_by_state": oscillation.by_state,
        "trust_cubic": jnp.where(pairs.mask, cubic, jnp.nan),
        "trust_quartic": jnp.where(pairs.mask, quartic, jnp.nan),
        "trust_response": nonlinearity,
        "untrusted": (doubtful | (solution.result != RESULTS.solved)).astype(jnp.int32),
    }
