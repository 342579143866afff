"""Flows of a centre with an oscillation that grows and decays by itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..engine import rod
from ..engine.curvature import Eigenpairs, apply_columns
from ..engine.response import State, Vector, relax
from ..engine.rod import Look, Phase, RodModel, Rods
from ._base import AbstractProcess, Setting, Swing, Verdict, View
from .discrete import finite


class RodState(eqx.Module):
    """A centre and its rods; `inertia` is that of `RodModel`.

    `sharpness` is the largest effective eigenvalue along a rod, when it was last looked at.
    """

    centre: Phase
    rods: Rods
    inertia: State
    sharpness: Float[Array, ""]


class AbstractRodFlow(AbstractProcess):
    """A flow of weights, optimizer state, and the rods between whose ends the optimizer alternates.

    `secant` is that of `RodModel`. Of the eigenvectors it needs those where it begins only.
    """

    setting: eqx.AbstractVar[Setting]
    secant: eqx.AbstractClassVar[bool]

    def refusal(self) -> str:
        return self.setting.response.structure.refusal

    def init(self, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray) -> RodState:
        setting = self.setting
        start = Phase(w, relax(s, w))
        grad = jax.grad(setting.loss)(w)
        model = self._model(rod.weigh(setting.response, start, pairs, grad))
        number = min(setting.settings.rods, pairs.theta.size)
        centre, rods = rod.begin(model, start, pairs, number)
        return RodState(centre, rods, model.inertia, pairs.theta[0])

    def move(self, state: RodState) -> tuple[RodState, View, Verdict]:
        model = self._model(state.inertia)
        number = rod.count_substeps(model, state.sharpness)
        h = 1 / number.astype(state.sharpness.dtype)
        once = jax.jit(lambda centre, rods: rod.substep(model, centre, rods, h), inline=True)

        def substep(i: Array, now: tuple) -> tuple:
            centre, rods, seen, _ = now
            centre, rods, first, factor = once(centre, rods)
            seen = jax.tree.map(lambda a, b: jnp.where(i == 0, a, b), first, seen)
            return centre, rods, seen, 2 * factor

        shapes = jax.eval_shape(once, state.centre, state.rods)[2]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        begin = (state.centre, state.rods, nothing, state.sharpness)
        centre, rods, seen, sharpness = jax.lax.fori_loop(0, number, substep, begin)
        view = self._view(state, seen)
        k = len(rods.log_size)
        work = {"gradients": 2 * number * (2 * k + (k > 1) + model.gradients)}
        if not self.secant:
            work["hvps"] = 2 * number * k
        view = eqx.tree_at(lambda v: v.series, view, view.series | work)
        verdict = Verdict(jnp.zeros((), bool), finite(seen.loss, state.centre.w))
        return RodState(centre, rods, state.inertia, sharpness), view, verdict

    def tracked(self, state: RodState) -> None:
        return None

    def widened(self, state: RodState, capacity: int) -> RodState:
        return state

    def _model(self, inertia: State) -> RodModel:
        setting = self.setting
        chunk = setting.settings.hvp_chunk
        return RodModel(setting.loss, setting.response, inertia, chunk, self.secant)

    def _view(self, state: RodState, seen: Look) -> View:
        """What is seen of a step, costs aside.

        The gradient's response q along an eigenvector U is a multiple of Y = P U, with which a
        displacement is measured; U^T P U = Y^T K Y = 1.
        """
        w, rods = state.centre.w, state.rods
        post = jax.tree.map(jnp.add, state.centre.s, seen.drift.s)
        gain = self.setting.response.gain(post, w)
        u, q = rods.direction, seen.bent / rods.share[:, None]
        responses = apply_columns(gain, q.T).T
        squared, curvature = jnp.sum(q * responses, 1), jnp.sum(q * u, 1)
        eigenvalues = squared / jnp.where(curvature != 0, curvature, 1)
        variances = (rods.length * curvature) ** 2 / squared
        series = {
            "train_loss": seen.loss,
            "predicted_loss": seen.loss,
            "predicted_grad_norm_sq": seen.grad_norm_sq,
            "sigma_eigenvalues": jnp.sort(variances)[::-1],
            "rod_lengths": rods.length,
            "rod_eigenvalues": eigenvalues,
            "rod_residuals": jnp.linalg.norm(responses - eigenvalues[:, None] * u, axis=1)
            / jnp.linalg.norm(responses, axis=1),
        }
        swing = Swing(
            (q / jnp.sqrt(squared)[:, None]).T,
            eigenvalues,
            jnp.diag(variances),
            seen.grad,
            jnp.asarray(len(variances), jnp.int32),
        )
        return View(w, post, series, None, swing)
