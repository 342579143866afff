"""What `simulate` takes from Python, and refuses in one line with argument, value and remedy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import centralflow_eqx as cf

W = np.array([1.0, 0.5])


def bowl(w):
    return w @ w / 2


def run(loss=bowl, optimizer=None, w=W, **options):
    options = {"steps": 2, "processes": ["discrete"]} | options
    return list(cf.simulate(loss, optimizer or cf.optimizers.GD(0.1), w, **options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"record_every": 0}, "record_every must be a whole number >= 1, got 0"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number >= 1, got 2.5"),
        ({"warm_start": -1}, "warm_start must be a whole number >= 0, got -1"),
        ({"settings": cf.Settings(substeps=0)}, "settings.substeps must be a whole number >= 1"),
        ({"settings": cf.Settings(tol=-1.0)}, "settings.tol must be a number > 0, got -1.0"),
        ({"settings": cf.Settings(initial=3)}, "settings.initial must be <= 2, the number of wei"),
        (
            {"settings": cf.Settings(state_rate="forward")},
            "state_rate must be one of 'backward', 'exponential', got 'forward'",
        ),
        (
            {"processes": "central"},
            r"processes must be a list such as \['central'\], got 'central'",
        ),
        ({"processes": []}, "processes must be a list"),
        ({"processes": ["centrl"]}, r"got 'centrl' \(did you mean 'central'\?\)"),
        ({"processes": ["central", "central"]}, "processes has 'central' twice"),
        ({"optimizer": optax.adam}, "optimizer must be an optimizer such as"),
        ({"w": W.astype(np.float16)}, "w must be of float32 or float64, got float16: convert it"),
        ({"w": jnp.asarray(W, jnp.bfloat16)}, "w must be of float32 or float64, got bfloat16"),
        ({"w": np.array([1, 2])}, "w must be of float32 or float64, got int64: convert it"),
        ({"w": np.array([1.0, np.nan])}, "w must be finite, 1 of its 2 entries are not"),
        ({"w": {"a": "text"}}, "w must be an array .d., or a pytree with arrays"),
        ({"w": {"a": W}, "unravel": lambda w: w}, "unravel is for flat weights"),
        (
            {"loss": lambda w: w},
            r"loss: the function must return an array of shape \[\], got \[2\]",
        ),
        ({"loss": lambda w: w.missing}, "loss: the function raises AttributeError"),
    ],
)
def test_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        run(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lr", [-0.1, 0, np.inf, np.nan])
def test_learning_rates_are_positive(lr):
    with pytest.raises(ValueError, match="must be a number greater than 0 or a schedule"):
        cf.optimizers.GD(lr)


def test_a_bare_transformation_of_optax_is_an_optimizer():
    ours, theirs = (run(optimizer=o)[1].weights["discrete"] for o in (None, optax.sgd(0.1)))
    np.testing.assert_allclose(theirs, ours, rtol=1e-15)


class Net(eqx.Module):
    matrix: jax.Array
    bias: jax.Array
    activation: object = jnp.tanh

    def __call__(self, x):
        return self.activation(self.matrix @ x) + self.bias


def test_weights_may_be_a_pytree():
    """In the order of its leaves; the loss and the optimizer get it as it is."""
    net = Net(jnp.array([[0.5, -1.0], [2.0, 0.25]]), jnp.array([0.1, 0.2]))
    x, y = jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])

    def loss(net):
        return jnp.sum((net(x) - y) ** 2) / 2

    rows = run(loss, w=net, processes=["discrete", "central"], steps=3)
    flat = np.concatenate([np.ravel(net.matrix), net.bias])
    np.testing.assert_array_equal(rows[0].weights["central"], flat)
    grad = eqx.filter_grad(loss)(net)
    step = 0.1 * np.concatenate([np.ravel(grad.matrix), grad.bias])
    np.testing.assert_allclose(rows[1].weights["discrete"], flat - step, rtol=1e-6)


def test_a_matrix_of_weights():
    rows = run(lambda w: jnp.sum(w**2) / 2, w=np.ones((2, 3)))
    np.testing.assert_allclose(rows[1].weights["discrete"], 0.9 * np.ones(6))
