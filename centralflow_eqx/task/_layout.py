"""Where parameters stand in flat weights."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..placement import Placement


class Layout(eqx.Module):
    """Where a pytree's arrays stand in flat weights: `layout(w)` is the pytree of them.

    Of weights that are split among devices each of these has the whole pytree.
    """

    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    placement: Placement | None = eqx.field(static=True, default=None)

    @property
    def size(self) -> int:
        """Length of the flat weights."""
        return sum(math.prod(shape) for shape in self.shapes)

    def whole(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """A vector that may be split, as a whole."""
        return vector if self.placement is None else self.placement.whole(vector)

    def __call__(self, weights: Float[Array, " d"]) -> PyTree[Float[Array, "..."]]:
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes))
        parts = jnp.split(self.whole(weights), ends[:-1])
        leaves = [p.reshape(shape) for p, shape in zip(parts, self.shapes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


def flatten(tree: PyTree) -> tuple[Float[np.ndarray, " d"], Layout, PyTree]:
    """A pytree's weights, its inexact arrays one after the other, and the rest of it.

    `eqx.combine(layout(weights), rest)` is the pytree again.
    """
    weights, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(weights)
    layout = Layout(structure, tuple(np.shape(leaf) for leaf in leaves))
    # By NumPy, as JAX would compile a program for every shape.
    return np.concatenate([np.ravel(leaf) for leaf in leaves]), layout, rest
