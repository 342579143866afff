"""Series of spectra, and the observer that tracks what a process does not need to move."""

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from ..engine.curvature import Eigenpairs, EigenTracker
from ..engine.response import State, Vector
from ._base import Setting


class Sight(eqx.Module):
    """Where a spectrum is looked at, or rows of such places.

    `raw` asks for the `wanted` leading eigenvalues of the Hessian itself instead of those of the
    effective Hessian; `oscillating` says that the point alternates between two places.
    """

    w: Float[Array, "*rows d"]
    post: State
    wanted: Int[Array, "*rows"]
    raw: Bool[Array, "*rows"]
    oscillating: Bool[Array, "*rows"]


def look(
    setting: Setting, pairs: Eigenpairs, sight: Sight
) -> tuple[Eigenpairs, dict[str, Array], Bool[Array, ""]]:
    """The spectrum at a point, what is recorded of it, and whether there was too little room.

    One program serves all processes, and both spectra.
    """
    model, tracker = setting.local_model(sight.w), setting.tracker
    gain = setting.response.gain(sight.post, sight.w)
    tracker = EigenTracker(
        jnp.where(sight.raw, jnp.inf, tracker.track_above),
        jnp.where(sight.raw, sight.wanted, tracker.initial),
        tracker.tol,
    )
    found = tracker.solve(
        model,
        _either(sight.raw, gain),
        pairs,
        explore=True,
        oscillating=sight.oscillating,
    )
    series = common_series(setting, model.loss, model.grad, gain, found)
    series["gradients"] = jnp.ones((), jnp.int32)
    return found, series, tracker.overflows(found)


def _either(raw: Bool[Array, ""], gain: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The identity where `raw`, else the gain."""
    if isinstance(gain, lx.DiagonalLinearOperator):
        return lx.DiagonalLinearOperator(jnp.where(raw, 1, lx.diagonal(gain)))
    return lx.FunctionLinearOperator(
        lambda v: jnp.where(raw, v, gain.mv(v)), gain.in_structure(), lx.symmetric_tag
    )


def common_series(
    setting: Setting,
    loss: Float[Array, ""],
    grad: Vector,
    gain: lx.AbstractLinearOperator,
    pairs: Eigenpairs,
) -> dict[str, Array]:
    """The series that every process records; eigenvalues beyond the active ones are NaN."""

    def visible(values: Array) -> Array:
        return jnp.where(pairs.mask, values, jnp.nan)

    kind = setting.response.structure.gain
    series = {
        "train_loss": loss,
        "grad_norm_sq": jnp.vdot(grad, grad),
        "eigenvalues": visible(pairs.theta),
        "eigen_residuals": visible(pairs.residuals),
        "hvps": pairs.products,
        "converged": pairs.converged.astype(jnp.int32),
        "gain_positive": _is_positive(gain, grad).astype(jnp.int32),
    }
    if kind == "none":
        series["raw_eigenvalues"] = series["eigenvalues"]
        series["eigenvalues"] = jnp.full_like(pairs.theta, jnp.nan)
    elif kind == "scalar":
        step_size = jnp.mean(lx.diagonal(gain))
        series["raw_eigenvalues"] = visible(pairs.theta / step_size)
        series["effective_step"] = step_size
    return series


def _is_positive(gain: lx.AbstractLinearOperator, grad: Vector) -> Bool[Array, ""]:
    """Whether no weight is moved up its gradient, or for gains that mix weights, not all are."""
    if isinstance(gain, lx.DiagonalLinearOperator):
        return jnp.all(lx.diagonal(gain) >= 0)
    return jnp.vdot(grad, gain.mv(grad)) >= 0


def has_raw_spectrum(setting: Setting) -> bool:
    """Whether the Hessian's own eigenvalues are other than a multiple of the effective ones."""
    return setting.response.structure.gain in ("diagonal", "general")
