"""Each optimizer's arithmetic, by hand and against Optax; the contract is in test_contract."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _losses import TinyMLP

from centralflow_eqx.optimizers import (
    GD,
    AdaGrad,
    Adam,
    AdamW,
    DecoupledDecay,
    HeavyBall,
    NAdam,
    Nesterov,
    RMSProp,
    ScalarRMSProp,
    Shampoo,
)

LINEAR = {"schedule": "linear", "init_value": 0.1, "end_value": 0.0, "transition_steps": 10}


def example(dtype=jnp.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"W": (3, 2), "b": (2,), "deep": [(1, 2, 2), ()]}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def close(a, b, tol=1e-13):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


def run(optimizer, steps, params, gradient):
    """Gradient after gradient through the rule: the last step and the state after it."""
    state = optimizer.init(params)
    for i in range(steps):
        step, state = optimizer.update(gradient(i), state, params)
    return step, state


def vector(*entries):
    return jnp.array(entries)


G = vector(3.0, -4.0)


@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [
        (GD(0.5), [(-1.5, 2.0), (-1.5, 2.0)]),
        # nu = 1/4 (9, 16), then 7/16 (9, 16)
        (RMSProp(0.5, 0.75), [(-1.0, 1.0), (-2 / 7**0.5, 2 / 7**0.5)]),
        (
            RMSProp(0.5, 0.75, eps=0.5),
            [(-0.75, 0.8), (-1.5 / (0.75 * 7**0.5 + 0.5), 2 / (7**0.5 + 0.5))],
        ),
        (RMSProp(0.5, 0.75, bias_correction=True), [(-0.5, 0.5), (-0.5, 0.5)]),
        (
            RMSProp(0.5, 0.75, eps=1.0, bias_correction=True),
            [(-1.5 / 4, 2 / 5), (-1.5 / 4, 2 / 5)],
        ),
        # |g|^2 = 25: nu = 25/4, then 7/16 25
        (ScalarRMSProp(0.5, 0.75), [(-0.6, 0.8), (-1.2 / 7**0.5, 1.6 / 7**0.5)]),
        (
            ScalarRMSProp(0.5, 0.75, eps=0.5),
            [(-0.5, 2 / 3), (-1.5 / (1.25 * 7**0.5 + 0.5), 2 / (1.25 * 7**0.5 + 0.5))],
        ),
        (ScalarRMSProp(0.5, 0.75, bias_correction=True), [(-0.3, 0.4), (-0.3, 0.4)]),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, list) else "",
)
def test_two_steps_by_hand(optimizer, steps):
    state = optimizer.init(G)
    for expected in steps:
        step, state = optimizer.update(G, state, G)
        np.testing.assert_allclose(step, expected, rtol=1e-14)


def test_bias_correction_of_changing_gradients():
    optimizer = RMSProp(1.0, 0.75, bias_correction=True)
    step, state = run(optimizer, 2, vector(0.0), lambda i: vector([2.0, 1.0][i]))
    # nu = 3/4 1 + 1/4 1 = 1, debiased by 1 - 9/16
    np.testing.assert_allclose(state.nu, [1.0], rtol=1e-15)
    np.testing.assert_allclose(step, [-(7**0.5) / 4], rtol=1e-15)


def test_scalar_rmsprop_takes_the_norm_over_all_leaves():
    grad = {"a": vector(3.0), "b": jnp.array(-4.0)}
    step, state = ScalarRMSProp(0.5, 0.75).update(grad, ScalarRMSProp(0.5).init(grad), grad)
    assert state.nu == 6.25
    close(step, {"a": vector(-0.6), "b": jnp.array(0.8)})


@pytest.mark.parametrize(
    "optimizer",
    [
        GD(0.1),
        HeavyBall(0.1),
        Nesterov(0.1),
        ScalarRMSProp(0.1),
        RMSProp(0.1),
        Adam(0.1),
        NAdam(0.1),
        AdamW(0.1),
        AdaGrad(0.1),
        Shampoo(0.1),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_rate_of_a_step_is_the_schedule_at_the_steps_before_it(optimizer):
    params, grad = example(), example(seed=1)
    scheduled = dataclasses.replace(optimizer, lr=LINEAR)
    constant = dataclasses.replace(optimizer, lr=1.0)
    state = scheduled.init(params)
    units, steps = jax.jit(constant.update), jax.jit(scheduled.update)
    for i in range(12):
        unit = units(grad, state, params)[0]
        step, state = steps(grad, state, params)
        close(step, jax.tree.map(lambda u, i=i: max(0.1 - 0.01 * i, 0) * u, unit))


ADAM = (0.01, 0.8, 0.9, 1e-3)
OPTAX = {
    "heavy_ball": (HeavyBall(0.02, 0.8), optax.sgd(0.02, 0.8)),
    "nesterov": (Nesterov(0.02, 0.8), optax.sgd(0.02, 0.8, nesterov=True)),
    "adam": (Adam(*ADAM), optax.adam(*ADAM)),
    "nadam": (NAdam(*ADAM), optax.nadam(*ADAM)),
    "adamw": (AdamW(*ADAM, weight_decay=0.3), optax.adamw(*ADAM, weight_decay=0.3)),
    "gd decayed": (
        DecoupledDecay(GD(0.1), 0.1, 0.3),
        optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1)),
    ),
    "adagrad": (AdaGrad(0.1, eps=0.0), optax.adagrad(0.1, 0.0, eps=0.0)),
    "gd": (GD(0.1), optax.sgd(0.1)),
    "rmsprop": (RMSProp(0.01, 0.9), optax.rmsprop(0.01, 0.9, eps=0)),
    "rmsprop eps": (
        RMSProp(0.01, 0.9, eps=1e-2),
        optax.rmsprop(0.01, 0.9, eps=1e-2, eps_in_sqrt=False),
    ),
    "rmsprop debiased": (
        RMSProp(0.01, 0.9, eps=1e-2, bias_correction=True),
        optax.rmsprop(0.01, 0.9, eps=1e-2, eps_in_sqrt=False, bias_correction=True),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_agreement_with_optax(name):
    ours, theirs = OPTAX[name]
    loss = TinyMLP.make()
    start = TinyMLP.unravel(jnp.linspace(-1, 1, TinyMLP.SIZE))

    def trajectory(update, state):
        def step(carry, _):
            params, state = carry
            delta, state = update(jax.grad(loss.of)(params), state, params)
            params = jax.tree.map(jnp.add, params, delta)
            return (params, state), params

        return jax.lax.scan(step, (start, state), length=20)[1]

    expected = trajectory(theirs.update, theirs.init(start))
    close(trajectory(ours.update, ours.init(start)), expected, 1e-10)
