"""Every registered optimizer against the contract, and each one's arithmetic by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _losses import TinyMLP, quick_compilation  # noqa: F401

from centralflow_eqx.optimizers import GD, OPTIMIZERS, RMSProp, ScalarRMSProp
from centralflow_eqx.response import Rule, relax

LINEAR = {"schedule": "linear", "init_value": 0.1, "end_value": 0.0, "transition_steps": 10}
OPTIONS = {
    "plain": {"lr": 0.1},
    "scheduled": {"lr": LINEAR},
    "eps": {"lr": 0.1, "eps": 1e-3},
    "debiased": {"lr": 0.1, "bias_correction": True},
    "forgetful": {"lr": 0.1, "beta2": 0.0, "bias_correction": True},
}


def make(name, options):
    return OPTIMIZERS[name](**options)


CONFIGURED = [
    pytest.param(make(name, options), id=f"{name}-{label}")
    for name in OPTIMIZERS.names()
    for label, options in OPTIONS.items()
    if options.keys() <= {f.name for f in dataclasses.fields(OPTIMIZERS[name])}
]
every_optimizer = pytest.mark.parametrize("optimizer", CONFIGURED)


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


def forms(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@every_optimizer
def test_shapes_and_dtypes_are_kept(optimizer, dtype):
    params, before = example(dtype), optimizer.init(example(dtype))
    step, state = run(optimizer, 3, params, lambda i: example(dtype, i))
    assert forms(step) == forms(params)
    assert forms(state) == forms(before)
    floating = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x == dtype for x in floating)


@every_optimizer
def test_jit_changes_nothing(optimizer):
    params = example()
    _, state = run(optimizer, 2, params, lambda i: example(seed=i))
    close(
        jax.jit(optimizer.update)(example(seed=5), state, params),
        optimizer.update(example(seed=5), state, params),
    )


@every_optimizer
def test_the_first_step_descends(optimizer):
    params, grad = example(), example(seed=1)
    step, _ = optimizer.update(grad, optimizer.init(params), params)
    assert sum(jnp.vdot(s, g) for s, g in zip(*map(jax.tree.leaves, (step, grad)), strict=True)) < 0


@pytest.mark.parametrize("dead", ["one leaf", "everything"])
@every_optimizer
def test_weights_without_gradient_stay_finite(optimizer, dead):
    """Values and derivatives by gradient, state and weights, as a flow takes them."""
    rule = Rule(optimizer, TinyMLP.unravel)
    w = jnp.linspace(-1, 1, TinyMLP.SIZE)
    g = w.at[25:30].set(0) if dead == "one leaf" else jnp.zeros_like(w)
    s = relax(rule.init(w), w)
    for _ in range(2):
        tangents = jax.tree.map(jnp.ones_like, (g, s, w))
        out, tangent = jax.jvp(rule.update, (g, s, w), tangents)
        assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((out, tangent)))
        assert jnp.all(out[0][g == 0] == 0)
        s = out[1]


@every_optimizer
def test_counters_count_in_integers_and_between_them(optimizer):
    params, grad = example(), example(seed=1)
    _, state = run(optimizer, 3, params, lambda i: grad)
    assert state.count.dtype == jnp.int32
    assert state.count == 3
    step, relaxed = optimizer.update(grad, relax(state, jnp.zeros(1)), params)
    close(step, optimizer.update(grad, state, params)[0])
    assert relaxed.count.dtype == jnp.float64
    halfway = relax(state, jnp.zeros(1))._replace(count=jnp.asarray(2.5))
    assert optimizer.update(grad, halfway, params)[1].count == 3.5


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


@every_optimizer
def test_the_rate_of_a_step_is_the_schedule_at_the_steps_before_it(optimizer):
    params, grad = example(), example(seed=1)
    scheduled = dataclasses.replace(optimizer, lr=LINEAR)
    constant = dataclasses.replace(optimizer, lr=1.0)
    state = scheduled.init(params)
    for i in range(12):
        unit = constant.update(grad, state, params)[0]
        step, state = scheduled.update(grad, state, params)
        close(step, jax.tree.map(lambda u, i=i: max(0.1 - 0.01 * i, 0) * u, unit))


OPTAX = {
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
