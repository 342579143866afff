"""Parts of a state that are running maxima, as AMSGrad's of its statistics.

Such a part stays as it is while nothing exceeds it, and what does is what it becomes. Neither is
quadratic in the gradient across the switch; between switches it is a constant of the rule.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..compile import single_use
from ._probe import Parts
from ._response import Rule, State, Vector

_FAR = 1e6
"""Times what it is, a maximum is exceeded by nothing for as long as a rule is probed."""


def between_switches(rule: Rule, parts: Parts, point: tuple) -> tuple | None:
    """`point`, (s, w, g), with maxima that are not exceeded; None if the rule has none.

    A maximum is shaped like the weights, stays as it is where it is large, and rises from zero.
    """
    shaped = {n for n, place in zip(parts.group, parts.places, strict=True) if place is not None}
    shaped -= {n for n, place in zip(parts.group, parts.places, strict=True) if place is None}
    s, w, g = point
    maxima = {n for n in shaped if _is_maximum(rule, _mask(parts, s, {n}), s, w, g)}
    return (_times(s, _mask(parts, s, maxima), _FAR), w, g) if maxima else None


def _is_maximum(rule: Rule, mask: State, s: State, w: Vector, g: Vector) -> bool:
    stays, rises = jax.device_get(_tried(rule, mask, s, w, g))
    return bool(stays) and bool(rises)


@single_use
def _tried(rule: Rule, mask: State, s: State, w: Vector, g: Vector) -> tuple:
    """Whether the marked leaves stay as they are where they are large, and rise from zero."""

    def update(factor: float) -> tuple[list, list]:
        before = _times(s, mask, factor)
        after = rule.update(g, before, w)[1]
        marked = zip(*map(jax.tree.leaves, (before, after, mask)), strict=True)
        pairs = [(b, a, m) for b, a, m in marked]
        same = [jnp.all(jnp.where(m, a == b, True)) for b, a, m in pairs]
        more = [jnp.any(jnp.where(m, a > b, False)) for b, a, m in pairs]
        return same, more

    stays, rises = update(_FAR)[0], update(0.0)[1]
    return jnp.all(jnp.stack(stays)), jnp.any(jnp.stack(rises))


def _mask(parts: Parts, s: State, chosen: set[int]) -> State:
    marks = [np.asarray(n in chosen) for n in parts.group]
    return jax.tree.unflatten(jax.tree.structure(s), marks)


def _times(s: State, mask: State, factor: float) -> State:
    return jax.tree.map(lambda x, m: jnp.where(m, factor * x, x), s, mask)
