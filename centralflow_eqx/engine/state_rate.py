"""How an optimizer's state moves through a fraction of a step.

The state's recursion s+ = F(s, g), with slope J, is known at whole steps only. The two rates
continue it differently between them. Both are explicit in time and first-order accurate.
"""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .response import Response, State, Vector

Time = float | Float[Array, ""]


class AbstractStateRate(eqx.Module):
    """A continuation of the optimizer's state to fractions of a step.

    `restoration` is the rate per step, unless another is asked for, at which a central flow that
    starts unstable is made stable.
    """

    restoration: ClassVar[float]

    @abc.abstractmethod
    def start(self, response: Response, s: State, g: Vector, w: Vector, dt: Time) -> State:
        """The state that a flow in substeps of `dt` starts with.

        `s` is the optimizer's own state before its step at `w`, where the gradient is `g`.
        """

    @abc.abstractmethod
    def post(self, response: Response, s: State, g: Vector, w: Vector, dt: Time) -> State:
        """The post-update state that the next substep at `w` is taken with, oscillation aside."""

    @abc.abstractmethod
    def fraction(self, J: Float[Array, "..."], dt: Time) -> Float[Array, "..."]:
        """How much of the increment F(s) - s a substep of length `dt` applies."""

    @abc.abstractmethod
    def rate(self, J: Float[Array, "..."]) -> Float[Array, "..."]:
        """The limit of `fraction(J, dt) / dt` as `dt` vanishes."""

    @abc.abstractmethod
    def substep(
        self,
        response: Response,
        s: State,
        w: Vector,
        gradients: tuple[Vector, Vector],
        excess: State,
        dt: Time,
    ) -> tuple[Vector, State]:
        """The flow's weights and state a time `dt` later.

        `gradients` are the gradient at `w` and its average over the oscillation; `excess` is what
        the oscillation adds to the average of F.
        """

    @abc.abstractmethod
    def lifetime(self, J: Float[Array, "..."]) -> Float[Array, "..."]:
        """How long a deviation of the state lasts, for 0 < J < 1."""

    def velocity(
        self, response: Response, post: State, w: Vector, g: Vector, dt: Time
    ) -> tuple[Vector, State]:
        """Change of weights and post-update state over `dt` where nothing oscillates."""
        J = response.slopes(post, w)
        ds = self.increment(response.advance(post, g, w), post, J, dt)
        return dt * response.step_from(post, g, w), ds

    def increment(self, target: State, s: State, J: State, dt: Time) -> State:
        """The share of `target - s` that a substep applies, leaf by leaf."""
        return jax.tree.map(lambda f, x, j: self.fraction(j, dt) * (f - x), target, s, J)


class Backward(AbstractStateRate):
    """ds/dt = (F(s, g) - s) / J, weights and state both advanced from old values.

    The convention of arXiv 2410.24206: (1 - b)/b for an exponential average. Fit for rules whose
    state is quadratic in the gradient; explicit Euler is unstable for momentum.
    """

    restoration: ClassVar[float] = math.inf

    def start(self, response, s, g, w, dt):
        return response.advance(s, g, w)

    def post(self, response, s, g, w, dt):
        return s

    def fraction(self, J: Float[Array, "..."], dt: Time) -> Float[Array, "..."]:
        return dt * self.rate(J)

    def rate(self, J: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 / jnp.where(J == 0, 1, J)

    def lifetime(self, J: Float[Array, "..."]) -> Float[Array, "..."]:
        return J / (1 - J)

    def substep(self, response, s, w, gradients, excess, dt):
        g, g_mean = gradients
        target = jax.tree.map(jnp.add, response.advance(s, g, w), excess)
        ds = self.increment(target, s, response.slopes(s, w), dt)
        return w + dt * response.step_from(s, g_mean, w), jax.tree.map(jnp.add, s, ds)


class Exponential(AbstractStateRate):
    """s <- s + phi (F(s, g) - s) with phi = (1 - J^dt)/(1 - J), then the weights with the new s.

    At dt = 1 and without oscillation this is exactly the discrete optimizer. Updating the state
    first keeps the ringing modes of momentum stable. Over the substeps of a step the state used is
    on average (1 + dt)/2 steps old, so a flow starts with (1 - dt)/2 of an update.
    """

    restoration: ClassVar[float] = 0.5

    def start(self, response, s, g, w, dt):
        target = response.advance(s, g, w)
        ds = self.increment(target, s, response.slopes(s, w), (1 - dt) / 2)
        begun = jax.tree.map(jnp.add, s, ds)
        # A maximum is at once what exceeds it, and would remember less for ever.
        maxima = response.structure.maxima_of(s)
        return jax.tree.map(lambda m, f, x: f if m else x, maxima, target, begun)

    def post(self, response, s, g, w, dt):
        ds = self.increment(response.advance(s, g, w), s, response.slopes(s, w), dt)
        return jax.tree.map(jnp.add, s, ds)

    def fraction(self, J: Float[Array, "..."], dt: Time) -> Float[Array, "..."]:
        # (1 - J^dt)/(1 - J) without its cancellation for J close to 1, where it tends to dt.
        rest = 1 - J
        kept = jnp.where(rest == 1, -jnp.inf, jnp.log1p(-jnp.where(rest == 1, 0, rest)))
        share = jnp.where(dt > 0, -jnp.expm1(jnp.where(dt > 0, dt, 1) * kept), 0)
        return jnp.where(rest == 0, dt, share / jnp.where(rest == 0, 1, rest))

    def rate(self, J: Float[Array, "..."]) -> Float[Array, "..."]:
        # An entry that forgets at once (J = 0) follows its target within a step, as in Backward.
        rest = jnp.where((J == 1) | (J == 0), 0, 1 - J)
        return jnp.where(rest == 0, 1, -jnp.log1p(-rest) / jnp.where(rest == 0, 1, rest))

    def lifetime(self, J: Float[Array, "..."]) -> Float[Array, "..."]:
        return -1 / jnp.log(J)

    def substep(self, response, s, w, gradients, excess, dt):
        _, g_mean = gradients
        target = jax.tree.map(jnp.add, response.advance(s, g_mean, w), excess)
        ds = self.increment(target, s, response.slopes(s, w), dt)
        s = jax.tree.map(jnp.add, s, ds)
        return w + dt * response.step_from(s, g_mean, w), s


STATE_RATES: dict[str, AbstractStateRate] = {"backward": Backward(), "exponential": Exponential()}
