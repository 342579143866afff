"""What a training loop may hand to a monitor, and how it is refused."""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ..engine.response import State

_CALLBACKS = "jax._src.callback", "jax._src.debugging"
_INSTEAD = "call `record` there, and `collect` when it has ended"


def is_traced(tree: PyTree) -> bool:
    """Whether JAX is tracing a function, and this is what it traces it with."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def check_outside(tree: PyTree) -> None:
    """Raise `RuntimeError` inside of compiled programs, where nothing can be computed.

    A host callback that computes waits for threads which wait for the callback.
    """
    if is_traced(tree):
        raise RuntimeError(f"measure cannot be part of a compiled function: {_INSTEAD}")
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") in _CALLBACKS:
            raise RuntimeError(f"measure in a host callback can wait for ever: {_INSTEAD}")
        frame = frame.f_back


def check_params(params: PyTree, expected: PyTree) -> None:
    """Raise `ValueError` unless `params` have the arrays that the monitor was made with."""
    given = eqx.filter(params, eqx.is_inexact_array)
    _check_like("params", given, expected, "they must be like those that the monitor was made with")


def check_state(state: State, expected: State) -> None:
    """Raise `ValueError` unless `state` is like the optimizer's own."""
    _check_like(
        "opt_state", state, expected, "it must be what optimizer.init(params) or update returned"
    )


def shapes(tree: PyTree) -> PyTree:
    """The tree with shapes in place of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), tree)


def _check_like(name: str, given: PyTree, expected: PyTree, remedy: str) -> None:
    here, there = (_shapes_by_path(tree) for tree in (given, expected))
    for path in [*there, *here]:
        a, b = here.get(path, "nothing"), there.get(path, "nothing")
        if a != b:
            raise ValueError(f"{name}{path} is {a}, but {b} was expected: {remedy}")


def _shapes_by_path(tree: Any) -> dict[str, str]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"an array {list(np.shape(x))}" for path, x in found}
