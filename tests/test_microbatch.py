"""A loss summed microbatch by microbatch is the loss: value, three derivatives and scores."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from centralflow_eqx.data import Dataset
from centralflow_eqx.losses import MSE, CrossEntropy
from centralflow_eqx.models import MLP, Interface
from centralflow_eqx.task import Memory, Task

N, TEST_N = 7, 5


class RunningMean(eqx.Module):
    """Outputs at every position from the mean of the tokens so far."""

    embedding: Float[Array, "tokens width"]
    output: Float[Array, "width tokens"]

    def __call__(self, x: Int[Array, " length"]) -> Float[Array, "length tokens"]:
        sums = jnp.cumsum(jax.nn.one_hot(x, 4, dtype=self.output.dtype) @ self.embedding, axis=0)
        return jnp.tanh(sums / jnp.arange(1, len(x) + 1)[:, None]) @ self.output


def perceptron(memory, ignored=False):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=N)
    data = Dataset(
        rng.normal(size=(N, 2)), labels, rng.normal(size=(TEST_N, 2)), np.arange(TEST_N) % 3, 3
    )
    network = MLP((4,), "tanh").build(Interface((2,), 3), jax.random.key(0))
    task = Task(network, CrossEntropy(0.1), data, "float64", memory=memory)
    marked = task.train_answers.at[jnp.array([1, 6])].set(-1)
    return eqx.tree_at(lambda task: task.train_answers, task, marked) if ignored else task


def sequences(memory):
    rng = np.random.default_rng(1)
    tokens, labels = rng.integers(4, size=(2, N + TEST_N, 5))
    labels[rng.random(labels.shape) < 0.4] = -1
    labels[2] = -1
    data = Dataset(tokens[:N], labels[:N], tokens[N:], labels[N:], 4, 4)
    network = RunningMean(*(jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (3, 4))))
    return Task(network, MSE(), data, "float64", memory=memory)


@eqx.filter_jit
def measured(task):
    """Loss, gradient, H v, the gradient of v^T H v, and the scores, at random w and v."""
    w, v = np.random.default_rng(2).normal(size=(2, task.num_parameters))

    def product(w):
        return jax.jvp(jax.grad(task), (w,), (jnp.asarray(v),))[1]

    w = jnp.asarray(w)
    cubic = jax.grad(lambda w: jnp.vdot(product(w), v))(w)
    return task(w), jax.grad(task)(w), product(w), cubic, task.evaluate(w)


def compare(task, whole):
    for found, expected in zip(
        jax.tree.leaves(measured(task)), jax.tree.leaves(whole), strict=True
    ):
        assert np.linalg.norm(expected) > 1e-3
        assert np.linalg.norm(found - expected) <= 1e-10 * np.linalg.norm(expected)


@pytest.fixture(scope="module")
def whole():
    """What the loss of all examples at once gives."""
    return {make: measured(make(Memory())) for make in (perceptron, sequences)}


# 1 divides the number of examples, 3 leaves 1 over, 5 leaves 2, and 9 is more than there are
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_microbatches_of_examples(whole, size):
    compare(perceptron(Memory(size)), whole[perceptron])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_microbatches_of_sequences_with_ignored_positions(whole, size):
    compare(sequences(Memory(size)), whole[sequences])


@pytest.mark.parametrize("memory", [Memory(remat=True), Memory(3, remat=True)])
def test_recomputed_activations(whole, memory):
    compare(perceptron(memory), whole[perceptron])


def test_ignored_examples_are_examples_that_are_not_there(whole):
    ignored = perceptron(Memory(3), ignored=True)
    kept = np.flatnonzero(ignored.train_answers >= 0)
    fewer = eqx.tree_at(
        lambda task: (task.train_inputs, task.train_answers),
        perceptron(Memory()),
        (ignored.train_inputs[kept], ignored.train_answers[kept]),
    )
    assert len(kept) == N - 2
    expected = measured(fewer)
    compare(ignored, expected)
    assert float(expected[0]) != pytest.approx(float(whole[perceptron][0]), rel=1e-3)


def test_microbatches_are_scanned():
    """The layers' products are part of a scan: there is one microbatch at a time."""

    def primitives(size):
        task = perceptron(Memory(size))
        jaxpr = jax.make_jaxpr(task)(task.initial_weights)
        return {equation.primitive.name for equation in jaxpr.eqns} & {"scan", "dot_general"}

    assert primitives(0) == {"dot_general"}
    assert primitives(3) == {"scan"}
