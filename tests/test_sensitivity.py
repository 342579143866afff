"""Derivatives of a central flow's prediction, against differences of whole runs."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _losses import symmetric
from _marks import quick

import centralflow_eqx as cf
from centralflow_eqx.engine.complementarity import solve_complementarity
from centralflow_eqx.engine.implicit import covariance
from centralflow_eqx.engine.loop import checkpointed_scan
from centralflow_eqx.engine.symmetric import svec

EULER = cf.Settings(method="euler", substeps=2, tol=1e-10)
STEPS = 24
W = np.array([0.1, -0.5, -0.3])
STEP = 1e-5  # of differences: they err by its square, and by rounding over it


def bowl(w):
    """It sharpens downhill; without symmetry to hide behind."""
    x, y, z = w
    return (
        1.5 * x**2 * jnp.exp(0.4 * y + 0.2 * z)
        + jnp.cosh(0.5 * y - 0.1 * x) / 2
        + 0.2 * (z - 0.3 * x * y) ** 2
        - 0.7 * y
    )


def quartic(params):
    return jnp.sum(params["W"] ** 4)


class Ramp(eqx.Module):
    """A learning rate that goes from one value to another."""

    first: float
    last: float

    def __call__(self, count):
        return self.first + (self.last - self.first) * count / STEPS


def with_numbers(rule, where):
    """The rule with other numbers in its fields, whatever types these are declared to have."""
    return lambda p: eqx.tree_at(where, rule, tuple(p))


OPTIMIZERS = {
    "gd": lambda p: cf.optimizers.GD(p[0]),
    "schedule": lambda p: cf.optimizers.GD(Ramp(p[0], p[1])),
    "rmsprop": with_numbers(cf.optimizers.RMSProp(0.1, 0.9), lambda o: (o.lr.rule, o.beta2)),
}
NUMBERS = {
    "gd": [0.45],
    "schedule": [0.4, 0.5],
    "rmsprop": [0.1, 0.9],
}


@functools.cache
def predictor(name, loss=bowl, start=tuple(W)):
    """A flow, and its prediction with derivatives by hyperparameters and weights in a row."""
    make, n = OPTIMIZERS[name], len(NUMBERS[name])
    flow = cf.differentiable_flow(
        loss, make(NUMBERS[name]), np.array(start), steps=STEPS, settings=EULER
    )

    def predicted(p):
        return flow(make(list(p[:n])), p[n:])

    return predicted, jax.jit(jax.value_and_grad(predicted))


def differences(program, p):
    values = [(program(p + e)[0], program(p - e)[0]) for e in STEP * np.eye(len(p))]
    return np.array([(above - below) / (2 * STEP) for above, below in values])


@pytest.mark.parametrize("name", quick(OPTIMIZERS, "gd"))
def test_derivatives_are_those_of_whole_runs_through_the_onset(name):
    _, program = predictor(name)
    p = np.array([*NUMBERS[name], *W])
    rows = cf.simulate(
        bowl,
        OPTIMIZERS[name](NUMBERS[name]),
        W,
        processes=["central"],
        steps=STEPS + 1,
        settings=EULER,
        raw_spectra=False,
    )
    series = [row.series["central"] for row in rows]
    assert series[-1]["sigma_eigenvalues"][0] > 1e-2
    if name == "gd":  # the others' averages are small at first, their steps long
        assert series[0]["sigma_eigenvalues"][0] == 0
    value, slope = program(p)
    np.testing.assert_allclose(value, series[-1]["predicted_loss"], rtol=1e-9)
    np.testing.assert_allclose(slope, differences(program, p), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gd", "rmsprop"])
def test_both_modes_agree(name):
    predicted, program = predictor(name)
    p = np.array([*NUMBERS[name], *W])
    np.testing.assert_allclose(jax.jit(jax.jacfwd(predicted))(p), program(p)[1], rtol=1e-9)


@pytest.mark.slow
def test_eigenvalues_that_are_locked_together_have_a_derivative():
    """Two wells that sharpen together: the eigenvectors of equal eigenvalues turn arbitrarily."""

    def wells(w):
        return jnp.exp(w[0] + 0.1 * w[1] * w[2]) * (w[1] ** 2 + w[2] ** 2) / 2 - 0.2 * w[0]

    start = (0.9, 0.0, 0.0)
    _, program = predictor("gd", wells, start)
    p = np.array([0.6, *start])
    slope = program(p)[1]
    assert slope[0] != 0
    np.testing.assert_allclose(slope, differences(program, p), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("signs", [(-1, -1, -1), (-1, 1, 1), (-1, -1, 1), (1, 1, 1)])
def test_the_derivative_of_a_covariance(signs):
    alpha = jnp.asarray(symmetric(np.array(signs) * [0.3, 0.2, 0.1]))
    beta = jnp.asarray(symmetric(np.linspace(1, 3, 6), seed=1))
    dalpha = jnp.asarray(symmetric([0.5, -0.2, 0.3], seed=2))
    dbeta = jnp.asarray(symmetric(np.linspace(-1, 1, 6), seed=3))

    def solved(t):
        return solve_complementarity(alpha + t * dalpha, beta + t * dbeta, tol=1e-14).X

    solution = solve_complementarity(alpha, beta, tol=1e-14)
    X, dX = jax.jvp(lambda a, b: covariance(a, b, solution), (alpha, beta), (dalpha, dbeta))
    np.testing.assert_allclose(X, solution.X, atol=1e-12)
    slope = (solved(STEP) - solved(-STEP)) / (2 * STEP)
    np.testing.assert_allclose(dX, slope, atol=1e-7 * (1 + np.abs(svec(slope)).max()))


@pytest.mark.parametrize("length", [1, 2, 7, 9])
def test_a_checkpointed_scan_is_a_loop(length):
    def end(x):
        return checkpointed_scan(lambda x, i: jnp.sin(x) + i, x, length)

    def looped(x):
        for i in range(length):
            x = jnp.sin(x) + i
        return x

    np.testing.assert_allclose(end(0.3), looped(0.3), rtol=1e-14)
    np.testing.assert_allclose(jax.grad(end)(0.3), jax.grad(looped)(0.3), rtol=1e-12)


@pytest.mark.slow
def test_a_prediction_that_is_not_valid_is_no_number():
    """There is no room for the second critical direction."""

    def wells(w):
        wide = jnp.sum(w[3:] ** 2) / 20
        return jnp.exp(w[0]) * (w[1] ** 2 + w[2] ** 2) / 2 + wide - 0.2 * w[0]

    start = np.array([0.9, 0.0, 0.0, 0.0, 0.0])
    options = {"steps": 8, "settings": EULER, "directions": 1}
    flow = cf.differentiable_flow(wells, cf.optimizers.GD(0.6), start, **options)
    assert not flow.end(cf.optimizers.GD(0.6), start).valid
    assert np.isnan(jax.grad(lambda lr: flow(cf.optimizers.GD(lr), start))(0.6))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be a whole number >= 1"),
        ({"directions": 0}, ValueError, "directions must be a whole number >= 1"),
        ({"settings": cf.Settings()}, ValueError, "settings.method must be 'euler', got 'adapt"),
        ({"optimizer": optax.sgd(0.1)}, ValueError, "hide"),
        ({"optimizer": "gd"}, ValueError, "must be a rule whose numbers are its fields"),
        (
            {"optimizer": cf.optimizers.Shampoo(0.1), "w": {"W": np.eye(2) + 1.0}, "loss": quartic},
            cf.UnsupportedRule,
            "mixes weights",
        ),
    ],
)
def test_what_has_no_derivative_is_refused(arguments, error, message):
    options = {"loss": bowl, "optimizer": cf.optimizers.GD(0.4), "w": W, "steps": 3}
    with pytest.raises(error, match=message):
        cf.differentiable_flow(**options | arguments)


def test_a_flow_takes_rules_and_weights_of_its_kind():
    rule = cf.optimizers.GD(0.4)
    flow = cf.differentiable_flow(bowl, rule, W, steps=3, settings=EULER)
    with pytest.raises(ValueError, match="optimizer must be a rule such as the flow was made for"):
        flow(cf.optimizers.HeavyBall(0.1), W)
    with pytest.raises(ValueError, match="w must have 3 numbers, got 2"):
        flow(rule, W[:2])
