"""The spectra that a process tracks, and the series that every process records."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, PRNGKeyArray

from ..engine.curvature import Eigenpairs, EigenTracker, LocalModel, unsolved, widen
from ..engine.response import State, Vector, relax
from ._base import Setting, Spectra


def start_spectra(setting: Setting, w: Vector, capacity: int, key: PRNGKeyArray) -> Spectra:
    """Spectra of which nothing is known yet."""
    effective, raw = (unsolved(w.size, capacity, w.dtype, k) for k in jr.split(key))
    differ = setting.response.structure.gain in ("diagonal", "general")
    return Spectra(effective, raw if differ else None)


def widen_spectra(spectra: Spectra, capacity: int) -> Spectra:
    """Room for `capacity` eigenpairs in each spectrum."""
    raw = None if spectra.raw is None else widen(spectra.raw, capacity)
    return Spectra(widen(spectra.effective, capacity), raw)


def survey(setting: Setting, w: Vector, s: State, spectra: Spectra) -> Spectra:
    """Both spectra where processes start, at `w` with the optimizer's own state `s`."""
    model = setting.local_model(w)
    post = relax(setting.response.rule.update(model.grad, s, w)[1], w)
    gain = setting.response.gain(post, w)
    return track_for_record(setting, model, gain, spectra, jnp.asarray(True))


def track_raw(
    setting: Setting,
    model: LocalModel,
    spectra: Spectra,
    observed: bool | Bool[Array, ""],
    *,
    oscillating: bool = False,
) -> Spectra:
    """Track as many eigenvalues of the Hessian as are tracked of the effective Hessian."""
    if spectra.raw is None:
        return spectra
    tracker = EigenTracker(
        track_above=float("inf"), initial=spectra.effective.active, tol=setting.tracker.tol
    )
    identity = lx.DiagonalLinearOperator(jnp.ones_like(model.grad))

    def skip(pairs: Eigenpairs) -> Eigenpairs:
        return eqx.tree_at(lambda p: p.products, pairs, jnp.zeros_like(pairs.products))

    raw = jax.lax.cond(
        observed,
        lambda pairs: tracker.solve(model, identity, pairs, explore=True, oscillating=oscillating),
        skip,
        spectra.raw,
    )
    return Spectra(spectra.effective, raw)


def track_for_record(
    setting: Setting,
    model: LocalModel,
    gain: lx.AbstractLinearOperator,
    spectra: Spectra,
    observed: Bool[Array, ""],
    *,
    oscillating: bool = False,
) -> Spectra:
    """Both spectra, for a process that does not need them to move."""

    def solve(spectra: Spectra) -> Spectra:
        effective = setting.tracker.solve(
            model, gain, spectra.effective, explore=True, oscillating=oscillating
        )
        return track_raw(
            setting, model, Spectra(effective, spectra.raw), True, oscillating=oscillating
        )

    return jax.lax.cond(observed, solve, lambda spectra: spectra, spectra)


def common_series(
    setting: Setting,
    model: LocalModel,
    post: State,
    gain: lx.AbstractLinearOperator,
    spectra: Spectra,
) -> dict[str, Array]:
    """The series that every process records; eigenvalues beyond the active ones are NaN."""
    effective = spectra.effective

    def visible(values: Array) -> Array:
        return jnp.where(effective.mask, values, jnp.nan)

    series = {
        "train_loss": model.loss,
        "grad_norm_sq": jnp.vdot(model.grad, model.grad),
        "eigenvalues": visible(effective.theta),
        "eigen_residuals": visible(effective.residuals),
        "hvps": spectra.products,
    }
    if spectra.raw is not None:
        series["raw_eigenvalues"] = visible(spectra.raw.theta)
    elif setting.response.structure.gain == "none":
        series["raw_eigenvalues"] = series["eigenvalues"]
        series["eigenvalues"] = jnp.full_like(effective.theta, jnp.nan)
    else:
        step_size = jnp.mean(lx.diagonal(gain))
        series["raw_eigenvalues"] = visible(effective.theta / step_size)
        series["effective_step"] = step_size
    parts = setting.response.rule.parts(post, model.grad)
    return series | {
        f"state/{name}_sum": sum((jnp.sum(x) for x in jax.tree.leaves(part)), jnp.zeros(()))
        for name, part in parts.items()
    }
