"""Parts of a state that are running maxima, as AMSGrad's of its statistics.

Such a part stays as it is while nothing exceeds it, and what does is what it becomes. Neither is
quadratic in the gradient across the switch; between switches it is a constant of the rule.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params
from jaxtyping import Array, Bool

from ..compile import single_use
from ._probe import Parts
from ._response import Rule, State, Vector

_FAR = 1e6
"""Times what it is, a maximum is exceeded by nothing for as long as a rule is probed."""


def find_maxima(rule: Rule, parts: Parts, point: tuple) -> tuple[bool, ...]:
    """Of each leaf of the state whether it is a running maximum; nothing if none is.

    A maximum is shaped like the weights, stays as it is where it is large, and rises from zero.
    `point` is (s, w, g).
    """
    other = {n for n, place in zip(parts.group, parts.places, strict=True) if place is None}
    s, w, g = point
    if not set(parts.group) - other or not _takes_maxima(
        jax.make_jaxpr(rule.update)(g, s, w).jaxpr
    ):
        return ()
    found = jax.device_get(_are_maxima(rule, parts, *point)) & ~np.isin(parts.group, list(other))
    return tuple(map(bool, found)) if np.any(found) else ()


def _takes_maxima(jaxpr: Jaxpr) -> bool:
    """Whether a program takes any maximum: most rules do not, and there is nothing to compile."""
    return any(
        eqn.primitive.name == "max" or any(map(_takes_maxima, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def between_switches(s: State, maxima: tuple[bool, ...]) -> State:
    """The state with maxima that are not exceeded."""
    leaves, structure = jax.tree.flatten(s)
    scaled = [_FAR * x if m else x for x, m in zip(leaves, maxima, strict=True)]
    return jax.tree.unflatten(structure, scaled)


@single_use
def _are_maxima(rule: Rule, parts: Parts, s: State, w: Vector, g: Vector) -> Bool[Array, " leaves"]:
    """Which leaves' parts stay as they are where they are large, and rise from zero."""
    leaves, structure = jax.tree.flatten(s)
    group = jnp.asarray(parts.group)

    def update(part: Array, factor: float) -> tuple[list[Array], list[Array]]:
        before = [jnp.where(n == part, factor * x, x) for n, x in zip(group, leaves, strict=True)]
        after = jax.tree.leaves(rule.update(g, jax.tree.unflatten(structure, before), w)[1])
        return before, after

    def one(part: Array) -> Array:
        stays = jnp.stack([jnp.all(a == b) for b, a in zip(*update(part, _FAR), strict=True)])
        rises = jnp.stack([jnp.any(a > b) for b, a in zip(*update(part, 0.0), strict=True)])
        own = group == part
        return jnp.all(stays | ~own) & jnp.any(rises & own)

    return jax.lax.map(one, jnp.arange(len(parts.names)))[group]
