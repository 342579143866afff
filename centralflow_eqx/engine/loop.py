"""Scans: of a length that is an argument, so that one compiled program serves every length, and of
a fixed length, whose derivatives do not keep every step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

C = TypeVar("C")


class Outcome(NamedTuple):
    """What a step of a bounded scan results in: a row, whether to keep it, whether to halt."""

    row: Any
    keep: Bool[Array, ""]
    halt: Bool[Array, ""]


def bounded_scan(
    step: Callable[[C, Int[Array, ""]], tuple[C, Outcome]],
    carry: C,
    length: Int[Array, ""],
    room: int,
) -> tuple[C, Any, Int[Array, ""]]:
    """`jax.lax.scan` over 0, 1, ..., `length` - 1 that may leave rows out, and halt.

    Returns the last carry, the rows, and how many were kept; what follows them means nothing.
    There must be `room` for all rows that are kept.
    Because the length is not compiled in, scanning n and then m steps performs the same operations,
    bit for bit, as scanning n + m.
    """
    once = jax.jit(lambda carry, i: step(carry, i), inline=True)  # traced once, but called twice
    shapes = jax.eval_shape(once, carry, jnp.zeros((), jnp.int32))[1].row
    rows = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype), shapes)

    def body(now: tuple) -> tuple:
        carry, rows, kept, i, _ = now
        carry, (row, keep, halt) = once(carry, i)
        rows = jax.tree.map(lambda all_, one: all_.at[kept].set(one), rows, row)
        return carry, rows, kept + keep, i + 1, halt

    def unfinished(now: tuple) -> Array:
        *_, i, halted = now
        return (i < length) & ~halted

    zero = jnp.zeros((), jnp.int32)
    start = (carry, rows, zero, zero, jnp.zeros((), bool))
    carry, rows, kept, *_ = jax.lax.while_loop(unfinished, body, start)
    return carry, rows, kept


def checkpointed_scan(step: Callable[[C, Int[Array, ""]], C], carry: C, length: int) -> C:
    """What 0, 1, ..., `length` - 1 lead to, one `step` after the other.

    Derivatives in reverse mode keep about 2 sqrt(length) carries; they take every step three times.
    """
    inner = math.isqrt(length - 1) + 1

    @jax.checkpoint
    def once(carry: C, i: Int[Array, ""]) -> tuple[C, None]:
        return jax.lax.cond(i < length, step, lambda carry, _: carry, carry, i), None

    @jax.checkpoint
    def block(carry: C, numbers: Int[Array, " n"]) -> tuple[C, None]:
        return jax.lax.scan(once, carry, numbers)

    numbers = jnp.arange(-(-length // inner) * inner, dtype=jnp.int32).reshape(-1, inner)
    return jax.lax.scan(block, carry, numbers)[0]
