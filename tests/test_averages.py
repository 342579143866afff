"""Averages of the optimizer's state over an oscillation of the weights, by brute force."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _losses import symmetric
from _rules import RULES, STEPS, D, after, tree, unravel
from jax.flatten_util import ravel_pytree

from centralflow_eqx.engine.response import Response, Rule, Structure, relax

H = jnp.asarray(symmetric(np.linspace(-1, 2, D)))
U = jnp.asarray(np.random.default_rng(5).normal(size=(D, 3)))
X = jnp.asarray(symmetric([0.1, 0.5, 2.0], seed=5))


@eqx.filter_jit
def averages(response, s, w):
    """The state after a step on w^T H w / 2, averaged over weights with the covariance U X U^T.

    Over the weights w +- delta_k one by one, and as the flow has it.
    """

    def advance(delta):
        return response.advance(s, H @ (w + delta), w + delta)

    def excess(q, r):
        return response.quadratic(s, H @ w, w, q, r)

    half = 3**0.5 * (U @ jnp.linalg.cholesky(X)).T
    states = jax.vmap(advance)(jnp.concatenate([half, -half]))
    gradients = (H @ U).T
    pairs = jax.vmap(jax.vmap(excess, (None, 0)), (0, None))(gradients, gradients)
    derived = jax.tree.map(lambda f, c: f + jnp.tensordot(X, c), advance(0), pairs)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), states), derived


# Its momentum is of the step, not of the gradient: test_mixed_states lets it swing with that.
COUPLED = "optax rmsprop with momentum"


@pytest.mark.parametrize("name", [name for name in RULES if name != COUPLED])
def test_averages_over_an_explicit_oscillation(name):
    response = Response(Rule(RULES[name].optimizer, unravel), Structure())
    w = ravel_pytree(tree(0))[0]
    s = relax(after(RULES[name].optimizer, STEPS), w)
    brute, derived = averages(response, s, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-10), brute, derived)
