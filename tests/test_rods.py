"""Rod and edge flows against identities, exact cycles, and the optimizers themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _losses import Quadratic, Stateless, TinyMLP, flat_rule, warm_state
from _marks import quick

from centralflow_eqx.engine.response import Response, Structure, traced_numbers
from centralflow_eqx.engine.rod import Phase, RodModel, Rods, substep
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.errors import UnsupportedRule
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.optimizers import GD, Adam, HeavyBall, Nesterov, RMSProp, Shampoo

LR, MU = 1.1, 1.0
CENTRE, HALF = np.sqrt((MU + 3 / LR) / 4), np.sqrt((MU - 1 / LR) / 4)


def double_well(w):
    """(x^2 - mu)^2 / 4, on which gradient descent has a 2-cycle if mu lr > 1."""
    return jnp.sum((w**2 - MU) ** 2) / 4


def run(loss, optimizer, w, steps, processes=("rod", "edge"), **settings):
    return list(
        simulate(
            loss,
            optimizer,
            w,
            processes=processes,
            steps=steps,
            settings=Settings(**settings),
            raw_spectra=False,
        )
    )


def example(lr):
    """The rod model of gradient descent, a place, and a rod there."""
    loss, rule = TinyMLP.make(), flat_rule(GD(lr))
    w, _, s = warm_state(rule, TinyMLP.SIZE)
    response = Response(traced_numbers(rule, w), Structure())
    inertia = jax.tree.map(jnp.zeros_like, s)
    model = RodModel(loss, response, inertia, 0, secant=True)
    zeta = jnp.asarray(0.1 * np.random.default_rng(5).normal(size=w.size))
    still = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), s)
    size = jnp.linalg.norm(zeta)
    return model, Phase(w, s), Rods(Phase(zeta[None] / size, still), jnp.log(size)[None]), zeta


def ends(loss, w, zeta):
    gradient = jax.grad(loss)
    return gradient(w + zeta), gradient(w - zeta)


@eqx.filter_jit
def seen_and_velocity(model, place, rods):
    """What is seen from a place, and how fast the weights move."""
    moment = 1e-7
    moved, _, seen, _ = substep(model, place, rods, jnp.asarray(moment))
    return seen, (moved.w - place.w) / moment


@eqx.filter_jit
def published_velocity(loss, w, zeta, lr):
    """-(lr/2) (g+ + g-) - (lr^2/8) (H+ + H-) (g+ + g-)."""
    g, h = ends(loss, w, zeta)
    bent = [jax.jvp(jax.grad(loss), (w + x,), (g + h,))[1] for x in (zeta, -zeta)]
    return -lr / 2 * (g + h) - lr**2 / 8 * (bent[0] + bent[1])


def test_the_rod_of_gradient_descent_is_the_published_one():
    """lr^2/4 (g+ g+^T + g- g-^T) - 2 Sigma is the oscillation's part and that of the drift."""
    lr = 0.3
    model, place, rods, zeta = example(lr)
    g, h = ends(model.loss, place.w, zeta)
    published = lr**2 / 4 * (jnp.outer(g, g) + jnp.outer(h, h)) - 2 * jnp.outer(zeta, zeta)
    seen, _ = seen_and_velocity(model, place, rods)
    alpha, drift = rods.length[0] * seen.swing.w[0], seen.drift.w
    derived = 2 * (jnp.outer(alpha, alpha) - jnp.outer(zeta, zeta)) + jnp.outer(drift, drift) / 2
    np.testing.assert_allclose(derived, published, rtol=0, atol=1e-13)
    np.testing.assert_allclose(drift, -lr / 2 * (g + h), rtol=0, atol=1e-14)


def test_the_centre_of_gradient_descent_is_the_published_one_to_second_order():
    """Its velocity D(z - D/2) is D - D' D/2, with an error of third order in lr."""
    off = []
    for lr in (0.2, 0.1, 0.05):
        model, place, rods, zeta = example(lr)
        published = published_velocity(model.loss, place.w, zeta, jnp.asarray(lr))
        velocity = seen_and_velocity(model, place, rods)[1]
        off.append(float(jnp.linalg.norm(velocity - published)))
    orders = np.log2(np.array(off[:-1]) / off[1:])
    np.testing.assert_allclose(orders, 3, atol=0.2)


@pytest.mark.parametrize(
    ("process", "rate"),
    [("rod", lambda theta: theta**2 / 2 - 2), ("edge", lambda theta: 2 * (theta - 2))],
)
def test_oscillations_on_a_quadratic_grow_at_their_rate(process, rate):
    eigenvalues, lr = np.array([4.3, 3.4, 0.5, 0.1]), 0.5
    w = np.array([1e-3, 1e-7, 1.0, 1.0])
    loss = Quadratic(jnp.diag(jnp.asarray(eigenvalues)))
    rows = run(loss, GD(lr), w, 8, (process,), rods=2)
    theta = lr * eigenvalues[:2]
    for name, expected in (("rod_eigenvalues", theta), ("rod_residuals", 0)):
        np.testing.assert_allclose(rows[0].series[process][name], expected, atol=1e-6)
    lengths = np.array([row.series[process]["rod_lengths"] for row in rows])
    # repeated differences leave (theta/2)^4 of a displacement
    np.testing.assert_allclose(lengths[0], w[:2] * (theta / 2) ** 4, rtol=1e-9)
    growth = np.diff(2 * np.log(lengths), axis=0)
    np.testing.assert_allclose(growth, np.broadcast_to(rate(theta), growth.shape), rtol=1e-6)
    variances = np.array([row.series[process]["sigma_eigenvalues"] for row in rows])
    np.testing.assert_allclose(variances, lengths**2 / lr, rtol=1e-9)


RULES = {
    "gd": (GD(LR), CENTRE + HALF),
    "heavy_ball": (HeavyBall(1.6 * LR, 0.6), 1.1),
    "nesterov": (Nesterov(1.6 / 2.2 * LR, 0.6), 1.1),
}


@pytest.mark.parametrize("name", quick(RULES, "gd"))
def test_exact_cycles_are_where_rods_rest(name):
    """Of momentum, too: its cycle is that of gradient descent with the same threshold."""
    optimizer, start = RULES[name]
    rows = run(double_well, optimizer, np.array([start]), 200)
    rod, edge = (rows[-1].series[process] for process in ("rod", "edge"))
    # on gradient descent's cycle from the start
    for row in rows if name == "gd" else rows[-2:]:
        np.testing.assert_allclose(row.weights["rod"], CENTRE, atol=1e-10)
        np.testing.assert_allclose(row.series["rod"]["rod_lengths"], HALF, atol=1e-10)
    average = (double_well(CENTRE + HALF) + double_well(CENTRE - HALF)) / 2
    np.testing.assert_allclose(rod["predicted_loss"], average, atol=1e-10)
    # to second order in the oscillation it has 8/9 of the cycle's variance
    np.testing.assert_allclose(rows[-1].weights["edge"] ** 2, (MU + 2 / LR) / 3, atol=1e-10)
    np.testing.assert_allclose(edge["rod_lengths"] ** 2, 2 * (MU - 1 / LR) / 9, atol=1e-10)
    np.testing.assert_allclose(edge["eigenvalues"][0], 2, atol=1e-10)


@pytest.mark.slow
def test_the_cycle_of_an_adaptive_rule():
    """Ends lr apart, of opposite gradients: x^2 + 3 (lr/2)^2 = mu."""
    lr = 0.3
    last = run(double_well, RMSProp(lr, 0.9), np.array([1.1]), 400, ("rod",))[-1]
    np.testing.assert_allclose(last.series["rod"]["rod_lengths"], lr / 2, atol=1e-10)
    np.testing.assert_allclose(last.weights["rod"], np.sqrt(MU - 3 * lr**2 / 4), atol=1e-10)


@pytest.mark.slow
def test_what_does_not_oscillate_is_of_the_size_of_rounding():
    w = np.array([0.3, 0.5])
    rows = run(Quadratic(jnp.diag(jnp.array([2.0, 0.01]))), GD(0.5), w, 60, ("rod", "edge"))
    for process in ("rod", "edge"):
        length = rows[-1].series[process]["rod_lengths"][0]
        weight = np.abs(rows[-1].weights[process][0]) + 1e-3
        assert 0 < length < np.finfo(float).eps * max(weight, 0.5)


class TwoSlopes(Quadratic):
    """Two wells that sharpen together on the way down: S(y) (x1^2 + c x2^2)/2 - slope y."""

    def __call__(self, w):
        return (2 + w[2] ** 2) * (w[0] ** 2 + 0.99 * w[1] ** 2) / 2 - 0.004 * w[2]


@pytest.mark.slow
def test_the_onset_is_the_optimizers():
    """With eps = theta - 2 the rod grows at the rate eps + eps^2/4, the optimizer at log(1 + eps).

    As eps grows linearly to e, the rod is three quarters of the integral of eps^2 ahead, which is
    t e^2/4 after t steps: t e/4 steps at the rate e.
    """
    processes = ("discrete", "midpoint", "central", "rod")
    w = np.array([1e-6, 1e-6, 1.55])
    rows = run(TwoSlopes(jnp.zeros((1, 1))), GD(0.45), w, 150, processes)

    def displaced(row):
        return np.linalg.norm((row.weights["discrete"] - row.weights["midpoint"])[:2])

    def first(values):
        return int(np.argmax(np.array(values) > 1e-2))

    burst = first([displaced(row) for row in rows])
    excess = rows[burst].series["midpoint"]["eigenvalues"][0] - 2
    onset = first([row.series["rod"]["rod_lengths"][0] for row in rows])
    assert burst > 50 and 0 <= burst - onset <= 1 + burst * excess / 4
    central = [row.series["central"]["sigma_eigenvalues"][0] for row in rows]
    assert np.argmax(np.array(central) > 1e-5) < burst / 2
    apart = {p: rows[-1].comparisons[f"distance/midpoint-{p}"] for p in ("central", "rod")}
    assert apart["rod"] < apart["central"]


STEPPERS = {
    "gd": GD(0.02),
    "heavy_ball": HeavyBall(0.02, 0.8),
    "adam": Adam(2e-3, 0.9, 0.99),
    "shampoo": Shampoo(2e-3, 0.9, 0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPERS)
def test_below_the_edge_rods_go_the_way_of_the_optimizer(name):
    """A step is the optimizer's to second order; so is the stable flow's of momenta alone."""
    w = np.random.default_rng(3).normal(size=TinyMLP.SIZE)
    rows = run(TinyMLP.make(), STEPPERS[name], w, 40, ("discrete", "stable", "rod"))
    apart = {p: rows[-1].comparisons[f"distance/discrete-{p}"] for p in ("stable", "rod")}
    assert apart["rod"] < 2e-3 * rows[-1].series["discrete"]["distance_moved"]
    if name in ("gd", "shampoo"):
        assert apart["rod"] < 0.2 * apart["stable"]


@pytest.mark.parametrize("process", ["rod", "edge"])
def test_rules_without_a_threshold_have_no_rods(process):
    w = np.ones(TinyMLP.SIZE)
    with pytest.raises(UnsupportedRule, match=f"no process {process} here: zero response"):
        run(TinyMLP.make(), Stateless(lambda g: -0.1 * jnp.sign(g)), w, 1, (process,))


@pytest.mark.slow
def test_single_precision_stays_single():
    w = np.random.default_rng(3).normal(size=TinyMLP.SIZE).astype(np.float32)
    loss = TinyMLP(*(x.astype(np.float32) for x in (TinyMLP.make().x, TinyMLP.make().y)))
    last = run(loss, Adam(1e-2, 0.6, 0.9), w, 12)[-1]
    for process in ("rod", "edge"):
        assert last.weights[process].dtype == np.float32
        assert np.all(np.isfinite(last.weights[process]))
