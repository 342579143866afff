"""The averages of weights and state while the oscillation stays as it is.

Given its covariance, an oscillation is a constant addition to the mean gradient and to what the
state's averages tend to. What is left is the smooth flow of the optimizer in that field, whose
steps cost gradients only. They are short, half an optimizer step or less, because directions that
are followed by nobody may be as sharp as the threshold allows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .curvature import Loss
from .response import Response, State, Vector
from .state_rate import AbstractStateRate

_MIDPOINTS, _LEAPS = 2, 3
"""Substeps per optimizer step, of rules without and with momentum, and at least: it takes so many
to see what they are off by. Momentum rings at up to two radians a step, which a leapfrog of thirds
of a step keeps stable."""


class Place(NamedTuple):
    """Weights and state, with loss and gradient there."""

    w: Vector
    s: State
    loss: Float[Array, ""]
    grad: Vector


class Field(NamedTuple):
    """What a constant oscillation adds: to the mean gradient, and to the average of F."""

    penalty: Vector
    excess: State


class Passage(NamedTuple):
    """Where a passage ends, and where it was after 0, 1, ... whole optimizer steps.

    `error` is how far the substeps are off, in units of the weights; `gradients` what they took.
    """

    w: Vector
    s: State
    stations: Place
    error: Float[Array, ""]
    gradients: Int[Array, ""]


class _Motion(NamedTuple):
    """What an optimizer does in a field: its rule, and how its state follows."""

    loss: Loss
    response: Response
    rate: AbstractStateRate
    field: Field
    slopes: State

    def see(self, w: Vector) -> tuple[Array, Vector]:
        return jax.value_and_grad(self.loss)(w)

    def follow(self, s: State, g: Vector, w: Vector, e: Array) -> State:
        """The state a time `e` later, of a gradient `g`."""
        target = self.response.advance(s, g + self.field.penalty, w)
        target = jax.tree.map(jnp.add, target, self.field.excess)
        return jax.tree.map(jnp.add, s, self.rate.increment(target, s, self.slopes, e))

    def velocity(self, s: State, g: Vector, w: Vector) -> Vector:
        return self.response.step_from(s, g + self.field.penalty, w, self.slopes)


class _Underway(NamedTuple):
    """A passage after some substeps; `recent` are the last two velocities, the older one first.

    `owed` is a correction of the weights that the next substep makes.
    """

    place: Place
    owed: Vector
    recent: tuple[Vector, Vector]
    stations: Place
    error: Array
    gradients: Array


def pass_through(
    loss: Loss,
    response: Response,
    rate: AbstractStateRate,
    start: Place,
    field: Field,
    slopes: State,
    duration: Float[Array, ""],
    rows: int,
) -> Passage:
    """Weights and state after `duration` optimizer steps in a constant `field`, to second order.

    `slopes` are those of the state's recursion. A duration of more than one step is a whole number
    of them, at most `rows`.
    """
    momentum = response.structure.momentum
    advance, per_step, unseen = (_leap, _LEAPS, 2) if momentum else (_midpoint, _MIDPOINTS, 1)
    number = jnp.ceil(per_step * jnp.maximum(duration, 1)).astype(jnp.int32)
    e = duration / number.astype(duration.dtype)
    motion = _Motion(loss, response, rate, field, slopes)

    def substep(i: Array, now: _Underway) -> _Underway:
        station = jnp.where(i % per_step == 0, i // per_step, rows)  # beyond them: dropped
        stations = jax.tree.map(
            lambda all_, one: all_.at[station].set(one, mode="drop"), now.stations, now.place
        )
        return advance(motion, now._replace(stations=stations), i, number, e)

    room = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), start)
    still = jnp.zeros_like(start.w)
    none = jnp.zeros((), jnp.int32)
    begin = _Underway(start, still, (still, still), room, jnp.zeros_like(duration), none)
    end = jax.lax.fori_loop(0, number, substep, begin)
    w, s, *_ = end.place
    # The first substeps have not enough of a past to be judged by: they count as the others.
    error = end.error * number / (number - unseen)
    return Passage(w + end.owed, s, end.stations, error.astype(end.error.dtype), end.gradients)


def _midpoint(motion: _Motion, now: _Underway, i: Array, number: Array, e: Array) -> _Underway:
    """The explicit midpoint rule, its state exact for a constant gradient."""
    w, s, loss, g = now.place
    half = motion.follow(s, g, w, e / 2)
    first = motion.velocity(half, g, w)
    middle = w + e / 2 * first
    g_middle = motion.see(middle)[1]
    second = motion.velocity(half, g_middle, middle)
    s = motion.follow(s, g_middle, middle, e)
    w = w + e * second
    # The gradient where all ends is taken by whoever goes on from there.
    goes_on = i + 1 < number
    loss, g = jax.lax.cond(goes_on, motion.see, lambda _: (loss, g), w)
    # The rule is off by e/6 of the bend, but for an exact state, which is where most of it is: a
    # third was measured to do.
    bend = now.recent[0] - 2 * now.recent[1] + first
    return _Underway(
        Place(w, s, loss, g),
        now.owed,
        (first, second),
        now.stations,
        now.error + jnp.where(i > 0, e / 20 * jnp.linalg.norm(bend), 0),
        now.gradients + 1 + goes_on,
    )


def _leap(motion: _Motion, now: _Underway, i: Array, number: Array, e: Array) -> _Underway:
    """Half a kick of the state, a drift of the weights, another half.

    Where the step depends on the gradient itself beside the momenta, the drift was one with the
    gradient of its beginning; half the difference is owed to the weights.
    """
    w, s, loss, g = now.place
    kicked = motion.follow(s, g, w, e / 2)
    velocity = motion.velocity(kicked, g, w)
    w = w + now.owed + e * velocity
    loss, g = motion.see(w)
    owed = e / 2 * (motion.velocity(kicked, g, w) - velocity)
    bend = now.recent[0] - 2 * now.recent[1] + velocity
    return _Underway(
        Place(w, motion.follow(kicked, g, w, e / 2), loss, g),
        owed,
        (now.recent[1], velocity),
        now.stations,
        now.error + jnp.where(i > 1, e / 12 * jnp.linalg.norm(bend), 0),
        now.gradients + 1,
    )
