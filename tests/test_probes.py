"""What runs measure of their processes, and what flows predict for it."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _conic import least_stable, stationary_average
from _losses import Quadratic, TinyMLP, symmetric

from centralflow_eqx.engine.curvature import EigenTracker, local_model, unsolved
from centralflow_eqx.engine.oscillation import modes
from centralflow_eqx.engine.response import Rule, derive, relax
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.engine.state_rate import Exponential
from centralflow_eqx.errors import UnsupportedRule
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.experiment.start import identity
from centralflow_eqx.optimizers import GD, RMSProp
from centralflow_eqx.processes import Observation, Setting
from centralflow_eqx.processes.probes import Coordinates, Outputs, Preconditioners

D, LR = 12, 3.0
INDICES = jnp.array([0, 3, 11])
RNG = np.random.default_rng(0)


class Curved(eqx.Module):
    """Two numbers that are quadratic in the weights."""

    A: jax.Array
    c: jax.Array

    def __call__(self, w):
        return jnp.einsum("qij,i,j->q", self.A, w, w) + self.c @ w


@pytest.fixture(scope="module")
def scene():
    """A flow's setting and observation on a quadratic loss, with three oscillating directions."""
    H = jnp.asarray(symmetric(np.r_[2.0, 1.9, 1.8, RNG.uniform(0, 1, D - 3)]))
    loss, w = Quadratic(H, jnp.asarray(RNG.normal(size=D))), jnp.asarray(RNG.normal(size=D))
    rule = Rule(RMSProp(LR, 0.9), identity)
    s = relax(rule.update(jax.grad(loss)(w), rule.init(w), w)[1], w)
    response = derive(rule, s, w, jax.grad(loss)(w), jr.key(0))
    settings = Settings().resolved(w.dtype, restoration=0.5)
    setting = Setting(loss, response, Exponential(), settings)
    pairs = EigenTracker(initial=4).solve(
        local_model(loss, w), response.gain(s, w), unsolved(D, 4, w.dtype, jr.key(1))
    )
    A = RNG.normal(size=(4, 3))
    X = jnp.asarray(A @ A.T)
    series = {"raw_eigenvalues": jnp.linalg.eigvalsh(H)[::-1]}
    seen = Observation(w, s, series, modes(pairs.Y, pairs.U, pairs.theta, X))
    return setting, seen, pairs.U @ X @ pairs.U.T


def average(f, seen):
    """Of f over weights displaced by every combination of one standard deviation per mode."""
    deviations = (seen.oscillation.vectors * jnp.sqrt(seen.oscillation.variances)).T
    signs = itertools.product([-1.0, 1.0], repeat=len(deviations))
    return np.mean([f(seen.weights + jnp.array(s) @ deviations) for s in signs], axis=0)


def test_modes_are_those_of_the_covariance(scene):
    setting, seen, covariance = scene
    found = seen.oscillation
    U, variances = found.vectors, found.variances
    np.testing.assert_allclose((U * variances) @ U.T, covariance, atol=1e-12)
    np.testing.assert_allclose(found.projectors.T @ U, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(found.gradients, setting.loss.H @ U, atol=1e-9)
    assert np.all(np.diff(variances) <= 0) and variances[3] < 1e-12 < variances[2]


def test_predicted_squares_are_averages_over_the_oscillation(scene):
    setting, seen, _ = scene
    series, _, overflow = Coordinates(indices=INDICES).measure(setting, seen, None)
    gradient = jax.grad(setting.loss)
    np.testing.assert_allclose(series["grad_sq_at"], gradient(seen.weights)[INDICES] ** 2)
    expected = average(lambda w: gradient(w)[INDICES] ** 2, seen)
    np.testing.assert_allclose(series["predicted_grad_sq_at"], expected, rtol=1e-9)
    np.testing.assert_array_equal(series["state/nu_at"], seen.post.nu[INDICES])
    assert not overflow


def test_predicted_outputs_are_averages_over_the_oscillation(scene):
    setting, seen, _ = scene
    function = Curved(jnp.asarray(RNG.normal(size=(2, D, D))), jnp.asarray(RNG.normal(size=(2, D))))
    series, _, _ = Outputs(function=function).measure(setting, seen, None)
    np.testing.assert_allclose(series["outputs"], function(seen.weights))
    np.testing.assert_allclose(series["predicted_outputs"], average(function, seen), rtol=1e-9)


def test_processes_that_predict_nothing_have_no_predictions(scene):
    setting, seen, _ = scene
    plain = Observation(seen.weights, seen.post, seen.series)
    for probe in (Coordinates(indices=INDICES), Outputs(function=lambda w: w[:2])):
        assert not [k for k in probe.measure(setting, plain, None)[0] if "predicted" in k]


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_preconditioners_are_those_of_convex_programs(scene):
    setting, seen, _ = scene
    H, nu = np.asarray(setting.loss.H), np.asarray(seen.post.nu)
    g = np.asarray(jax.grad(setting.loss)(seen.weights))
    probe = Preconditioners(indices=INDICES)
    series, _, overflow = probe.measure(setting, seen, probe.init(seen.weights, D, jr.key(2)))
    assert not overflow
    settled, least = stationary_average(H, g, LR), least_stable(H)
    assert np.linalg.norm(settled - g**2) > 0.01 * np.linalg.norm(settled)  # something oscillates

    def close(name, expected, rtol):
        np.testing.assert_allclose(series[f"stationary/{name}"], expected, rtol)

    close("nu_at", settled[INDICES], 1e-4)
    close("cosine", nu @ settled / np.linalg.norm(nu) / np.linalg.norm(settled), 1e-6)
    close("efficacy", np.sum(g**2 * LR / np.sqrt(nu)), 1e-10)
    close("efficacy_stationary", np.sum(g**2 * LR / np.sqrt(settled)), 1e-5)
    close("efficacy_stability", np.sum(g**2 / least), 1e-4)
    close("efficacy_scalar", 2 * g @ g / np.linalg.eigvalsh(H)[-1], 1e-10)


def test_preconditioners_without_chosen_weights(scene):
    setting, seen, _ = scene
    probe = Preconditioners(indices=INDICES[:0])
    carry = probe.init(seen.weights, D, jr.key(2))
    series, *_ = eqx.filter_eval_shape(probe.measure, setting, seen, carry)
    # an empty series has no axis in a run directory
    assert "stationary/cosine" in series and all(np.prod(s.shape) > 0 for s in series.values())


def test_preconditioners_make_room_for_themselves(scene):
    setting, seen, _ = scene
    probe = Preconditioners(indices=INDICES)
    *_, overflow = probe.measure(setting, seen, probe.init(seen.weights, 1, jr.key(2)))
    assert overflow


@pytest.mark.slow
def test_probes_are_taken_at_their_own_steps():
    rows = list(
        simulate(
            TinyMLP.make(),
            RMSProp(0.02, 0.9),
            jnp.asarray(RNG.normal(size=TinyMLP.SIZE)),
            processes=["discrete", "midpoint", "central"],
            steps=5,
            record_every=2,
            probes=[Coordinates(indices=INDICES), Preconditioners(indices=INDICES, every=2)],
        )
    )
    assert [row.step for row in rows] == [0, 2, 4]
    for row in rows:
        for process, series in row.series.items():
            assert series["grad_sq_at"].shape == (3,)
            expected = process != "discrete" and row.step % 4 == 0
            assert ("stationary/cosine" in series) == expected
    for row in rows[::2]:
        assert np.isfinite(row.series["central"]["stationary/cosine"])


def test_rules_without_averages_have_no_preconditioners_to_compare():
    with pytest.raises(UnsupportedRule, match="is an average"):
        simulate(
            TinyMLP.make(),
            GD(0.1),
            jnp.ones(TinyMLP.SIZE),
            steps=1,
            probes=[Preconditioners(indices=INDICES)],
        )
