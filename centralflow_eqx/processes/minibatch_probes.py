"""What is measured of optimizers with mini-batches: an ensemble of them, and batch sharpness."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..engine.curvature import Eigenpairs, local_model, unsolved, widen
from ..engine.response import State, Vector
from ._base import Minibatch, Observation, Setting
from .probes import AbstractLook, AbstractProbe, Series


class Ensemble(AbstractProbe):
    """Means and spreads over the optimizers of `discrete_minibatch`, all losses the full one's.

    `ensemble_loss`, `ensemble_grad_norm_sq` and `ensemble_eigenvalues` [m] are means,
    `ensemble_loss_spread` and `ensemble_eigenvalues_spread` standard deviations;
    `ensemble_distance` is the root of the mean squared distance from the mean weights.
    `ensemble_variances` [m] are mean squared coordinates u^T P (w - mean w) along each optimizer's
    own eigenvectors, and `ensemble_gap` is how far below 2 the eigenvalues of those that may
    oscillate are, averaged with these squares as weights: the counterpart of `sharpness_gap`.
    """

    seeds: int = eqx.field(static=True)
    every: int = 1

    def suits(self, process: str) -> bool:
        return process == "discrete_minibatch"

    def refusal(self, setting: Setting) -> str:
        return ""

    def init(self, w: Vector, capacity: int, key: PRNGKeyArray) -> Eigenpairs:
        keys = jr.split(key, self.seeds)
        return jax.vmap(lambda key: unsolved(w.size, capacity, w.dtype, key))(keys)

    def widen(self, carry: Eigenpairs) -> Eigenpairs:
        return jax.vmap(lambda pairs: widen(pairs, 2 * pairs.theta.size))(carry)

    def measure(
        self, setting: Setting, seen: Observation, carry: Eigenpairs
    ) -> tuple[Series, Eigenpairs, Bool[Array, ""]]:
        assert seen.members is not None
        tracker, response = setting.tracker, setting.response

        def one(member: tuple[Vector, State, Eigenpairs]) -> tuple[Eigenpairs, Series, Array]:
            w, post, pairs = member
            model = setting.local_model(w)
            found = tracker.solve(model, response.gain(post, w), pairs, explore=True)
            series = {
                "loss": model.loss,
                "grad_norm_sq": jnp.vdot(model.grad, model.grad),
                "eigenvalues": jnp.where(found.mask, found.theta, jnp.nan),
                "distance": jnp.sum((w - seen.weights) ** 2),
                "variances": (found.Y.T @ (w - seen.weights)) ** 2,
            }
            return found, series, tracker.overflows(found)

        # One after the other: what a rule decomposes is no batch then; see `decompose`.
        carry, series, crowded = jax.lax.map(one, (*seen.members, carry))
        return _summary(series, setting.settings.critical_above), carry, jnp.any(crowded)


def _summary(series: Series, critical_above: Float[Array, ""]) -> Series:
    """Means and spreads over the leading axis."""
    theta, squares = series["eigenvalues"], series["variances"]
    unbiased = len(theta) / (len(theta) - 1)
    weights = jnp.where(theta > critical_above, squares, 0)
    total = jnp.sum(weights)
    gap = jnp.sum(weights * jnp.nan_to_num(2 - theta)) / jnp.where(total > 0, total, jnp.nan)
    means = {name: jnp.mean(series[name], 0) for name in ("loss", "grad_norm_sq", "eigenvalues")}
    spreads = {
        f"{name}_spread": jnp.std(series[name], 0, ddof=1) for name in ("loss", "eigenvalues")
    }
    found = means | spreads
    found["distance"] = jnp.sqrt(unbiased * jnp.mean(series["distance"]))
    found["variances"] = unbiased * jnp.mean(squares, 0)
    found["gap"] = gap
    return {f"ensemble_{name}": values for name, values in found.items()}


class BatchSharpness(AbstractLook):
    """The mean curvature of mini-batches along their own steps, `batch_sharpness`.

    E[g^T K H K g / g^T K g] with the gradient g and the Hessian H of a mini-batch and the gain K of
    the optimizer: 2 where steps neither gain nor lose on their own mini-batches (arXiv 2412.20553).
    The mean is over `batches` of them.
    """

    minibatch: Minibatch
    batches: int = eqx.field(static=True)
    every: int = 1

    def look(self, setting: Setting, seen: Observation) -> Series:
        gain, w = setting.response.gain(seen.post, seen.weights), seen.weights

        def one(number: Array) -> Float[Array, ""]:
            model = local_model(lambda x: self.minibatch(x, number, jr.key(0)), w)
            step = gain.mv(model.grad)
            return jnp.vdot(step, model.product(step)) / jnp.vdot(step, model.grad)

        curvatures = jax.lax.map(one, jnp.arange(self.batches))
        return {"batch_sharpness": jnp.mean(curvatures)}
