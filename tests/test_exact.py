"""Problems whose central flow is known in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Float

from centralflow_eqx.engine.curvature import EigenTracker, local_model, unsolved
from centralflow_eqx.engine.oscillation import Point, oscillate
from centralflow_eqx.engine.response import Rule, derive
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.engine.state_rate import Backward
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.experiment.start import identity
from centralflow_eqx.optimizers import GD, ScalarRMSProp
from centralflow_eqx.optimizers.scalar_rmsprop import ScalarRMSPropState
from centralflow_eqx.processes import Central, Setting

pytestmark = pytest.mark.optimized


def symmetric(y: Float[Array, " 3"]) -> Float[Array, "2 2"]:
    """Y with |Y|_F = |y|."""
    off = y[2] / np.sqrt(2)
    return jnp.array([[y[0], off], [off, y[1]]])


class Spectrahedron(eqx.Module):
    """x^T Y[y] x / 2 - eps c.y: on x = 0 gradient descent pushes Y against Y <= (2/lr) I."""

    eps: float
    c: Array

    def __call__(self, w: Float[Array, " 5"]) -> Float[Array, ""]:
        x, y = w[:2], w[2:]
        return x @ symmetric(y) @ x / 2 - self.eps * self.c @ y


@pytest.mark.parametrize("substeps", [1, 3])
def test_each_substep_is_a_catching_up_step(substeps):
    lr, loss = 0.4, Spectrahedron(0.3, jnp.array([2.0, 1.0, 1.0]))
    y0 = jnp.array([3.0, 2.5, -0.7])
    rows = simulate(
        loss,
        GD(lr),
        jnp.concatenate([jnp.zeros(2), y0]),
        processes=("central",),
        steps=36,
        settings=Settings(method="euler", substeps=substeps, critical_above=-1.0, initial=2),
    )
    expected, ranks = symmetric(y0), set()
    for row in rows:
        got = symmetric(row.weights["central"][2:])
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)
        # Eigenvectors leave the valley's floor by rounding alone, and so does the flow.
        np.testing.assert_allclose(row.weights["central"][:2], 0, atol=1e-13)
        ranks.add(int(np.sum(row.series["central"]["sigma_eigenvalues"] > 1e-8)))
        for _ in range(substeps):
            values, vectors = np.linalg.eigh(
                expected + lr * loss.eps / substeps * symmetric(loss.c)
            )
            expected = (vectors * np.minimum(values, 2 / lr)) @ vectors.T
    assert ranks == {0, 1, 2}


class Valley(eqx.Module):
    """(|y| + 3 e^{x/2}) x^2 / 2 - eps (x + y_1): a valley floor x = 0 of sharpness |y| + 3."""

    eps: Array

    def __call__(self, w: Float[Array, " 3"]) -> Float[Array, ""]:
        x, y = w[0], w[1:]
        return (jnp.linalg.norm(y) + 3 * jnp.exp(x / 2)) * x**2 / 2 - self.eps * (x + y[0])


def disk_flow(y: np.ndarray, time: float, radius: float) -> np.ndarray:
    """Motion along the first axis in a disk: straight to the rim, then along it."""
    reach = np.sqrt(radius**2 - y[1] ** 2) - y[0]
    if time <= reach:
        return y + np.array([time, 0])
    # On the rim the angle falls at the rate sin(angle)/radius.
    angle = 2 * np.arctan(np.tan(np.arcsin(y[1] / radius) / 2) * np.exp(-(time - reach) / radius))
    return radius * np.array([np.cos(angle), np.sin(angle)])


@pytest.mark.slow
def test_valley_flow_tends_to_a_projected_gradient_flow_at_first_order():
    lr, time, y0 = 0.3, 1.8, np.array([1.0, 3.0])
    exact = disk_flow(y0, time, 2 / lr - 3)
    scales, errors = [3e-2, 1e-2, 3e-3], []
    for eps in scales:
        steps = round(time / (lr * eps))
        *_, last = simulate(
            Valley(jnp.asarray(eps)),
            GD(lr),
            jnp.array([0.0, *y0]),
            processes=("central",),
            steps=steps + 1,
            settings=Settings(method="euler", substeps=1),
            record_every=steps,
        )
        errors.append(np.linalg.norm(last.weights["central"][1:] - exact))
    orders = np.diff(np.log(errors)) / np.diff(np.log(scales))
    assert errors[-1] < 1e-2
    np.testing.assert_allclose(orders, 1, atol=0.25)


class TiltedValley(eqx.Module):
    """(y + zeta x) x^2 / 2 - eps (push x + y): it sharpens downhill, and to one side."""

    zeta: float
    push: float
    eps: float

    def __call__(self, w: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = w
        return (y + self.zeta * x) * x**2 / 2 - self.eps * (self.push * x + y)


@pytest.mark.parametrize("zeta", [0.0, np.sqrt(2) / 3, 1.0])
def test_the_oscillation_gains_or_loses_energy_in_slow_time(zeta):
    """Berthier (arXiv 2609.01034), section 7.2: x = (-1)^t r a and y = 2/lr + r y1, r = sqrt(eps),
    circle in the time r t. E = y1^2/2 + a^2/4 - log(a^2)/2 stays, and changes in the time r^2 t at
    the rate lr^2 (2 - 9 zeta^2) <y1^2>, neglecting what is smaller by r than either term of it."""
    lr, eps = 0.3, 2e-3
    r = np.sqrt(eps)
    period = np.sqrt(2) * np.pi / (lr * r)  # of small oscillations around a^2 = 2, y1 = 0
    rows = list(
        simulate(
            TiltedValley(zeta, 1.0, eps),
            GD(lr),
            jnp.array([2.5 * r, 2 / lr]),
            processes=["discrete", "midpoint"],
            steps=round(3 * period),
            raw_spectra=False,
        )
    )[1:-1]
    iterates, middles = (
        np.array([row.weights[name] for row in rows]) for name in ("discrete", "midpoint")
    )
    a, y1 = (iterates - middles)[:, 0] / r, (middles[:, 1] - 2 / lr) / r
    energy = y1**2 / 2 + a**2 / 4 - np.log(a**2) / 2
    before = np.flatnonzero((y1[:-1] < 0) & (y1[1:] >= 0))  # whole cycles, from y1 = 0 to y1 = 0
    first, last = before[0], before[-1]
    assert last - first > period
    share = y1[before] / (y1[before] - y1[before + 1])
    passed = before + share
    at = energy[before] + share * (energy[before + 1] - energy[before])
    rate = (at[-1] - at[0]) / (eps * (passed[-1] - passed[0]))
    expected = lr**2 * (2 - 9 * zeta**2)
    size = lr**2 * (2 + 9 * zeta**2)
    assert rate / np.mean(y1[first:last] ** 2) == pytest.approx(expected, abs=r * size)


def test_what_never_begins_to_oscillate_has_no_central_flow_and_is_doubted():
    """Nothing pushes the optimizer off the valley's floor: it climbs beyond the threshold."""
    lr, eps, start = 0.3, 1e-2, 6.6
    rows = list(
        simulate(
            TiltedValley(1.0, 0.0, eps),
            GD(lr),
            jnp.array([0.0, start]),
            processes=["discrete", "central"],
            steps=100,
        )
    )
    central = [row.series["central"] for row in rows]
    np.testing.assert_allclose(
        [row.weights["discrete"][1] for row in rows], start + lr * eps * np.arange(100), rtol=1e-13
    )
    # In equilibrium <x^2> = 2 eps, and x = -3 <x^2>/(2 y) shifts the sharpness y + 3 x.
    rest = 2 / lr + 9 * eps * lr / 2
    assert rows[-1].weights["central"][1] == pytest.approx(rest, abs=eps**2)
    acts = np.array([row["sigma_eigenvalues"][0] > 0 for row in central])
    doubted = np.array([row["untrusted"] == 1 for row in central])
    assert acts.sum() > 50
    np.testing.assert_array_equal(doubted, acts)


class Bowl(eqx.Module):
    """A generic smooth loss of three weights, without symmetry to hide behind."""

    def __call__(self, w: Float[Array, " 3"]) -> Float[Array, ""]:
        x, y, z = w
        return (
            1.5 * x**2 * jnp.exp(0.4 * y + 0.2 * z)
            + jnp.cosh(0.5 * y - 0.1 * x) / 2
            + 0.2 * (z - 0.3 * x * y) ** 2
            - 0.7 * y
        )


POINT = jnp.array([0.1, 0.2, -0.3])


def sharpness(w: Float[Array, " 3"]) -> Float[Array, ""]:
    """Largest eigenvalue, differentiable where it is simple."""
    return jnp.linalg.eigvalsh(jax.hessian(Bowl())(w))[-1]


def oscillation_at(optimizer, post, dt):
    """The engine's oscillation on `Bowl` at `POINT`."""
    model = local_model(Bowl(), POINT)
    rule = Rule(optimizer, identity)
    response = derive(rule, post, POINT, model.grad, jr.key(0))
    gain = response.gain(post, POINT)
    pairs = EigenTracker().solve(model, gain, unsolved(3, 2, POINT.dtype, jr.key(1)))
    assert pairs.theta[0] == pytest.approx(2, abs=1e-12)
    point = Point(POINT, post, model.grad, gain, pairs)
    settings = Settings(substeps=round(1 / dt)).resolved(POINT.dtype, restoration=np.inf)
    return eqx.filter_jit(oscillate)(
        Bowl(), response, Backward(), point, settings, jnp.zeros_like(pairs.theta)
    )


@pytest.mark.parametrize("dt", [1.0, 0.1])
def test_one_critical_eigenvalue_of_gradient_descent(dt):
    S, slope = jax.value_and_grad(sharpness)(POINT)
    lr = float(2 / S)
    variance = float(-2 * jax.grad(Bowl())(POINT) @ slope / (slope @ slope))
    assert variance > 0
    optimizer = GD(lr)
    state = jax.tree.map(lambda x: x.astype(float), optimizer.init(POINT))
    oscillation = oscillation_at(optimizer, state, dt)
    # In the P metric the variance is sigma^2/lr, which is also the excess of the averaged loss.
    assert oscillation.solution.X[0, 0] == pytest.approx(variance / lr, rel=1e-10)
    np.testing.assert_allclose(oscillation.penalty, variance * slope / 2, rtol=1e-9)


def test_one_critical_eigenvalue_of_scalar_rmsprop():
    S, slope = jax.value_and_grad(sharpness)(POINT)
    grad, lr, beta2 = jax.grad(Bowl())(POINT), 0.5, 0.99
    c, nu = (1 - beta2) / beta2, (lr * S / 2) ** 2
    top = c * S**2 / 4 - grad @ slope - c * grad @ grad / lr**2
    variance = float(top / (slope @ slope / 2 + c * S**2 / lr**2))
    assert variance > 0
    post = ScalarRMSPropState(jnp.array(7.0), nu)
    oscillation = oscillation_at(ScalarRMSProp(lr, beta2), post, 0.25)
    assert oscillation.solution.X[0, 0] == pytest.approx(float(variance * S / 2), rel=1e-10)


class Parabola(eqx.Module):
    """S x^2 / 2."""

    S: float

    def __call__(self, w: Float[Array, " 1"]) -> Float[Array, ""]:
        return self.S * w[0] ** 2 / 2


def test_scalar_rmsprop_locks_to_the_sharpness():
    S, lr = 3.0, 0.02
    optimizer, w = ScalarRMSProp(lr, 0.9), jnp.zeros(1)
    state = ScalarRMSPropState(jnp.array(1), jnp.array(5e-3))
    rule = Rule(optimizer, identity)
    post = jax.tree.map(lambda x: x.astype(float), state)
    response = derive(rule, post, w, w, jr.key(0))
    settings = Settings(state_rate="backward").resolved(w.dtype, restoration=np.inf)
    process = Central(Setting(Parabola(S), response, Backward(), settings))
    now = process.init(w, state, unsolved(1, 2, w.dtype, jr.key(0)), jr.key(0))
    move = eqx.filter_jit(process.move)
    for _ in range(60):
        now, view, _ = move(now)
    # nu falls until the effective step size is 2/S and stays there, held by the oscillation.
    assert now.s.nu == pytest.approx((lr * S / 2) ** 2, rel=1e-12)
    variance = view.series["sigma_eigenvalues"][0] * 2 / S
    assert variance == pytest.approx(lr**2 / 4, rel=1e-10)


def test_the_loss_falls_along_the_central_flow_of_gradient_descent():
    start = jnp.array([0.3, -0.5, 0.8])
    lr = float(1.5 / sharpness(start))
    rows = list(simulate(Bowl(), GD(lr), start, processes=("central",), steps=60))
    loss = np.array([row.series["central"]["train_loss"] for row in rows])
    assert rows[-1].series["central"]["eigenvalues"][0] == pytest.approx(2, abs=1e-3)
    assert rows[-1].series["central"]["sigma_eigenvalues"][0] > 1e-3
    # To first order the flow rests at the end, where Euler's method errs by less than 1e-9.
    assert np.all(np.diff(loss) <= 1e-9)


@pytest.mark.parametrize("restoration", [np.inf, 0.5])
def test_an_unstable_start_is_made_stable_at_the_asked_rate(restoration):
    """GD on the spectrahedron's loss in one dimension: the sharpness is y, and dS/dt = dy/dt."""
    lr, start, substeps = 0.5, 4.6, 2

    def loss(w):
        return w[1] * w[0] ** 2 / 2

    rows = list(
        simulate(
            loss,
            GD(lr),
            jnp.array([0.0, start]),
            processes=["central"],
            steps=4,
            settings=Settings(method="euler", substeps=substeps, restoration=restoration),
        )
    )
    theta = [row.series["central"]["eigenvalues"][0] for row in rows]
    shrink = (1 - min(1, restoration / substeps)) ** (substeps * np.arange(4))
    np.testing.assert_allclose(theta, 2 + (lr * start - 2) * shrink, rtol=1e-10)
