"""Where a loop stands: weights and state as it has them, and what they oscillate around."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from ..engine.curvature import Loss
from ..engine.response import Response, State, Vector, relax


class OnBatch(eqx.Module):
    """A loss of parameters, with what else it takes."""

    loss: Callable[..., Float[Array, ""]]
    batch: tuple[Any, ...]

    def __call__(self, params: PyTree) -> Float[Array, ""]:
        return self.loss(params, *self.batch)


class InPrecision(eqx.Module):
    """A loss of flat weights whose value has their precision, whatever it was computed in."""

    loss: Loss

    def __call__(self, w: Vector) -> Float[Array, ""]:
        return jnp.asarray(self.loss(w), w.dtype)


class Place(NamedTuple):
    """Weights, the post-update state there, and how the weights oscillate around them.

    `swing` is half the way from one extreme of the oscillation to the other, NaN where that is not
    known.
    """

    w: Vector
    post: State
    swing: Vector


def widest(params: PyTree) -> DTypeLike:
    """The precision to measure in: the weights' own, but at least float32."""
    return jnp.result_type(jnp.float32, *_weights(params))


def ravel(params: PyTree, dtype: DTypeLike) -> Vector:
    """Parameters as flat weights, leaf by leaf in the order in which JAX flattens them."""
    return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in _weights(params)])


def widen_floats(state: State, dtype: DTypeLike) -> State:
    """The state with numbers of less precision than `dtype` in `dtype`; counters stay as they are.

    Rounding to half precision has no derivatives.
    """

    def wide(x: Array) -> Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.promote_types(x.dtype, dtype)) if is_float else x

    return jax.tree.map(lambda x: wide(jnp.asarray(x)), state)


def as_it_is(response: Response, w: Vector, grad: Vector, s: State) -> Place:
    """The place of weights and the optimizer's own state `s` before its step there."""
    post = response.rule.update(grad, s, w)[1]
    return Place(w, relax(post, w), jnp.full_like(w, jnp.nan))


def middle(loss: Loss, response: Response, w: Vector, s: State) -> Place:
    """The midpoint of the next three iterates, (w0 + 2 w1 + w2)/4: an oscillation cancels in it.

    The state is that of the step at w1; its momenta, which oscillate too, are averaged alike.
    """
    momentum = response.structure.momentum

    def step(now: tuple[Vector, State], _: None) -> tuple:
        w, s = now
        delta, s = response.rule.update(jax.grad(loss)(w), s, w)
        return (w + delta, s), (w, relax(s, w))

    (end, _), (places, states) = jax.lax.scan(step, (w, s), None, length=3 if momentum else 2)
    before, now = places[:2]
    after = places[2] if momentum else end
    post = jax.tree.map(lambda x: x[1], states)
    if momentum:

        def averaged(odd: Array, x: Float[Array, "3 ..."]) -> Array:
            return jnp.where(odd, (x[0] + 2 * x[1] + x[2]) / 4, x[1])

        post = jax.tree.map(averaged, response.momenta(post, now), states)
    return Place((before + 2 * now + after) / 4, post, (before - 2 * now + after) / 4)


def gradients_of(response: Response, at_midpoint: bool) -> int:
    """What it takes to find a place, and the gradient there."""
    if not at_midpoint:
        return 1
    return 4 if response.structure.momentum else 3


def _weights(params: PyTree) -> list[Array]:
    return jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))
