"""Rules whose averages and momenta depend on each other, and thresholds of other periods."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from _losses import flat_rule
from _marks import quick

import centralflow_eqx as cf
from centralflow_eqx.engine.response import derive, examine, relax
from centralflow_eqx.optimizers import AbstractOptimizer, HeavyBall, NAdam, Nesterov, Optax

ETA, B, BETA2, EPS = 0.1, 0.6, 0.9, 0.05
D, STEPS = 5, 6


def leaf(state, name):
    return optax.tree.get(state, name)


# The inverse roots of statistics that steps are scaled with, and their answers to gradients that
# alternate and that stay, in units of that: what the rules say.
RULES = {
    "rmsprop with momentum": (
        optax.rmsprop(ETA, BETA2, EPS, momentum=B),
        lambda s: 1 / jnp.sqrt(leaf(s, "nu") + EPS),
        ETA / (1 + B),
        ETA / (1 - B),
    ),
    "centred rmsprop": (
        optax.rmsprop(ETA, BETA2, EPS, centered=True),
        lambda s: 1 / jnp.sqrt(leaf(s, "nu") - leaf(s, "mu") ** 2 + EPS),
        ETA,
        ETA,
    ),
    "adabelief": (
        optax.adabelief(ETA, B, BETA2, EPS),
        lambda s: 1 / (jnp.sqrt(leaf(s, "nu") / (1 - BETA2**STEPS)) + EPS),
        ETA * (1 - B) / (1 + B) / (1 - B**STEPS),
        ETA / (1 - B**STEPS),
    ),
    "averaged twice": (None, lambda s: jnp.ones(D), ETA * 0.9 * 0.95 / (1.1 * 1.05), ETA),
}


class Averages(AbstractOptimizer):
    """A step along an average of an average of the gradient."""

    decays: tuple[float, float]

    def init(self, params):
        return {"first": jnp.zeros_like(params), "second": jnp.zeros_like(params)}

    def update(self, grad, state, params):
        a, b = self.decays
        first = a * state["first"] + (1 - a) * grad
        second = b * state["second"] + (1 - b) * first
        return -ETA * second, {"first": first, "second": second}


@functools.cache
def example(name):
    """The rule's response after some steps, its state before the last and after it."""
    transformation, *_ = RULES[name]
    optimizer = Averages((0.1, 0.05)) if transformation is None else Optax(transformation)
    rule, w = flat_rule(optimizer), jnp.asarray(np.random.default_rng(9).normal(size=D))
    state = rule.init(w)
    for i in range(STEPS):
        before, g = state, jnp.asarray(np.random.default_rng(i).normal(size=D))
        state = rule.update(g, before, w)[1]
    s = relax(state, w)
    return derive(rule, s, w, g, jr.key(0)), before, s, w, g


each = pytest.mark.parametrize("name", quick(RULES, "rmsprop with momentum", "averaged twice"))


@each
def test_the_gains_are_those_of_the_rule(name):
    response, _, s, w, g = example(name)
    _, scale, alternating, constant = RULES[name]
    K = response.gain(s, w).mv(jnp.ones(D))
    np.testing.assert_allclose(K, alternating * scale(s), rtol=1e-10)
    D_ = response.mean_gain(s, w, jnp.ones(D))
    np.testing.assert_allclose(D_, -constant * scale(s), rtol=1e-10)


@each
def test_pre_inverts_advance(name):
    response, before, s, w, g = example(name)
    for recovered in (
        response.advance(response.pre(s, g, w), g, w),
        response.pre(response.advance(s, g, w), g, w),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), recovered, s)
    step = response.step_from(s, g, w)
    np.testing.assert_allclose(step, response.rule.update(g, before, w)[0], rtol=1e-11)


@pytest.mark.parametrize(
    "name", quick([n for n in RULES if n != "averaged twice"], "rmsprop with momentum")
)
def test_what_an_oscillation_adds_is_the_average_over_it(name):
    """Gradients alternate around a mean for long: F of the mean state gains the excess."""
    response, _, s, w, g = example(name)
    q = jnp.asarray(np.random.default_rng(3).normal(size=D))
    rule = response.rule

    @eqx.filter_jit
    def cycle(s):
        def pair(_, s):
            for sign in (1, -1):
                s = rule.update(g + sign * q, s, w)[1]
            return s

        s = jax.lax.fori_loop(0, 400, pair, s)
        return s, rule.update(g + q, s, w)[1]

    even, odd = cycle(s)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, even, odd)
    gained = jax.tree.map(
        jnp.add, response.advance(mean, g, w), response.quadratic(mean, g, w, q, q)
    )
    coupling = response.coupling
    found, expected = (coupling.only(x, odd=False) for x in (gained, mean))
    assert any(np.linalg.norm(x) > 0.1 for x in jax.tree.leaves(expected))  # there are averages

    def close(path, a, b):
        if "count" not in {getattr(key, "name", None) for key in path}:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    jax.tree_util.tree_map_with_path(close, found, expected)


class QuasiHyperbolic(AbstractOptimizer):
    beta: float
    nu: float

    def init(self, params):
        return jnp.zeros_like(params)

    def update(self, grad, state, params):
        m = self.beta * state + (1 - self.beta) * grad
        return -ETA * ((1 - self.nu) * grad + self.nu * m), m


class Average(AbstractOptimizer):
    def init(self, params):
        return jnp.zeros_like(params)

    def update(self, grad, state, params):
        m = 0.9 * state + 0.1 * grad
        return -ETA * m, m


@pytest.mark.parametrize(
    ("optimizer", "threshold"),
    [
        (Average(), 38),
        (HeavyBall(ETA, 0.9), 3.8),
        (Nesterov(ETA, 0.9), 1.357),
        (QuasiHyperbolic(0.9, 0.7), 5.9375),
    ],
)
def test_thresholds_of_linear_filters(optimizer, threshold):
    rule, w = flat_rule(optimizer), jnp.ones(2)
    s = relax(rule.update(w, rule.init(w), w)[1], w)
    response = derive(rule, s, w, w, jr.key(0))
    np.testing.assert_allclose(
        2 * ETA / response.gain(s, w).mv(w), threshold, rtol=5e-4 if threshold == 1.357 else 1e-10
    )


@pytest.mark.parametrize(
    ("decays", "nyquist", "threshold", "frequency"),
    [
        ((0.4, 0.7), 26.444, 2.571, 0.263),
        pytest.param((0.7, 0.85), 139.78, 0.681, 0.0878, marks=pytest.mark.slow),
    ],
)
def test_averages_in_a_row_turn_unstable_with_another_frequency(
    decays, nyquist, threshold, frequency
):
    rule, w = flat_rule(Averages(decays)), jnp.asarray([1.0, 2.0])
    s = relax(rule.update(w, rule.init(w), w)[1], w)
    response = examine(rule, s, w, w, jr.key(0))
    period_two = 2 * ETA / response.gain(s, w).mv(jnp.ones(2))
    np.testing.assert_allclose(period_two, nyquist, rtol=1e-4)
    said = response.structure.refusal
    share, found = map(
        float, re.search(r"eigenvalue of (\S+) .* frequency (\S+) pi", said).groups()
    )
    assert share / 2 * nyquist == pytest.approx(threshold, rel=1e-3)
    assert found == pytest.approx(frequency, rel=5e-3)

    # where it is said to be, it is: a root of the recursion of weight and averages
    def radius(curvature):
        a, b = decays
        A = np.array([[1, -ETA * (1 - b) * a, -ETA * b], [0, a, 0], [0, (1 - b) * a, b]])
        A[:, 0] += curvature * np.array([-ETA * (1 - b) * (1 - a), 1 - a, (1 - b) * (1 - a)])
        return np.abs(np.linalg.eigvals(A)).max()

    at = share / 2 * nyquist / ETA
    assert radius(0.999 * at) < 1 < radius(1.001 * at)


def test_nadam_has_the_literatures_threshold_once_its_bias_is_gone():
    rule, w = flat_rule(NAdam(ETA, 0.9, 0.9, eps=0.0)), jnp.ones(2)
    s = relax(rule.init(w), w)
    for _ in range(400):
        s = rule.update(w, s, w)[1]
    response = derive(rule, s, w, w, jr.key(0))
    np.testing.assert_allclose(2 * ETA / response.gain(s, w).mv(w), 13.571, rtol=1e-4)


EDGE = {
    "rmsprop with momentum": (optax.rmsprop(4e-3, 0.99, 1e-7, momentum=0.9), 20),
    "adabelief": (optax.adabelief(3e-2, 0.9, 0.99, 1e-3), 20),
    "centred rmsprop": (optax.rmsprop(2e-3, 0.99, 1e-6, centered=True), 20),
    "schedule-free adamw": (optax.contrib.schedule_free_adamw(2e-2, b1=0.9, b2=0.99, eps=1e-6), 20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGE)
def test_they_are_followed_at_the_edge(name):
    """Distance and loss within 3 % of the optimizer on digits, at an effective eigenvalue of 2."""
    transformation, warm_start = EDGE[name]
    task = cf.make_task(
        cf.data.Digits(n=200), cf.models.MLP((24, 24)), cf.losses.MSE(), dtype="float64"
    )
    rows = list(
        cf.simulate(
            task,
            transformation,
            task.initial_weights,
            processes=["discrete", "midpoint", "central"],
            steps=100,
            warm_start=warm_start,
            settings=cf.Settings(initial=4),
        )
    )
    *_, last = [row for row in rows if "midpoint" in row.series]
    moved = last.series["central"]["distance_moved"]
    assert last.comparisons["distance/midpoint-central"] < 0.03 * moved
    assert max(row.series["central"]["eigenvalues"][0] for row in rows) > 1.99

    def smoothed(process, key):
        values = [row.series[process][key] for row in rows]
        return np.convolve(values, np.ones(15) / 15, "valid")[-20:]

    off = smoothed("discrete", "train_loss") / smoothed("central", "predicted_loss") - 1
    assert np.mean(np.abs(off)) < 0.03
