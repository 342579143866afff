"""The central flow: the time average of an optimizer that oscillates."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..complementarity import RESULTS
from ..curvature import LocalModel, fourth_derivatives
from ..oscillation import Oscillation, Point, oscillate
from ..response import State, Vector, apply_columns, relax
from ._base import STOP, AbstractProcess, Observation, Setting
from ._registry import PROCESSES
from ._spectra import Spectra, common_series, start_spectra, track_raw, widen_spectra


class CentralState(eqx.Module):
    """Weights, the optimizer state in the convention of the state rate, tracked spectra.

    `slack` is how far eigenvalues may still exceed 2 because the flow started unstable.
    """

    w: Vector
    s: State
    spectra: Spectra
    slack: Float[Array, ""]


@PROCESSES.register("central")
class Central(AbstractProcess):
    """The optimizer's central flow, explicit Euler in substeps of an optimizer step.

    Over a substep the oscillation's covariance Sigma is constant. It adds grad <H, Sigma> / 2 to
    the mean gradient and its own share to the averages in the optimizer's state
    (arXiv 2410.24206).
    """

    setting: Setting
    follows_flow: ClassVar[bool] = True

    def init(self, w: Vector, s: State, capacity: int, key: PRNGKeyArray) -> CentralState:
        setting = self.setting
        grad = jax.grad(setting.loss)(w)
        start = setting.rate.start(setting.response, relax(s, w), grad, w, 1 / setting.substeps)
        anything = jnp.asarray(jnp.inf, w.dtype)
        return CentralState(w, start, start_spectra(setting, w, capacity, key), anything)

    def step(
        self, state: CentralState, observed: Bool[Array, ""]
    ) -> tuple[CentralState, Observation]:
        first = jnp.arange(self.setting.substeps) == 0
        state, substeps = jax.lax.scan(
            lambda state, first: self._substep(state, first, observed & first), state, first
        )
        # The record is of the state before the step: of the first substep, counters aside.
        observation = jax.tree.map(lambda x: x[0], substeps)
        total = {k: jnp.sum(substeps.series[k]) for k in ("hvps", "third_derivatives", "gradients")}
        worst = {k: jnp.max(substeps.series[k]) for k in ("sdcp_residual", "sdcp_iterations")}
        return state, Observation(
            observation.weights,
            observation.series | total | worst,
            jnp.any(substeps.overflow),
            _first_stop(substeps.stop),
            observation.oscillation,
        )

    def widen(self, state: CentralState, capacity: int) -> CentralState:
        spectra = widen_spectra(state.spectra, capacity)
        return CentralState(state.w, state.s, spectra, state.slack)

    def _substep(
        self, state: CentralState, first: Bool[Array, ""], observed: Bool[Array, ""]
    ) -> tuple[CentralState, Observation]:
        setting, w = self.setting, state.w
        response, rate, dt = setting.response, setting.rate, 1 / setting.substeps
        model = setting.local_model(w)
        post = rate.post(response, state.s, model.grad, w, dt)
        gain = response.gain(post, w)
        pairs = setting.tracker.solve(
            model,
            gain,
            state.spectra.effective,
            explore=first,
            exact_above=setting.critical_above,
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
        series = common_series(setting, model, post, gain, spectra)
        series |= _predictions(model, point, oscillation)
        series |= _diagnostics(setting, point, oscillation, observed)
        gradients = (model.grad, model.grad + oscillation.penalty)
        w_new, s_new = rate.substep(response, state.s, w, gradients, oscillation.excess, dt)
        observation = Observation(
            w,
            series,
            setting.tracker.overflows(pairs),
            _stop(oscillation),
            _eigenvectors(point, oscillation),
        )
        return CentralState(w_new, s_new, spectra, oscillation.slack), observation


def _stop(oscillation: Oscillation) -> STOP:
    result = oscillation.solution.result
    return STOP.where(
        result == RESULTS.solved,
        STOP.running,
        STOP.where(result == RESULTS.no_solution, STOP.no_solution, STOP.unsolved),
    )


def _first_stop(stops: STOP) -> STOP:
    """The first stop among those of all substeps."""
    stopped = stops != STOP.running
    return jax.tree.map(lambda code: code[jnp.argmax(stopped)], stops)


def _eigenvectors(point: Point, oscillation: Oscillation) -> Float[Array, "d m"]:
    """P U V for X = V diag V^T in descending order: (U V)^T P projects a displacement."""
    V = jnp.linalg.eigh(oscillation.solution.X)[1][:, ::-1]
    return point.pairs.Y @ V.astype(point.w.dtype)


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
        "trust_cubic": jnp.where(pairs.mask, cubic, jnp.nan),
        "trust_quartic": jnp.where(pairs.mask, quartic, jnp.nan),
        "trust_response": nonlinearity,
        "untrusted": (doubtful | (solution.result != RESULTS.solved)).astype(jnp.int32),
    }
