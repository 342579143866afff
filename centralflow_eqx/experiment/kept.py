"""The state of a simulation as named arrays, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ..placement import to_host
from .state import RunState

Kept = Mapping[str, Shaped[np.ndarray, "..."]]
"""The arrays of a `RunState`, by their places in it."""


class Misfit(ValueError):
    """A state that was kept is that of another experiment; the message says where they differ."""


def keep(state: RunState) -> Kept:
    """The arrays of a state, on the host; `fit` makes a state of them again."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): to_host(leaf) if isinstance(leaf, jax.Array) else leaf
        for path, leaf in leaves
    }


def fit(shapes: RunState, kept: Kept) -> RunState:
    """The state that was kept, of the experiment whose states are made as `shapes`.

    There may have been more room for eigenpairs. Raises `Misfit`.
    """
    places, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path) for path, _ in places]
    for name in names:
        if name not in kept:
            raise Misfit(f"{name} is missing")
    for name in kept.keys() - set(names):
        raise Misfit(f"{name} belongs to another experiment")
    return jax.tree.unflatten(
        structure,
        [_fit(name, leaf, kept[name]) for name, (_, leaf) in zip(names, places, strict=True)],
    )


def _fit(name: str, leaf: Any, kept: Shaped[np.ndarray, "..."]) -> Any:
    small = kept.ndim != leaf.ndim or any(
        a < b for a, b in zip(kept.shape, leaf.shape, strict=True)
    )
    if kept.dtype != leaf.dtype or small:
        was, wanted = (f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in (kept, leaf))
        raise Misfit(f"{name} is {was}, not {wanted}")
    return jnp.asarray(kept)
