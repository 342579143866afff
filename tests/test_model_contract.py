"""What every model of the registry has to fulfil."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _marks import quick
from _models import CASES, by_leaf, small_task

from centralflow_eqx.engine.curvature import third_derivative
from centralflow_eqx.models import MODELS

STEP = 1e-4

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
# The derivatives of a network of every kind of layer.
BY_NAME = {case.name: case for case in CASES}
each_derivative = pytest.mark.parametrize("name", quick(BY_NAME, "mlp", "cnn", "lstm"))


def test_every_model_has_a_case():
    assert {type(case.model) for case in CASES} == {MODELS[name] for name in MODELS.names()}


def unit(v):
    return v / np.linalg.norm(v)


def directions(task):
    """Along every leaf, and along all of them at once, as rows."""
    rng, starts = np.random.default_rng(2), 0
    rows = [unit(rng.normal(size=task.num_parameters))]
    for part in by_leaf(task, task.initial_weights).values():
        row = np.zeros(task.num_parameters)
        row[starts : starts + part.size] = rng.normal(size=part.size)
        rows.append(unit(row))
        starts += part.size
    return jnp.asarray(np.array(rows))


@functools.cache
def derivatives(case):
    """Loss, gradient and products with `directions`; third derivatives; slopes of the former.

    Slopes and third derivatives are along the first direction; slopes are central differences of
    fourth order.
    """
    task = small_task(case)
    w, U = task.initial_weights, directions(task)

    def at(w):
        def along(u):
            (value, gradient), (_, product) = jax.jvp(jax.value_and_grad(task), (w,), (u,))
            return value, gradient, product

        values, gradients, products = jax.lax.map(along, U)
        return values[0], gradients[0], products

    @jax.jit
    def compute(w):
        points = w + STEP * jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0])[:, None] * U[0]
        f = jax.lax.map(at, points)
        slopes = jax.tree.map(lambda f: (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * STEP), f)
        third = jax.lax.map(lambda u: third_derivative(task, w, u, U[0]), U)
        return jax.tree.map(lambda f: f[2], f), third, slopes

    return task, U, *compute(w)


@each_derivative
def test_gradient_and_hessian_are_the_slopes_of_loss_and_gradient(name):
    _, U, (_, gradient, products), _, (slope, gradient_slope, _) = derivatives(BY_NAME[name])
    np.testing.assert_allclose(slope, gradient @ U[0], rtol=1e-8)
    scale = jnp.abs(products[0]).max()
    np.testing.assert_allclose(gradient_slope, products[0], rtol=0, atol=1e-8 * scale)


@each_derivative
def test_third_derivatives_are_the_slopes_of_hessian_vector_products(name):
    task, _, _, third, (_, _, slopes) = derivatives(BY_NAME[name])
    # both contractions with a direction: one leaf's, or all of them
    for row, slope in zip(third, slopes, strict=True):
        found, expected = by_leaf(task, row), by_leaf(task, slope)
        for leaf in found:
            error = np.linalg.norm(found[leaf] - expected[leaf])
            assert error < 1e-5 * np.linalg.norm(expected[leaf]), leaf


@pytest.mark.slow
@each_case
def test_third_derivatives_are_the_gradient_of_the_second_derivative(case):
    """Forward over forward over reverse against reverse over forward over forward."""
    task = small_task(case)
    w = task.initial_weights
    u, v = jnp.asarray(np.random.default_rng(3).normal(size=(2, w.size)))

    def slope(f, direction):
        return lambda w: jax.jvp(f, (w,), (direction,))[1]

    expected = jax.jit(jax.grad(slope(slope(task, u), v)))(w)
    found = jax.jit(lambda w: third_derivative(task, w, u, v))(w)
    assert np.linalg.norm(found - expected) < 1e-10 * np.linalg.norm(found)


@each_derivative
def test_every_parameter_matters(name):
    task, _, (_, gradient, products), third, _ = derivatives(BY_NAME[name])
    for vector in (gradient, products[0], third[0]):
        for leaf, part in by_leaf(task, vector).items():
            assert np.linalg.norm(part) > 1e-8 * np.linalg.norm(vector), leaf


@each_case
def test_number_of_parameters(case):
    assert small_task(case).num_parameters == case.parameters


@each_case
def test_same_key_same_network(case):
    first, again, other = (
        case.model.build(case.interface, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert eqx.tree_equal(first, again)
    assert not eqx.tree_equal(first, other)


@each_case
def test_outputs_are_the_same_compiled_or_not_and_every_time(case):
    task = small_task(case, n=1)
    network = eqx.combine(task.unravel(task.initial_weights), task._static)
    x = task.train_inputs[0]
    eager, compiled = network(x), eqx.filter_jit(network)
    positions = case.interface.shape[:1] if case.interface.per_position else ()
    assert eager.shape == (*positions, case.interface.outputs)
    np.testing.assert_allclose(compiled(x), eager, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(compiled(x), compiled(x))


@each_case
def test_single_precision_stays_single(case):
    task = small_task(case, dtype="float32")
    w = task.initial_weights
    traced = jax.make_jaxpr(lambda w: third_derivative(task, w, w, w))(w)
    assert [v.aval.dtype for v in traced.jaxpr.outvars] == [jnp.float32]
    assert "f64" not in str(traced)
