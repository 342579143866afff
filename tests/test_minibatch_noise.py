"""Mini-batch noise in central flows: against all mini-batches there are, and exact averages."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import symmetric
from jaxtyping import Array, Float

from centralflow_eqx.data import Dataset
from centralflow_eqx.engine.noise import BatchNoise
from centralflow_eqx.engine.response import Rule, derive, relax
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.engine.symmetric import smat, svec
from centralflow_eqx.errors import InputError, OptionError, UnsupportedRule
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.drive import chunks, drive
from centralflow_eqx.experiment.kept import keep
from centralflow_eqx.experiment.prepare import prepare
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.experiment.start import identity
from centralflow_eqx.losses import MSE
from centralflow_eqx.models import MLP, Interface
from centralflow_eqx.optimizers import GD, Adam, RMSProp
from centralflow_eqx.optimizers._decay import DecoupledDecay
from centralflow_eqx.processes import Minibatches
from centralflow_eqx.spec import load_spec
from centralflow_eqx.task import ExampleLosses, Minibatch, Task

EULER = Settings(method="euler", critical_above=1.0, track_above=1.0)


def task(n=6, inputs=2):
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(n, inputs)), rng.integers(0, 3, n), None, None, 3)
    return Task(MLP((3,)).build(Interface((inputs,), 3), jr.key(0)), MSE(), data, "float64")


def noise_of(whole, size, epochs=False, rows=None, chunk=0):
    rows = np.arange(whole.train_number) if rows is None else rows
    losses = ExampleLosses(whole)
    return BatchNoise(losses, jnp.asarray(rows), whole.train_number, size, epochs, chunk)


def test_losses_of_examples_make_up_the_training_loss():
    whole = task()
    losses = ExampleLosses(whole)(whole.initial_weights, jnp.arange(6))
    np.testing.assert_allclose(jnp.mean(losses), whole(whole.initial_weights), rtol=1e-14)


def test_examples_have_to_weigh_alike():
    ignored = jnp.array([0, 1, -1, 1, 0, 1])
    whole = eqx.tree_at(lambda task: task.train_answers, task(), ignored)
    with pytest.raises(OptionError, match="as many answers that count"):
        ExampleLosses(whole)


@pytest.mark.parametrize("chunk", [0, 4])
def test_noise_is_that_of_all_mini_batches_there_are(chunk):
    whole, size, k = task(), 2, 3
    w = whole.initial_weights
    U = jnp.asarray(np.random.default_rng(1).normal(size=(w.size, k)))
    noise = noise_of(whole, size, chunk=chunk).along(w, U, jnp.full(k, 1.9), jnp.asarray(2))
    U = U.at[:, 2].set(0)  # two directions count
    subsets = jnp.asarray(list(itertools.combinations(range(6), size)))

    def batch(x, rows):
        return jnp.mean(ExampleLosses(whole)(x, rows))

    g = jax.vmap(lambda rows: U.T @ (jax.grad(batch)(w, rows) - jax.grad(whole)(w)))(subsets)
    A = jax.vmap(lambda rows: U.T @ (jax.hessian(batch)(w, rows) - jax.hessian(whole)(w)) @ U)
    np.testing.assert_allclose(noise.N, jnp.mean(g[:, :, None] * g[:, None], 0), atol=1e-14)
    X = jnp.asarray(symmetric([1.0, 0.3, 2.0]))
    expected = jnp.mean(jax.vmap(lambda A: A @ X @ A)(A(subsets)), 0)
    np.testing.assert_allclose(smat(noise.K @ svec(X), k), expected, atol=1e-14)


def test_statistics_see_the_variance_of_mini_batches():
    whole, size, beta2 = task(), 2, 0.9
    w, rule = whole.initial_weights, Rule(RMSProp(0.01, beta2), identity)
    grad = jax.grad(whole)(w)
    s = relax(rule.update(grad, rule.init(w), w)[1], w)
    response = derive(rule, s, w, grad, jr.key(0))
    found = noise_of(whole, size, chunk=4).excess(response, s, grad, w)
    subsets = jnp.asarray(list(itertools.combinations(range(6), size)))

    def batch(x, rows):
        return jnp.mean(ExampleLosses(whole)(x, rows))

    gradients = jax.vmap(jax.grad(batch), (None, 0))(w, subsets)
    variance = jnp.mean((gradients - grad) ** 2, 0)
    np.testing.assert_allclose(found.nu, (1 - beta2) * variance, rtol=1e-10, atol=1e-16)


def test_a_sample_estimates_what_all_examples_have():
    whole = task(60)
    w, k = whole.initial_weights, jnp.asarray(1)
    U, theta = jnp.ones((w.size, 1)) / w.size**0.5, jnp.ones(1)
    full = noise_of(whole, 6).along(w, U, theta, k).N[0, 0]
    samples = np.random.default_rng(2).permuted(np.tile(np.arange(60), (300, 1)), axis=1)[:, :20]
    along = jax.vmap(lambda rows: noise_of(whole, 6, rows=rows).along(w, U, theta, k).N[0, 0])
    found = np.asarray(along(samples))
    assert abs(found.mean() - full) < 3 * found.std() / 300**0.5  # unbiased


def second_moment(noises, curvatures, r, epochs):
    """Exact mean of c^2 over time, c+ = -(r + a) c + b with the batches' `curvatures` a and
    `noises` b, drawn anew at every step or once in an epoch each."""
    orders = list(itertools.permutations(range(len(noises))))
    steps = len(noises) if epochs else 1
    if not epochs:
        orders = [(i,) for i in range(len(noises))]
    # c and c^2 after so many steps of an epoch are affine in (c, c^2) at its start.
    maps = np.zeros((len(orders), steps + 1, 3, 3))
    for number, order in enumerate(orders):
        maps[number, 0] = np.eye(3)
        for step, i in enumerate(order[:steps]):
            p, q = -(r + curvatures[i]), noises[i]
            one = np.array([[1, 0, 0], [q, p, 0], [q * q, 2 * p * q, p * p]])
            maps[number, step + 1] = one @ maps[number, step]
    mean = maps.mean(axis=0)
    start = np.linalg.solve(np.eye(2) - mean[-1, 1:, 1:], mean[-1, 1:, 0])
    return np.mean([m[2] @ np.array([1, *start]) for m in mean[:-1]])


@pytest.mark.parametrize("epochs", [True, False])
def test_how_epochs_drive_an_oscillation(epochs):
    # Batches of one of five examples; exact, but for the curvature's noise to second order.
    n, r = 5, 0.9
    rng = np.random.default_rng(0)
    b, a = (x - x.mean() for x in rng.normal(size=(2, n)))
    noise = BatchNoise(lambda w, rows: w[rows], jnp.arange(n), n, 1, epochs)
    N = float(noise.additive(jnp.asarray(r))) * b.var(ddof=1)
    k = float(noise.multiplicative(jnp.asarray(r * r))) * a.var(ddof=1)
    still = second_moment(b, 0 * a, r, epochs)
    np.testing.assert_allclose(N / (1 - r * r), still, rtol=1e-12)
    # Over all ways to give curvatures to noises, which correlates them nowhere.
    small = 1e-3
    ways = itertools.permutations(small * a)
    driven = np.mean([second_moment(b, np.array(way), r, epochs) for way in ways])
    np.testing.assert_allclose(driven / still - 1, small**2 * k / (1 - r * r), rtol=0.02)


class Model(eqx.Module):
    """y x^2 / 2 - y/100, of two examples whose gradients by x differ by 2 `b`."""

    b: float

    def __call__(self, w: Float[Array, "2"]) -> Float[Array, ""]:
        return w[1] * w[0] ** 2 / 2 - w[1] / 100

    def each(self, w: Float[Array, "2"], rows):
        return self(w) + self.b * w[0] * jnp.asarray([1.0, -1.0])[rows]


@pytest.mark.parametrize(("b", "off"), [(0.115, 0.1), (0.03, 0.4)])
def test_two_dimensional_model(b, off):
    # y rises until x oscillates with E x^2 = 1/50. The gap of the optimizer itself, by simulation,
    # is that of the flow, but for bursts, which less noise damps less: 4 % and 30 % more.
    lr = 0.3
    model = Model(b)
    noise = BatchNoise(model.each, jnp.arange(2), 2, 1, False)
    rows = list(
        simulate(
            model,
            GD(lr),
            jnp.array([0.0, 1.9 / lr]),
            processes=["central"],
            steps=400,
            settings=EULER,
            minibatch=Minibatches(None, noise),
        )
    )
    series = rows[-1].series["central"]
    np.testing.assert_allclose(lr * series["sigma_eigenvalues"][0], 0.02, rtol=1e-3)
    gap, X = series["sharpness_gap"], series["sigma_eigenvalues"][0]
    np.testing.assert_allclose(X * gap * (2 - gap), lr * b**2, rtol=1e-2)

    rng = np.random.default_rng(0)
    x, y = rng.normal(scale=0.1, size=500), np.full(500, (2 - gap) / lr)
    moments = []
    for step in range(4000):
        signs = rng.choice([-1.0, 1.0], 500)
        x, y = x - lr * (x * y + b * signs), y - lr * (x**2 / 2 - 0.01)
        if step >= 2000:
            moments.append([np.mean(x**2), np.mean((2 - lr * y) * x**2)])
    squares, weighted = np.mean(moments, axis=0)
    np.testing.assert_allclose(squares, 0.02, rtol=2e-3)
    np.testing.assert_allclose(weighted / squares, gap, rtol=off)


@pytest.mark.parametrize(
    "optimizer", [GD(1.0), pytest.param(RMSProp(0.06, 0.9), marks=pytest.mark.slow)]
)
def test_no_noise_gives_the_central_flow(optimizer):
    whole = task(8)

    def last(minibatch):
        rows = simulate(
            whole,
            optimizer,
            whole.initial_weights,
            processes=["central"],
            steps=12,
            unravel=whole.unravel,
            settings=EULER,
            minibatch=minibatch,
        )
        return list(rows)[-1]

    a, b = last(None), last(Minibatches(None, noise_of(whole, 8, epochs=True)))
    assert b.series["central"]["critical_directions"] > 0
    np.testing.assert_allclose(a.weights["central"], b.weights["central"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [(Adam(0.01), "momentum carries"), (DecoupledDecay(GD(0.1), 0.1, 0.1), "weight decay damps")],
)
def test_what_does_not_fit_is_refused(optimizer, words):
    whole = task()
    with pytest.raises(UnsupportedRule, match=words):
        simulate(
            whole,
            optimizer,
            whole.initial_weights,
            processes=["central"],
            steps=1,
            unravel=whole.unravel,
            minibatch=Minibatches(None, noise_of(whole, 2)),
        )


def test_an_ensemble_beside_single_optimizers():
    whole = task(12)

    def run(seeds, size):
        rows = simulate(
            whole,
            GD(0.5),
            whole.initial_weights,
            processes=["discrete", "discrete_minibatch"],
            steps=8,
            unravel=whole.unravel,
            minibatch=Minibatches(Minibatch(whole, size), None, seeds),
        )
        return list(rows)[-1]

    whole_batches, three = run(3, 12), run(3, 4)
    series = whole_batches.series["discrete_minibatch"]
    alike = whole_batches.series["discrete"]
    np.testing.assert_allclose(series["ensemble_loss"], alike["train_loss"], rtol=1e-12)
    np.testing.assert_allclose(series["ensemble_loss_spread"], 0, atol=1e-14)
    np.testing.assert_allclose(
        series["ensemble_eigenvalues"][0], alike["eigenvalues"][0], rtol=1e-6
    )
    assert series["ensemble_distance"] < 1e-12
    series = three.series["discrete_minibatch"]
    assert series["ensemble_loss_spread"] > 0
    assert series["ensemble_distance"] > 1e-3
    assert series["train_loss"] != series["ensemble_loss"]  # of the mean, and the mean of


SPEC = """\
name: noisy
data: {type: moons, n: 30}
model: {type: mlp, widths: [4], activation: tanh}
loss: {type: mse}
optimizer: {type: gd, lr: 1.0}
processes: [central, discrete_minibatch]
steps: 6
warm_start: 40
minibatch: {size: 15, noise: on, seeds: 2, sharpness_every: 2}
"""


def test_a_run_in_float32_goes_on_as_if_it_had_not_ended(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    spec = load_spec(path)
    task = build_task(spec)
    experiment, state = prepare(spec, task)
    whole = list(drive(experiment, state, 6))
    half = list(chunks(experiment, state, 3))[-1]
    again = prepare(spec, task, kept=keep(half.state))
    rest = list(drive(*again, 6))
    assert [row.step for row in rest] == [3, 4, 5]
    for a, b in zip(whole[3:], rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.series, b.series)
    series = whole[-1].series["central"]
    assert np.isfinite(series["sharpness_gap"])
    assert 0 < series["sharpness_gap"] < 1
    assert "batch_sharpness" in whole[4].series["discrete_minibatch"]
    assert "batch_sharpness" not in whole[5].series["discrete_minibatch"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("minibatch.size=0", "minibatch.size: the noise of mini-batches needs the number"),
        ("minibatch.sample=1", "minibatch.sample: must be 0, or from 2 to"),
        ("minibatch.sharpness_every=3", "minibatch.sharpness_every: must be a multiple"),
        ("minibatch.noise=maybe", "minibatch.noise: must be"),
    ],
)
def test_options_that_do_not_fit(tmp_path, override, words):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    with pytest.raises(InputError, match=words):
        build_task(load_spec(path, [override, "record.every=2"]))
