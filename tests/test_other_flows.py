"""The ablated and the stationary flow, the optimizer on mini-batches, and what stabilises."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import TinyMLP

from centralflow_eqx.data import Dataset
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.errors import UnsupportedRule
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.losses import MSE
from centralflow_eqx.models import MLP, Interface
from centralflow_eqx.optimizers import GD, ScalarRMSProp
from centralflow_eqx.task import Minibatch, Task

LR, BETA2 = 0.3, 0.9


class Slope(eqx.Module):
    """S(y) x^2 / 2 - slope y with S = 2 + y^2: the way down leads to sharper ground."""

    slope: float = 0.05

    def __call__(self, w):
        return (2 + w[1] ** 2) * w[0] ** 2 / 2 - self.slope * w[1]


def sharpness(w):
    return 2 + w[1] ** 2


def run(optimizer, start, processes, steps, substeps=4, **options):
    return list(
        simulate(
            Slope(),
            optimizer,
            jnp.asarray(start),
            processes=processes,
            steps=steps,
            settings=Settings(substeps=substeps, **options),
        )
    )


def test_without_oscillation_there_is_nothing_to_ablate():
    rows = run(GD(0.1), [0.3, 0.5], ["central", "ablated"], 10)
    assert [row.comparisons["distance/central-ablated"] for row in rows] == [0.0] * 10


def test_the_ablated_flow_keeps_the_oscillation_but_not_its_pull():
    # At the edge of stability gradient descent's curvature penalty cancels the slope exactly;
    # without it y goes on with slope.
    lr = 0.4
    y = np.sqrt(2 / lr - 2)
    rows = run(GD(lr), [0.0, y], ["central", "ablated"], 3)
    central, ablated = (
        np.array([row.weights[name][1] for row in rows]) for name in ("central", "ablated")
    )
    np.testing.assert_allclose(central, y, rtol=1e-10)
    np.testing.assert_allclose(np.diff(ablated), lr * Slope.slope, rtol=1e-10)
    assert all(row.series["ablated"]["sigma_eigenvalues"][0] > 0 for row in rows)


def test_what_stabilises_gradient_descent_is_falling_curvature():
    rows = run(GD(0.4), [0.0, np.sqrt(3)], ["central"], 2)
    assert rows[1].series["central"]["stabilised_by_state"] == 0


def test_share_of_the_state_in_stabilising_scalar_rmsprop():
    # theory of one critical eigenvalue: c S^2/lr^2 against |grad S|^2 / 2, c = (1 - b)/b
    rows = run(
        ScalarRMSProp(LR, BETA2),
        [0.0, 1.0],
        ["central"],
        60,
        substeps=1,
        state_rate="backward",
    )
    late = [row for row in rows[30:] if row.series["central"]["sigma_eigenvalues"][0] > 1e-6]
    assert len(late) == 30
    for row in late:
        w = row.weights["central"]
        S, gradient = sharpness(w), 2 * w[1]
        state = (1 - BETA2) / BETA2 * S**2 / LR**2
        expected = state / (state + gradient**2 / 2)
        found = row.series["central"]["stabilised_by_state"]
        np.testing.assert_allclose(found, expected, rtol=2e-2)


def test_the_stationary_flow_of_scalar_rmsprop():
    # lr / sqrt(nu) = 2 / S, and sigma^2 = lr^2/4 - |g|^2/S^2 pulls towards smaller S
    rows = run(ScalarRMSProp(LR, BETA2), [0.0, 1.0], ["stationary"], 8, substeps=2)
    dt, expected = 0.5, np.array([0.0, 1.0])
    # The flow asks for 1e-4 of nu, of which the step size has half.
    for row in rows:
        np.testing.assert_allclose(row.weights["stationary"], expected, rtol=2e-4, atol=1e-13)
        series = row.series["stationary"]
        np.testing.assert_allclose(series["effective_step"], 2 / sharpness(expected), rtol=2e-4)
        for _ in range(2):
            S, g = sharpness(expected), np.array([0.0, -Slope.slope])
            variance = LR**2 / 4 - g @ g / S**2
            pull = np.array([0.0, 2 * expected[1]]) * variance / 2
            expected = expected - dt * 2 / S * (g + pull)


def test_the_stationary_flow_is_what_fast_statistics_tend_to():
    def distance(beta2):
        optimizer = ScalarRMSProp(LR, beta2)
        rows = run(optimizer, [0.0, 1.0], ["central", "stationary"], 40, state_rate="backward")
        return rows[-1].comparisons["distance/central-stationary"]

    assert distance(0.5) < distance(0.9) / 2


# ------------------------------------------------------------------------------- mini-batches


def task(n=12):
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(n, 3)), rng.integers(0, 3, n), None, None, 3)
    return Task(MLP((4,)).build(Interface((3,), 3), jr.key(0)), MSE(), data, "float64")


def test_an_epoch_has_every_example_once():
    whole, key = task(), jr.key(3)
    w = whole.initial_weights
    batches = Minibatch(whole, 4)
    epochs = [[float(batches(w, jnp.asarray(3 * e + i), key)) for i in range(3)] for e in (0, 1)]
    for losses in epochs:
        np.testing.assert_allclose(np.mean(losses), whole(w), rtol=1e-12)
    assert np.abs(np.array(epochs[0]) - epochs[1]).min() > 1e-6


@pytest.mark.parametrize("size", [12, 3])
def test_the_optimizer_on_mini_batches(size):
    whole = task()
    rows = list(
        simulate(
            whole,
            GD(0.1),
            whole.initial_weights,
            processes=["discrete", "discrete_minibatch"],
            steps=6,
            unravel=whole.unravel,
            minibatch=Minibatch(whole, size),
        )
    )
    last = rows[-1].comparisons["distance/discrete-discrete_minibatch"]
    moved = rows[-1].series["discrete"]["distance_moved"]
    assert last < 1e-12 * moved if size == 12 else last > 1e-3 * moved
    loss = rows[-1].series["discrete_minibatch"]["train_loss"]
    np.testing.assert_allclose(loss, whole(rows[-1].weights["discrete_minibatch"]), rtol=1e-12)


def test_mini_batches_have_to_be_given():
    with pytest.raises(UnsupportedRule, match=r"minibatch\.size"):
        simulate(
            TinyMLP.make(),
            GD(0.1),
            jnp.ones(TinyMLP.SIZE),
            processes=["discrete_minibatch"],
            steps=1,
        )
