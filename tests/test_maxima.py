"""Rules whose state has a running maximum, which is a constant between its switches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from _losses import flat_rule, warm_state

import centralflow_eqx as cf
from centralflow_eqx.engine.response import derive
from centralflow_eqx.engine.response._maximum import find_maxima
from centralflow_eqx.engine.response._probe import find_parts
from centralflow_eqx.engine.state_rate import Exponential
from centralflow_eqx.experiment.explain import state_parts
from centralflow_eqx.optimizers import AdaGrad, Adam, Optax

D, ETA, B, BETA2, EPS = 6, 0.1, 0.6, 0.9, 0.05
AMSGRAD = Optax(optax.amsgrad(ETA, B, BETA2, EPS))


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (AMSGRAD, ["nu_max"]),
        (Adam(ETA, B, BETA2), []),
        (AdaGrad(ETA), []),
        (Optax(optax.adamax(ETA)), []),  # decays, and is exceeded all the time
        # a constant of the state is none, however large it would have to be to matter
        (Optax(optax.inject_hyperparams(optax.clip)(max_delta=0.1)), []),
    ],
)
def test_what_counts_as_a_maximum(optimizer, found):
    rule = flat_rule(optimizer)
    w, g, s = warm_state(rule, D)
    maxima = find_maxima(rule, find_parts(rule, s, w), (s, w, g))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(s)]
    named = [path for path, m in zip(paths, maxima or [False] * len(paths), strict=True) if m]
    assert len(named) == len(found) and all(b in a for a, b in zip(named, found, strict=True))


@pytest.fixture(scope="module")
def derived():
    rule = flat_rule(AMSGRAD)
    w, g, s = warm_state(rule, D)
    return derive(rule, s, w, g, jr.key(0)), s, w, g


def test_between_switches_it_answers_as_gradients_that_alternate_show(derived):
    """Small gradients +q, -q, ... after large ones: the maximum stays, the momentum settles."""
    response, s, w, _ = derived
    assert response.structure.maxima == (False, False, False, True)
    q = 1e-3 * jr.normal(jr.key(1), (D,))

    @eqx.filter_jit
    def swung(s):
        def pair(_, s):
            return response.advance(response.advance(s, q, w), -q, w)

        s = jax.lax.fori_loop(0, 200, pair, s)
        return s, response.step(s, q, w)

    later, step = swung(s)
    nu_max = optax.tree.get(later, "nu_max")
    np.testing.assert_array_equal(nu_max, optax.tree.get(s, "nu_max"))
    np.testing.assert_allclose(response.gain(later, w).mv(q), -step, rtol=1e-12)
    formula = ETA * (1 - B) / (1 + B) / (np.sqrt(nu_max) + EPS)
    np.testing.assert_allclose(-step, formula * q, rtol=1e-12)


def test_a_gradient_that_exceeds_it_is_averaged_into_it(derived):
    """Where statistics of the mean gradient exceed the maximum, it gains what they gain."""
    response, s, w, g = derived
    large, q = 30 * g, jr.normal(jr.key(2), (D,))

    def maximum(g):
        return optax.tree.get(response.advance(s, g, w), "nu_max")

    assert np.all(maximum(large) > optax.tree.get(s, "nu_max"))
    gained = optax.tree.get(response.quadratic(s, large, w, q, q), "nu_max")
    average = (maximum(large + q) + maximum(large - q)) / 2
    np.testing.assert_allclose(maximum(large) + gained, average, rtol=1e-12)
    # on the way from zero to a gradient that large there is a switch, below 0.1 g there is none
    assert response.nonlinearity(s, w, large) > 1e-3
    assert response.nonlinearity(s, w, 0.1 * g) < 1e-12


def test_a_whole_substep_is_the_discrete_step(derived):
    """Before a gradient that exceeds the maximum of some weights, of all, and of none."""
    response, s, w, g = derived

    @eqx.filter_jit
    def both(g):
        nothing = jax.tree.map(jnp.zeros_like, s)
        step, new = response.rule.update(g, s, w)
        again = response.advance(response.pre(new, g, w), g, w)
        return (w + step, new, new), (
            *Exponential().substep(response, s, w, (g, g), nothing, 1.0),
            again,
        )

    lifted = []
    for factor in (10, 30, 0.1):
        expected, found = both(factor * g)
        rose = optax.tree.get(expected[1], "nu_max") > optax.tree.get(s, "nu_max")
        lifted.append(int(rose.sum()))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
    assert 0 < lifted[0] < D and lifted[1:] == [D, 0]


def test_explain_calls_it_a_maximum(derived):
    response, s, w, _ = derived
    roles = {part.name: part.role for part in state_parts(response, s, w, jr.key(0))}
    assert list(roles.values()) == ["counter", "momentum", "average", "maximum"], roles


def test_a_flow_starts_with_the_whole_maximum(derived):
    """Half of an update would leave half of the first squared gradient, and that for ever."""
    response, _, w, g = derived
    begin = jax.tree.map(lambda x: x.astype(float), response.rule.init(w))
    s = Exponential().start(response, begin, g, w, 0.0)
    np.testing.assert_allclose(optax.tree.get(s, "nu_max"), g**2, rtol=1e-12)
    np.testing.assert_allclose(optax.tree.get(s, "nu"), (1 - BETA2**0.5) * g**2, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "b1", "b2", "warm_start", "apart", "edge"),
    [(1.1e-3, 0.0, 0.99, 20, 0.04, True), (1.1e-3, 0.9, 0.9, 0, 0.01, False)],
)
def test_amsgrad_is_followed_on_digits(lr, b1, b2, warm_start, apart, edge):
    """Along the edge, where the maximum does most of the stabilisation, and from the very start."""
    task = cf.make_task(
        cf.data.Digits(n=200), cf.models.MLP((24, 24)), cf.losses.MSE(), dtype="float64"
    )
    rows = list(
        cf.simulate(
            task,
            optax.amsgrad(lr, b1, b2),
            task.initial_weights,
            processes=["discrete", "midpoint", "central"],
            steps=100,
            warm_start=warm_start,
            settings=cf.Settings(initial=4),
        )
    )
    *_, last = [row for row in rows if "midpoint" in row.series]
    flow = last.series["central"]
    assert last.comparisons["distance/midpoint-central"] < apart * flow["distance_moved"]
    assert max(row.series["central"].get("step_length", 1) for row in rows) <= 1
    if edge:
        assert flow["eigenvalues"][0] == pytest.approx(2, abs=2e-2)
        assert flow["stabilised_by_state"] > 0.5


@pytest.mark.slow
def test_a_burst_that_lifts_the_maximum_is_doubted():
    """In a valley that sharpens the oscillation sets in late, in one burst: no average sees it."""

    def valley(w):
        return 8 * (1 + w[1] ** 2) * w[0] ** 2 / 2 + jnp.sum((w[1:] - 2.0) ** 2) / 10

    rows = list(
        cf.simulate(
            valley,
            optax.amsgrad(0.08, 0.0, 0.9),
            jnp.array([0.1, 0.5, -0.3, 0.2, 1.0, 0.4]),
            processes=["discrete", "central"],
            steps=100,
            warm_start=2,
        )
    )
    (name,) = [key for key in rows[-1].series["central"] if "nu_max" in key]
    lifted, followed = (rows[-1].series[of][name] for of in ("discrete", "central"))
    assert lifted > 1.5 * followed
    acts = [r for r in rows if r.series["central"]["sigma_eigenvalues"][0] > 0]
    flags = np.array([r.series["central"]["untrusted"] for r in acts])
    assert flags.mean() > 0.7 and flags[-10:].all()
