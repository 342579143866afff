"""Averages of the optimizer's state over an oscillation of the weights, by brute force."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import quick_compilation, symmetric  # noqa: F401
from _rules import RULES, D, example


@pytest.mark.parametrize("name", RULES)
def test_averages_over_an_explicit_oscillation(name):
    """Of the state after steps with the gradients of a quadratic at w + a u + b v, a, b = +-1."""
    _, response, _, s, w, _ = example(name)
    H = jnp.asarray(symmetric(np.linspace(-1, 2, D)))
    u, v = jr.normal(jr.key(5), (2, D))

    @jax.jit
    def averages(s, w):
        signs = [(a, b) for a in (1, -1) for b in (1, -1)]
        states = [response.advance(s, H @ (w + a * u + b * v), w) for a, b in signs]
        excess = [response.quadratic(s, H @ w, w, H @ x, H @ x) for x in (u, v)]
        derived = jax.tree.map(lambda f, *c: f + sum(c), response.advance(s, H @ w, w), *excess)
        return jax.tree.map(lambda *x: sum(x) / len(x), *states), derived

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-10), *averages(s, w))
