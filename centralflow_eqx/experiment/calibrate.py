"""How many Hessian-vector products a device does best at once, found out by timing them."""

import time

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..engine.compile import program
from ..engine.curvature import Loss, local_model
from ..engine.response import Vector
from ..hosts import any_says, first_says
from .memory import free_memory, needed

CHUNKS = 1, 4, 16
"""Products at once that are tried, the least memory first."""
_REPEATS = 3


def quickest_chunk(loss: Loss, w: Vector) -> int:
    """The one of `CHUNKS` with which a block of products at `w` takes the least time.

    One that does not fit the memory is not tried, nor are larger ones. Batched products differ from
    others in rounding: a run that is to be repeated bit for bit has to be given the number.
    """
    V = jnp.ones((w.size, min(w.size, CHUNKS[-1])), w.dtype) / w.size**0.5
    seconds = {}
    for chunk in CHUNKS:
        lowered = _products.lower(loss, w, V, chunk)  # pyright: ignore[reportFunctionMemberAccess]
        free = free_memory()
        if any_says(free is not None and needed(lowered.compile()) > free):
            break
        seconds[chunk] = min(_time(loss, w, V, chunk) for _ in range(_REPEATS))
    # Several processes have to do the same.
    return first_says(min(seconds, key=lambda chunk: seconds[chunk], default=1))


def _time(loss: Loss, w: Vector, V: Float[Array, "d m"], chunk: int) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(_products(loss, w, V, chunk))
    return time.perf_counter() - begun


@program
def _products(loss: Loss, w: Vector, V: Float[Array, "d m"], chunk: int) -> Float[Array, "d m"]:
    return local_model(loss, w, chunk).hvps(V)
