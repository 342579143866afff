"""Losses against values worked out by hand: smoothing, ignored labels, one output and several."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from centralflow_eqx.losses import MSE, CrossEntropy, counted

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
LOSSES = [CrossEntropy(), CrossEntropy(0.3), MSE()]


def test_smoothed_cross_entropy_of_three_classes():
    outputs = jnp.array([[0.0, LN2, 0.0], [0.0, LN2, 0.0]])
    each = CrossEntropy(0.3).each(outputs, jnp.array([1, 2]))
    # probabilities 1/4, 1/2, 1/4 and targets 0.1, 0.8, 0.1 and 0.1, 0.1, 0.8
    np.testing.assert_allclose(each, [0.2 * LN4 + 0.8 * LN2, 0.9 * LN4 + 0.1 * LN2], rtol=1e-14)


def test_smoothed_cross_entropy_of_one_output():
    each = CrossEntropy(0.2).each(jnp.array([[LN3], [LN3]]), jnp.array([1, 0]))
    # probabilities 1/4 and 3/4, targets 0.1 and 0.9
    ones, zeros = LN4 - LN3, LN4
    np.testing.assert_allclose(each, [0.9 * ones + 0.1 * zeros, 0.1 * ones + 0.9 * zeros])


def test_squared_errors_by_hand():
    each = MSE().each(jnp.array([[0.5, 2.0, 0.0], [0.0, 0.0, -1.0]]), jnp.array([1, 2]))
    np.testing.assert_allclose(each, [(0.25 + 1) / 2, 4 / 2], rtol=1e-14)
    np.testing.assert_allclose(MSE().each(jnp.array([[0.5], [3.0]]), jnp.array([0, 1])), [1.125, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_one_output_is_the_difference_of_two(smoothing):
    z, labels = jnp.array([-3.0, 0.2, 40.0, -900.0]), jnp.array([1, 0, 0, 1])
    two = jnp.stack([jnp.zeros(4), z], axis=-1)
    loss = CrossEntropy(smoothing)
    one = loss.each(z[:, None], labels)
    np.testing.assert_allclose(one, loss.each(two, labels), rtol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smoothed_targets_are_where_the_gradient_vanishes(smoothing):
    share = smoothing / 4
    target = np.full(4, share) + np.eye(4)[2] * (1 - smoothing)
    gradient = jax.grad(lambda x: CrossEntropy(smoothing)(x[None], jnp.array([2])))(
        jnp.log(jnp.asarray(target) + 1e-30)
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_ignored_labels_do_not_count(loss, outputs):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, outputs)))
    labels = jnp.array([[-1, 1, 0, -1], [0, -1, -1, 1]])
    kept = np.asarray(labels) >= 0
    np.testing.assert_array_equal(counted(labels), kept)
    each = loss.each(x[kept], labels[kept])
    assert float(loss(x, labels)) == pytest.approx(float(jnp.mean(each)), rel=1e-14)
    total = float(loss.total(x, labels, counted(labels)))
    assert total == pytest.approx(float(jnp.sum(each)), rel=1e-14)
    gradient = jax.grad(loss)(x, labels)
    np.testing.assert_array_equal(gradient[~kept], 0)
    np.testing.assert_allclose(
        gradient[kept], jax.grad(lambda x: loss(x, labels[kept]))(x[kept]), rtol=1e-13
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_positions_are_examples(loss, outputs):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, outputs)))
    labels = jnp.array([[0, 1, 0, 1], [1, 1, 0, 0]])
    assert loss.each(x, labels).shape == (2, 4)
    flat = loss(x.reshape(8, outputs), labels.ravel())
    assert float(loss(x, labels)) == pytest.approx(float(flat), rel=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_single_precision_stays_single(loss, outputs):
    x, labels = jnp.ones((2, outputs), jnp.float32), jnp.array([0, -1], jnp.int32)
    assert loss.each(x, labels).dtype == loss.total(x, labels, counted(labels)).dtype == jnp.float32
    assert loss(x, labels).dtype == jnp.float32
