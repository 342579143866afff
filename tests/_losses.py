"""Losses and update rules with known answers, shared by the tests."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from centralflow_eqx.engine.response import Rule, relax
from centralflow_eqx.optimizers import AbstractOptimizer


def orthogonal(d: int, seed: int = 0) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def symmetric(eigenvalues, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    Q = orthogonal(len(eigenvalues), seed)
    A = (Q * np.asarray(eigenvalues)) @ Q.T
    return (A + A.T) / 2


class Quadratic(eqx.Module):
    """w^T H w / 2 - b^T w."""

    H: Float[Array, "d d"]
    b: Float[Array, " d"] | float = 0.0

    def __call__(self, w):
        return w @ self.H @ w / 2 - jnp.sum(self.b * w)


class TinyMLP(eqx.Module):
    """Squared error of a tanh network with three inputs, five hidden units and two outputs."""

    x: Float[Array, "n 3"]
    y: Float[Array, "n 2"]

    # in the order in which JAX flattens a dictionary
    SHAPES = {"W1": (3, 5), "W2": (5, 2), "b1": (5,), "b2": (2,)}
    SIZE = 32

    @classmethod
    def make(cls, seed: int = 0, n: int = 8) -> "TinyMLP":
        rng = np.random.default_rng(seed)
        return cls(jnp.asarray(rng.normal(size=(n, 3))), jnp.asarray(rng.normal(size=(n, 2))))

    @classmethod
    def unravel(cls, w: Float[Array, "32"]) -> dict[str, Array]:
        parts, start = {}, 0
        for name, shape in cls.SHAPES.items():
            size = int(np.prod(shape))
            parts[name] = w[start : start + size].reshape(shape)
            start += size
        return parts

    def of(self, p: PyTree) -> Array:
        hidden = jnp.tanh(self.x @ p["W1"] + p["b1"])
        return jnp.mean((hidden @ p["W2"] + p["b2"] - self.y) ** 2)

    def __call__(self, w: Float[Array, "32"]) -> Array:
        return self.of(self.unravel(w))


def identity(w):
    return w


def flat_rule(optimizer: AbstractOptimizer) -> Rule:
    """The rule of an optimizer whose parameters are one vector."""
    return Rule(optimizer, identity)


def warm_state(rule: Rule, d: int, steps: int = 5, seed: int = 0):
    """Weights, a gradient, and the relaxed post-update state of the step taken with them."""
    rng = np.random.default_rng(seed)
    w, s = jnp.asarray(rng.normal(size=d)), rule.init(jnp.zeros(d))
    for g in jnp.asarray(rng.normal(size=(steps, d))):
        s = rule.update(g, s, w)[1]
    return w, g, relax(s, w)


class Momentum(NamedTuple):
    m: PyTree


class Moments(NamedTuple):
    nu: PyTree


class MeanSize(AbstractOptimizer):
    """nu+ = beta2 nu + (1 - beta2) |g|, step -lr g / nu+: a statistic with a kink."""

    lr: float
    beta2: float

    def init(self, params):
        return Moments(jax.tree.map(jnp.ones_like, params))

    def update(self, grad, state, params):
        nu = jax.tree.map(lambda g, v: self.beta2 * v + (1 - self.beta2) * abs(g), grad, state.nu)
        return jax.tree.map(lambda g, v: -self.lr * g / v, grad, nu), Moments(nu)


class MatrixDecay(AbstractOptimizer):
    """Another rule's step and -D w with a matrix D."""

    rule: AbstractOptimizer
    decay: Float[Array, "d d"]

    def init(self, params):
        return self.rule.init(params)

    def update(self, grad, state, params):
        step, state = self.rule.update(grad, state, params)
        return step - self.decay @ params, state


class Stateless(AbstractOptimizer):
    """A step that is a function of the gradient alone."""

    step: Callable[[Array], Array]

    def init(self, params):
        return ()

    def update(self, grad, state, params):
        return self.step(grad), state


class Recursion(AbstractOptimizer):
    """step -g - m+ with m+ = f(m) + g."""

    f: Callable[[Array], Array]

    def init(self, params):
        return Momentum(jnp.zeros_like(params))

    def update(self, grad, state, params):
        m = self.f(state.m) + grad
        return -grad - m, Momentum(m)
