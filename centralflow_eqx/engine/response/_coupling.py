"""How the parts of a state depend on each other, and which of them oscillate."""

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from ..compile import single_use
from ._probe import Parts
from ._response import Coupling, Rule, Vector, relax


def find_coupling(
    rule: Rule,
    parts: Parts,
    links: Bool[np.ndarray, "p p"],
    point: tuple,
    key: PRNGKeyArray,
    tol: float,
) -> tuple[Coupling | None, str]:
    """How parts depend on each other, or why no flow can follow them.

    `links[i, j]` says that part i depends on the old part j; `point` is (s, w, g), `tol` the
    relative difference that counts as none.
    """
    depth = _longest_chain(links & ~np.eye(len(links), dtype=bool))
    if depth is None:
        names = ", ".join(parts.names)
        return None, f"parts of the optimizer's state depend on each other in a circle ({names})"
    _, w, g = point
    plus, minus = jax.device_get(_histories(rule, w, g, key))
    odd = []
    for number, name in enumerate(parts.names):
        a, b = (
            np.concatenate(
                [np.ravel(x) for x, n in zip(tree, parts.group, strict=True) if n == number]
            )
            for tree in (plus, minus)
        )
        size, apart, against = (np.sqrt(np.nansum(np.square(x))) for x in (a, a - b, a + b))
        if apart > tol * size and against > tol * size:
            return None, (
                f"{name} in the optimizer's state neither changes sign with the gradients, as a "
                "momentum does, nor is blind to it, as an average of squares: it mixes what "
                "oscillates with what averages"
            )
        odd.append(bool(apart > tol * size))
    return Coupling(parts.group, tuple(odd[n] for n in parts.group), depth), ""


@single_use
def _histories(rule: Rule, w: Vector, g: Vector, key: PRNGKeyArray) -> tuple[list, list]:
    """The state's leaves after some steps from the start, and after their mirror image."""

    def history(sign: float) -> list[Array]:
        s = relax(rule.init(sign * w), w)
        for i in range(3):
            noise = jr.normal(jr.fold_in(key, i), w.shape, w.dtype)
            s = rule.update(sign * g * (1 + noise), s, sign * w)[1]
        return jax.tree.leaves(s)

    return history(1.0), history(-1.0)


def _longest_chain(links: Bool[np.ndarray, "p p"]) -> int | None:
    """How many parts the longest chain of dependences has; None if there is a circle."""
    length = np.ones(len(links), int)
    for _ in range(len(links)):
        longer = 1 + np.max(np.where(links, length, 0), axis=1, initial=0)
        if np.array_equal(longer, length):
            return int(length.max())
        length = longer
    return None
