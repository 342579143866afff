"""The training loss of flat weights, against values worked out by hand or with NumPy."""

import inspect
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from centralflow_eqx.data import Dataset, Moons
from centralflow_eqx.engine.curvature import third_derivative
from centralflow_eqx.errors import OptionError
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.losses import MSE, CrossEntropy
from centralflow_eqx.models import MLP, Interface
from centralflow_eqx.spec import load_spec
from centralflow_eqx.task import Forward, FunctionTask, Memory, Task, make_task

SPEC = """\
name: small
precision: {precision}
data: {{type: npz, path: data.npz}}
model: {{type: mlp, widths: [3, 4]}}
loss: {{type: mse}}
optimizer: {{type: gd, lr: 0.4}}
processes: [discrete]
steps: 5
"""


@pytest.fixture
def spec_at(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        inputs=rng.normal(size=(6, 2)),
        labels=[-1, 1, 1, -1, 1, -1],
        w0=rng.normal(size=30),
    )

    def spec_at(precision="float64", *overrides):
        (tmp_path / "s.yaml").write_text(SPEC.format(precision=precision))
        return load_spec(tmp_path / "s.yaml", overrides)

    return spec_at


def test_mse_of_two_classes_has_targets_of_plus_and_minus_one():
    outputs, labels = jnp.array([[0.5], [3.0]]), jnp.array([0, 1])
    # targets -1 and 1: (1.5^2 + 2^2) / 2 / 2
    assert MSE()(outputs, labels) == pytest.approx(1.5625)


def test_mse_of_more_classes_has_one_hot_targets():
    outputs, labels = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), jnp.array([1, 2])
    # squared errors 1 + 1 + 0 and 1: half of their mean
    assert MSE()(outputs, labels) == pytest.approx(0.75)


def test_cross_entropy():
    loss = CrossEntropy()
    three = loss(jnp.array([[0.0, math.log(2.0), 0.0], [5.0, 5.0, 5.0]]), jnp.array([1, 0]))
    assert three == pytest.approx((math.log(2) + math.log(3)) / 2)
    one = loss(jnp.array([[math.log(3.0)], [math.log(3.0)]]), jnp.array([1, 0]))
    assert one == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_loss_of_flat_weights_in_the_order_of_the_layers(spec_at, tmp_path):
    spec = spec_at("float64", f"init={{path: {tmp_path}/data.npz, key: w0}}")
    task = build_task(spec)
    file = np.load(tmp_path / "data.npz")
    w, x, y = file["w0"], file["inputs"], file["labels"]
    np.testing.assert_array_equal(task.initial_weights, w)
    assert task.num_parameters == 30
    # weights [out, in] row by row, then the bias, layer after layer
    sizes, at, h = (2, 3, 4, 1), 0, x
    erf = np.vectorize(math.erf)
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        weight = w[at : at + n_in * n_out].reshape(n_out, n_in)
        bias = w[at + n_in * n_out : at + n_in * n_out + n_out]
        at += n_in * n_out + n_out
        h = h @ weight.T + bias
        if at < 30:
            h = 0.5 * h * (1 + erf(h / np.sqrt(2)))
    assert float(task(jnp.asarray(w))) == pytest.approx(
        0.5 * np.mean((h[:, 0] - y) ** 2), rel=1e-13
    )
    assert float(task.evaluate(jnp.asarray(w))["train_accuracy"]) == np.mean(
        (h[:, 0] > 0) == (y > 0)
    )


def test_unravel_inverts_the_flat_order(spec_at):
    task = build_task(spec_at())
    w = jnp.arange(30.0)
    params = task.unravel(w)
    assert params.layers[1].weight.shape == (4, 3)
    np.testing.assert_array_equal(params.layers[0].bias, [6.0, 7.0, 8.0])
    np.testing.assert_array_equal(jnp.concatenate([p.ravel() for p in jax.tree.leaves(params)]), w)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_precision_is_that_of_weights_data_and_loss(spec_at, precision):
    task = build_task(spec_at(precision))
    w = task.initial_weights
    loss, gradient = jax.jit(jax.value_and_grad(task))(w)
    assert w.dtype == task.train_inputs.dtype == loss.dtype == gradient.dtype == precision


def test_initial_weights_of_both_precisions_agree(spec_at):
    single, double = (build_task(spec_at(p)).initial_weights for p in ("float32", "float64"))
    np.testing.assert_array_equal(single, double.astype(jnp.float32))


def test_initial_weights_depend_on_the_seed_only(spec_at):
    first, same, other = (
        build_task(spec_at("float64", *o)).initial_weights for o in ((), ("steps=9",), ("seed=1",))
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_tasks_of_equal_structure_share_one_compilation(spec_at):
    traces = []

    @eqx.filter_jit
    def loss(task, w):
        traces.append(None)
        return task(w)

    for seed in (0, 0, 1):
        task = build_task(spec_at("float64", f"seed={seed}"))
        loss(task, task.initial_weights)
    assert len(traces) == 1


def test_data_are_arguments_of_the_compiled_loss(spec_at):
    task = build_task(spec_at())
    arrays, rest = eqx.partition(task, eqx.is_array)
    closed = jax.make_jaxpr(lambda a, w: eqx.combine(a, rest)(w))(arrays, task.initial_weights)
    assert all(np.size(constant) <= 1 for constant in closed.consts)


@pytest.mark.parametrize(
    ("loss", "activation", "classes"),
    [
        (MSE(), "gelu", 2),
        (MSE(), "silu", 3),
        (CrossEntropy(), "tanh", 2),
        (CrossEntropy(), "softplus", 3),
    ],
)
def test_three_derivatives(loss, activation, classes):
    rng = np.random.default_rng(1)
    data = Dataset(
        rng.normal(size=(5, 2)), np.array([0, 1, classes - 1, 0, 1]), None, None, classes
    )
    outputs = 1 if classes == 2 else classes
    network = MLP((3,), activation).build(Interface((2,), outputs), jax.random.key(0))
    task = Task(network, loss, data, "float64")
    direction = jnp.asarray(rng.normal(size=task.num_parameters))

    def along(t):
        return task(task.initial_weights + t * direction)

    derivatives = [along]
    for _ in range(3):
        derivatives.append(jax.grad(derivatives[-1]))
    values = jax.jit(jax.vmap(lambda t: [f(t) for f in derivatives]))(jnp.array([-1e-5, 0, 1e-5]))
    for lower, upper in zip(values[:-1], values[1:], strict=True):
        assert float(upper[1]) == pytest.approx(
            float(lower[2] - lower[0]) / 2e-5, rel=1e-6, abs=1e-6
        )


def test_scores_of_a_linear_model_by_hand():
    class Identity(eqx.Module):
        scale: jax.Array

        def __call__(self, x):
            return self.scale * x

    train, test = np.eye(3), np.array([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    data = Dataset(train, np.array([0, 1, 0]), test, np.array([1, 1]), 3)
    task = Task(Identity(jnp.ones(3)), MSE(), data, "float64")
    scores = task.evaluate(jnp.ones(3))
    assert float(task(jnp.ones(3))) == pytest.approx(1 / 3)  # the third: (1 + 1) / 2 / 3
    assert set(scores) == {"train_accuracy", "test_loss", "test_accuracy"}
    assert float(scores["train_accuracy"]) == pytest.approx(2 / 3)
    assert float(scores["test_accuracy"]) == 0.5
    assert float(scores["test_loss"]) == pytest.approx(1.0)  # errors 0 and (2, 0, 0)


def test_relu_warns():
    with pytest.warns(UserWarning, match="relu has kinks"):
        MLP((2,), "relu").build(Interface((2,), 1), jax.random.key(0))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", "x", "a whole number from 0 to 2**32 - 1, got 'x'"),
        ("seed", -1, "got -1"),
        ("seed", 1.5, "got 1.5"),
        ("dtype", "float16", "float32 or float64, got float16"),
        ("dtype", "spam", "got 'spam'"),
        ("memory", 3, "a Memory, such as centralflow_eqx.task.Memory(microbatch=100), got 3"),
        ("memory", Memory(microbatch=-1), "microbatch must be a whole number >= 0, got -1"),
    ],
)
def test_arguments_that_no_task_can_have(option, value, message):
    unchecked = inspect.unwrap(make_task)  # users' types are not checked on their way in
    with pytest.raises(OptionError) as caught:
        unchecked(Moons(n=30), MLP((4,)), MSE(), **{option: value})
    assert caught.value.option == option and message in caught.value.message


def test_a_task_says_in_a_line_what_it_is():
    task = make_task(Moons(n=30), MLP((4,)), MSE())
    expected = "Task(MSE of 30 training and 30 test examples [2], 17 weights, float32)"
    assert repr(task) == str(task) == expected


def test_a_task_of_a_function_does_so_too():
    def quartic(w):
        return jnp.sum(w**4)

    named = FunctionTask(quartic, jnp.ones(3, jnp.float32))
    assert repr(named).startswith("FunctionTask(test_a_task_of_a_function")
    assert repr(named).endswith("quartic of 3 weights, float32)")


def test_networks_in_bfloat16_leave_third_derivatives_exact_unless_asked():
    """Numbers of eight bits err by 2^-9 each; a network of two layers by some times that."""

    def derivatives(*forward):
        task = make_task(Moons(n=30), MLP((8,), "tanh"), MSE(), forward=Forward(*forward))
        w = task.initial_weights
        return jax.grad(task)(w), third_derivative(task, w, w, w), task(w).dtype

    def far(a, b):
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))

    gradient, third, _ = derivatives()
    rough, exact, dtype = derivatives("bfloat16")
    assert 2**-12 < far(rough, gradient) < 2**-4
    np.testing.assert_array_equal(exact, third)
    assert dtype == jnp.float32
    assert 2**-12 < far(derivatives("highest", "bfloat16")[1], third) < 2**-2
