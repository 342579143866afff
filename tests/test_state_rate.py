"""How the two continuations of the state agree with the discrete rule, and with each other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import flat_rule, warm_state

from centralflow_eqx.engine.response import Response, Structure
from centralflow_eqx.engine.state_rate import Backward, Exponential
from centralflow_eqx.optimizers import (
    GD,
    OPTIMIZERS,
    Adam,
    DecoupledDecay,
    HeavyBall,
    Nesterov,
    RMSProp,
)

D = 6
KEY = jr.key(0)
LINEAR = {"schedule": "linear", "init_value": 0.1, "end_value": 0.0, "transition_steps": 10}
RULES = {name: OPTIMIZERS[name](lr=0.1) for name in OPTIMIZERS.names() if name != "optax"} | {
    "gd scheduled": GD(LINEAR),
    "rmsprop debiased": RMSProp(0.1, 0.9, 1e-3, True),
    "memoryless": HeavyBall(0.1, 0.0),
    "heavy ball": HeavyBall(0.1, 0.6),
    "nesterov": Nesterov(0.1, 0.6),
    "adam": Adam(0.1, 0.6, 0.9),
    "adam decayed": DecoupledDecay(Adam(0.1, 0.6, 0.9), 0.1, 1.0),
}
every_rule = pytest.mark.parametrize("name", RULES)


def example(name):
    """The response of a rule, and `(s, w, g)` after some steps."""
    rule = flat_rule(RULES[name])
    w, g, s = warm_state(rule, D)
    return Response(rule, Structure()), s, w, g


@eqx.filter_jit
def _substep(rate, response, s, w, gradients, excess, dt):
    return rate.substep(response, s, w, gradients, excess, dt)


def substep(rate, response, s, w, gradients, excess, dt):
    """A substep; `dt` is an array, so that all lengths share the compiled code."""
    return _substep(rate, response, s, w, gradients, excess, jnp.asarray(dt))


def zeros(s):
    return jax.tree.map(jnp.zeros_like, s)


def close(a, b, tol=1e-13):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


@every_rule
def test_exponential_with_a_whole_step_is_the_discrete_rule(name):
    response, s, w, _ = example(name)
    v, z = w, s
    for g in jr.normal(KEY, (3, D)):
        step, z = response.rule.update(g, z, v)
        v = v + step
        w, s = substep(Exponential(), response, s, w, (g, g), zeros(s), 1.0)
        close((w, s), (v, z))


@every_rule
def test_exponential_starts_like_the_discrete_rule(name):
    response, _, w, g = example(name)
    before = response.rule.init(w)
    step, after = response.rule.update(g, before, w)
    s = Exponential().start(response, jax.tree.map(lambda x: x * 1.0, before), g, w, 1.0)
    close(substep(Exponential(), response, s, w, (g, g), zeros(s), 1.0), (w + step, after))


@pytest.mark.parametrize("substeps", [1, 2, 4, 32])
def test_a_learning_rate_that_falls_linearly_is_seen_between_steps(substeps):
    """Every step's substeps move the weights as far as the optimizer's step does."""
    response, s, w, g = example("gd scheduled")
    rate, dt = Exponential(), 1 / substeps
    before = response.pre(s, g, w)
    s = rate.start(response, before, g, w, dt)
    for step in range(3):
        moved = jnp.zeros_like(w)
        for _ in range(substeps):
            v, s = substep(rate, response, s, w, (g, g), zeros(s), dt)
            moved = moved + v - w
        lr = 0.1 * (1 - (before.count + step) / 10)
        close(moved, -lr * g, 1e-12)


@every_rule
def test_exponential_substeps_compose_under_a_constant_gradient(name):
    response, s, w, g = example(name)
    whole = response.advance(s, g, w)
    for _ in range(4):
        _, s = substep(Exponential(), response, s, w, (g, g), zeros(s), 0.25)
    close(s, whole)


def test_the_step_of_a_substep_uses_the_mean_gradient_and_the_new_state():
    response, s, w, g = example("heavy ball")
    w_new, s_new = substep(Exponential(), response, s, w, (jnp.nan * g, g), zeros(s), 0.25)
    m = s.m + (1 - 0.6**0.25) / (1 - 0.6) * (0.6 * s.m + g - s.m)
    close(s_new.m, m)
    close(w_new, w - 0.25 * 0.1 * m)


@pytest.mark.parametrize("dt", [1.0, 0.25])
def test_backward_moves_an_average_at_the_papers_rate(dt):
    response, s, w, g = example("rmsprop")
    b, g_mean = 0.99, 1.5 * g
    q = jr.normal(KEY, (D,))
    excess = response.quadratic(s, g, w, q, q)
    w_new, s_new = substep(Backward(), response, s, w, (g, g_mean), excess, dt)
    close(s_new.nu, s.nu + dt * (1 - b) / b * (g**2 + q**2 - s.nu))
    # the weights move with the old post-update state and the mean gradient
    close(w_new, w - dt * 0.1 * g_mean / jnp.sqrt(s.nu))
    close(s_new.count, s.count + dt)


def test_exponential_adds_the_excess_before_its_step():
    response, s, w, g = example("rmsprop")
    q = jr.normal(KEY, (D,))
    excess = response.quadratic(s, g, w, q, q)
    w_new, s_new = substep(Exponential(), response, s, w, (g, g), excess, 0.25)
    nu = s.nu + (1 - 0.99**0.25) * (g**2 + q**2 - s.nu)
    close(s_new.nu, nu)
    close(w_new, w - 0.25 * 0.1 * g / jnp.sqrt(nu), 1e-12)


@pytest.mark.parametrize("rate", [Backward(), Exponential()], ids=["backward", "exponential"])
@every_rule
def test_counters_and_velocity(name, rate):
    """`velocity` is the change of (w, post) in a substep; counters change by dt."""
    response, s, w, g = example(name)
    dw, ds = rate.velocity(response, s, w, g, 0.25)
    close(dw, 0.25 * response.step_from(s, g, w))
    _, s_new = substep(rate, response, s, w, (g, g), zeros(s), 0.25)
    close(ds, jax.tree.map(jnp.subtract, s_new, s))
    if "count" in s._fields:
        assert s_new.count == s.count + 0.25
    if name == "heavy ball" and isinstance(rate, Exponential):
        close(rate.post(response, s, g, w, 0.25), s_new)


@pytest.mark.parametrize("rate", [Backward(), Exponential()], ids=["backward", "exponential"])
def test_rate_is_the_limit_of_small_fractions(rate):
    J, dt = jnp.array([0.05, 0.5, 0.9, 0.999, 1.0]), 1e-7
    np.testing.assert_allclose(rate.fraction(J, dt) / dt, rate.rate(J), rtol=1e-6)


def test_rates_of_an_average_a_counter_and_an_entry_that_forgets():
    J = jnp.array([0.8, 1.0, 0.0])
    close(Backward().rate(J), jnp.array([1.25, 1.0, 1.0]))
    close(Backward().fraction(J, 0.5), jnp.array([0.625, 0.5, 0.5]))
    close(Exponential().rate(J), jnp.array([-np.log(0.8) / 0.2, 1.0, 1.0]))
    # J = 0 is at its target after any time; J = 1 moves uniformly
    close(Exponential().fraction(J, 0.5), jnp.array([(1 - 0.8**0.5) / 0.2, 0.5, 1.0]))
    close(Exponential().fraction(J, 1.0), jnp.ones(3))


def test_rates_are_differentiable_at_the_special_slopes():
    for rate in (Backward(), Exponential()):
        for value in (0.0, 0.5, 1.0):
            tangent = jax.jvp(rate.rate, (jnp.array(value),), (jnp.array(1.0),))[1]
            assert jnp.isfinite(tangent)
