"""What else a run can measure of its processes, and what flows predict for it.

A probe looks at a process where it is recorded; what it needs from one look to the next is its
*carry*. Predictions are time averages to second order in the oscillation, f + <Hess f, Sigma>/2.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..engine.curvature import Eigenpairs, LocalModel, unsolved, widen
from ..engine.response import State, Vector
from ..engine.stationary import (
    StationaryState,
    solve_stationary,
    stability_only,
    start_factor,
    stationary_refusal,
)
from ._base import Observation, Setting

Series = dict[str, Array]

_COLUMNS = 24
"""Of the factor of the least stable preconditioner; a network of 2,410 weights needs three."""


class AbstractProbe(eqx.Module):
    """A measurement, taken at every `every`-th recorded step of the processes that it suits."""

    every: eqx.AbstractVar[int]

    @abc.abstractmethod
    def suits(self, process: str) -> bool:
        """Whether the process of that name is measured."""

    @abc.abstractmethod
    def refusal(self, setting: Setting) -> str:
        """Why nothing can be measured in this setting, empty if it can."""

    @abc.abstractmethod
    def init(self, w: Vector, capacity: int, key: PRNGKeyArray) -> Any:
        """The first carry, with room for `capacity` directions."""

    @abc.abstractmethod
    def widen(self, carry: Any) -> Any:
        """The same carry with twice the room."""

    @abc.abstractmethod
    def measure(
        self, setting: Setting, seen: Observation, carry: Any
    ) -> tuple[Series, Any, Bool[Array, ""]]:
        """What is measured, the new carry, and whether the capacity was too small."""


class AbstractLook(AbstractProbe):
    """A probe of every process and rule that keeps nothing from one look to the next."""

    @abc.abstractmethod
    def look(self, setting: Setting, seen: Observation) -> Series:
        """What is measured."""

    def suits(self, process: str) -> bool:
        return True

    def refusal(self, setting: Setting) -> str:
        return ""

    def init(self, w: Vector, capacity: int, key: PRNGKeyArray) -> None:
        return None

    def widen(self, carry: None) -> None:
        return None

    def measure(
        self, setting: Setting, seen: Observation, carry: None
    ) -> tuple[Series, None, Bool[Array, ""]]:
        return self.look(setting, seen), None, jnp.zeros((), bool)


class Coordinates(AbstractLook):
    """Squared gradient and optimizer state of chosen weights, `indices` into the flat ones.

    `grad_sq_at`, `predicted_grad_sq_at` = g^2 + (H Sigma H)_ii, `state/<part>_at`: [c].
    """

    indices: Int[Array, " c"]
    every: int = 1

    def look(self, setting: Setting, seen: Observation) -> Series:
        squared = jax.grad(setting.loss)(seen.weights)[self.indices] ** 2
        series = {"grad_sq_at": squared}
        if seen.oscillation is not None:
            swing = seen.oscillation.gradients[self.indices] ** 2
            series["predicted_grad_sq_at"] = squared + swing @ _variances(seen)
        return series | _at(setting, "state", seen.post, seen.weights, self.indices)


class Outputs(AbstractLook):
    """A function of the weights, such as a network's outputs, and its predicted average.

    `outputs`, `predicted_outputs`: [q], the entries of what `function` returns.
    """

    function: Callable[[Vector], Float[Array, "..."]]
    every: int = 1

    def look(self, setting: Setting, seen: Observation) -> Series:
        values = self.function(seen.weights).ravel()
        series = {"outputs": values}
        if seen.oscillation is not None:
            bends = jax.lax.map(lambda u: self._second(seen.weights, u), seen.oscillation.vectors.T)
            series["predicted_outputs"] = values + _variances(seen) @ bends / 2
        return series

    def _second(self, w: Vector, u: Vector) -> Float[Array, " q"]:
        """The second derivative along `u`."""

        def slope(x: Vector) -> Array:
            return jax.jvp(self.function, (x,), (u,))[1]

        return jax.jvp(slope, (w,), (u,))[1].ravel()


class Preconditioners(AbstractProbe):
    """The optimizer's preconditioner beside those that its statistics tend to.

    All series begin with `stationary/`: `cosine` of the averages in the state and their stationary
    values, those values at `indices` (`nu_at`), and efficacies g^T P^{-1} g: `efficacy` of the
    optimizer's P, `efficacy_stationary`, `efficacy_stability` of the least stable diagonal P, and
    `efficacy_scalar` of P = S/2 with the Hessian's largest eigenvalue S (arXiv 2410.24206). NaN
    where the stationary state was not found, the least stable P needs more than `_COLUMNS`, or S is
    not known because raw spectra are not recorded.
    """

    indices: Int[Array, " c"]
    every: int = 1

    def suits(self, process: str) -> bool:
        # Of weights that oscillate, these are not the statistics' targets.
        return process in ("midpoint", "central", "ablated")

    def refusal(self, setting: Setting) -> str:
        structure = setting.response.structure
        return structure.refusal or stationary_refusal(structure)

    def init(self, w: Vector, capacity: int, key: PRNGKeyArray) -> tuple[Eigenpairs, Array]:
        pairs_key, factor_key = jr.split(key)
        pairs = unsolved(w.size, capacity, w.dtype, pairs_key)
        return pairs, start_factor(w.size, min(w.size, _COLUMNS), w.dtype, factor_key)

    def widen(self, carry: tuple[Eigenpairs, Array]) -> tuple[Eigenpairs, Array]:
        pairs, factor = carry
        return widen(pairs, 2 * pairs.theta.size), factor

    def measure(
        self, setting: Setting, seen: Observation, carry: tuple[Eigenpairs, Array]
    ) -> tuple[Series, tuple[Eigenpairs, Array], Bool[Array, ""]]:
        w, response, (pairs, factor) = seen.weights, setting.response, carry
        model = setting.local_model(w)
        found = solve_stationary(
            model,
            response,
            setting.tracker,
            w,
            seen.post,
            pairs,
            exact_above=setting.settings.critical_above,
        )
        point, gain = found.point, response.gain(seen.post, w)
        sharpness = seen.series.get("raw_eigenvalues", jnp.full(1, jnp.nan, w.dtype))[0]
        scalar = 2 * jnp.vdot(model.grad, model.grad) / sharpness
        series = {
            "cosine": self._cosine(setting, seen, found),
            "efficacy": jnp.vdot(model.grad, gain.mv(model.grad)),
            "efficacy_stationary": jnp.vdot(model.grad, point.gain.mv(model.grad)),
            "efficacy_scalar": scalar,
        }
        if response.structure.gain == "diagonal":
            series["efficacy_stability"], factor = _least(model, lx.diagonal(gain), factor)
        elif response.structure.gain == "scalar":
            series["efficacy_stability"] = scalar
        series = {f"stationary/{name}": values for name, values in series.items()}
        series |= _at(setting, "stationary", point.post, w, self.indices)
        series = {k: jnp.where(found.converged, v, jnp.nan) for k, v in series.items()}
        return series, (point.pairs, factor), setting.tracker.overflows(point.pairs)

    def _cosine(
        self, setting: Setting, seen: Observation, found: StationaryState
    ) -> Float[Array, ""]:
        """Between the averages of squares in the state and their stationary values."""
        one, w = jnp.ones_like(seen.weights), seen.weights
        squares = setting.response.quadratic(seen.post, jnp.zeros_like(w), w, one, one)

        def flat(state: State) -> Array:
            kept = jax.tree.map(lambda s, q: jnp.where(q != 0, s, 0), state, squares)
            return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(kept)])

        a, b = flat(seen.post), flat(found.point.post)
        return jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def _variances(seen: Observation) -> Float[Array, " m"]:
    assert seen.oscillation is not None
    return seen.oscillation.variances.astype(seen.weights.dtype)


def _at(
    setting: Setting, prefix: str, state: State, w: Vector, indices: Int[Array, " c"]
) -> Series:
    """The parts of the state that have an entry for every weight, at `indices` if any."""
    if not indices.size:
        return {}
    parts = setting.response.rule.parts(state, w)
    flat = {
        name: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(part)])
        for name, part in parts.items()
    }
    return {f"{prefix}/{k}_at": v[indices] for k, v in flat.items() if v.size == w.size}


def _least(
    model: LocalModel, gain: Float[Array, " d"], factor: Float[Array, "d r"]
) -> tuple[Float[Array, ""], Float[Array, "d r"]]:
    """Efficacy of the least stable diagonal preconditioner, NaN if uncertain, and its factor."""
    usual = jnp.max(gain)
    found = stability_only(model.hvps, 1 / jnp.where(gain > 0, gain, usual), factor)
    P, g = found.diagonal, model.grad
    efficacy = jnp.sum(jnp.where(P > 0, g * g / jnp.where(P > 0, P, 1), 0))
    return jnp.where(found.rank_deficient, efficacy, jnp.nan), found.factor
