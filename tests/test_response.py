"""The derived response: thresholds of the literature, mean gains, averages, and refusals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import (
    Adam,
    DecoupledDecay,
    HeavyBall,
    Recursion,
    Stateless,
    flat_rule,
    quick_compilation,  # noqa: F401
    symmetric,
    warm_state,
)

from centralflow_eqx.errors import UnsupportedRule
from centralflow_eqx.optimizers import GD, AbstractOptimizer, RMSProp, ScalarRMSProp
from centralflow_eqx.response import Response, Structure, apply_columns, derive

D, ETA, B, BETA2, EPS, STEPS, DECAY = 12, 0.1, 0.6, 0.9, 0.05, 5, 0.3
KEY = jr.key(0)


def plain(s):
    return 1.0


def inverse_root(s):
    return 1 / np.sqrt(s.nu)


def inverse_root_eps(s):
    return 1 / (np.sqrt(s.nu) + EPS)


def inverse_root_debiased(s):
    return 1 / (np.sqrt(s.nu / (1 - BETA2**STEPS)) + EPS)


class Case(NamedTuple):
    """A rule, and the critical eigenvalue of diag(scale(s)) H in the literature."""

    optimizer: AbstractOptimizer
    threshold: float
    scale: Callable[[Any], Any] = plain
    mean: float = -ETA


HEAVY = HeavyBall(ETA, B)
CASES = {
    "gd": Case(GD(ETA), 2 / ETA),
    "scalar_rmsprop": Case(ScalarRMSProp(ETA, BETA2), 2 / ETA, inverse_root),
    "scalar_rmsprop debiased": Case(
        ScalarRMSProp(ETA, BETA2, EPS, True), 2 / ETA, inverse_root_debiased
    ),
    "rmsprop": Case(RMSProp(ETA, BETA2), 2 / ETA, inverse_root),
    "rmsprop eps": Case(RMSProp(ETA, BETA2, EPS), 2 / ETA, inverse_root_eps),
    "rmsprop debiased": Case(RMSProp(ETA, BETA2, EPS, True), 2 / ETA, inverse_root_debiased),
    "heavy ball": Case(HEAVY, 2 * (1 + B) / ETA, mean=-ETA / (1 - B)),
    "averaged momentum": Case(
        HeavyBall(ETA, 0.9, weight=1 - 0.9), 2 * (1 + 0.9) / ((1 - 0.9) * ETA)
    ),
    "nesterov": Case(
        HeavyBall(ETA, B, nesterov=True), (2 / ETA) * (1 + B) / (1 + 2 * B), mean=-ETA / (1 - B)
    ),
    "adam": Case(Adam(ETA, B, BETA2), 2 * (1 + B) / ((1 - B) * ETA), inverse_root),
    "gd decayed": Case(DecoupledDecay(GD(ETA), DECAY), (2 - DECAY) / 2 * 2 / ETA),
    "heavy ball decayed": Case(
        DecoupledDecay(HEAVY, DECAY), (2 - DECAY) / 2 * 2 * (1 + B) / ETA, mean=-ETA / (1 - B)
    ),
    "heavy ball coupled": Case(
        replace(HEAVY, coupled=DECAY), 2 * (1 + B) / ETA - DECAY, mean=-ETA / (1 - B)
    ),
}


@pytest.fixture(scope="module")
def derived():
    """`name -> (response, s, w, g)`; each rule is derived once."""
    cache = {}

    def get(name):
        if name not in cache:
            rule = flat_rule(CASES[name].optimizer)
            w, g, s = warm_state(rule, D, STEPS)
            cache[name] = derive(rule, s, w, g, KEY), s, w, g
        return cache[name]

    return get


def critical_hessian(case, s):
    """A quadratic whose largest eigenvalue of diag(scale) H is the threshold."""
    H = symmetric(np.linspace(0.5, 1, D))
    root = np.sqrt(case.scale(s)) * np.ones(D)
    return H * case.threshold / np.linalg.eigvalsh(root[:, None] * H * root)[-1]


def dense(operator):
    return np.asarray(apply_columns(operator, jnp.eye(D)))


def close(a, b, tol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


@pytest.mark.parametrize("name", CASES)
def test_effective_hessian_is_critical_at_two(derived, name):
    response, s, w, _ = derived(name)
    H = critical_hessian(CASES[name], s)
    theta = np.linalg.eigvals(dense(response.gain(s, w)) @ H)
    assert abs(theta.real.max() - 2) < 1e-10


@eqx.filter_jit
def growth(rule, s, H, w):
    """How much the weights grow in 400 steps on a quadratic."""

    def step(_, now):
        w, s = now
        delta, s = rule.update(H @ w, s, w)
        return w + delta, s

    return jnp.linalg.norm(jax.lax.fori_loop(0, 400, step, (w, s))[0]) / jnp.linalg.norm(w)


EMPIRICAL = [name for name in CASES if "debiased" not in name]


@pytest.mark.parametrize("name", EMPIRICAL)
def test_the_discrete_rule_turns_unstable_at_the_threshold(derived, name):
    _, s, w, _ = derived(name)
    case = CASES[name]
    optimizer = case.optimizer
    if hasattr(optimizer, "beta2"):
        optimizer = replace(optimizer, beta2=1.0)  # squared statistics stay as they are
    rule, H = flat_rule(optimizer), jnp.asarray(critical_hessian(case, s))
    start = rule.init(w)
    if hasattr(s, "nu"):
        start = start._replace(nu=s.nu)
    assert growth(rule, start, 0.99 * H, w) < 1e-2
    assert growth(rule, start, 1.01 * H, w) > 1e2


@pytest.mark.parametrize("name", [n for n in CASES if "decayed" not in n and "coupled" not in n])
def test_mean_gain(derived, name):
    response, s, w, g = derived(name)
    expected = CASES[name].mean * CASES[name].scale(s) * g
    close(response.mean_gain(s, w, g), expected)


@pytest.mark.parametrize("name", CASES)
def test_pre_inverts_advance(derived, name):
    response, s, w, g = derived(name)
    close(response.advance(response.pre(s, g, w), g, w), s)
    close(response.pre(response.advance(s, g, w), g, w), s)
    step = response.step(s, g, w)
    close(response.step_from(response.advance(s, g, w), g, w), step)


def test_slopes(derived):
    for name, expected in {
        "gd": (1.0,),
        "scalar_rmsprop": (1.0, BETA2),
        "rmsprop": (1.0, np.full(D, BETA2)),
        "adam": (np.full(D, B), np.full(D, BETA2)),
    }.items():
        response, s, w, _ = derived(name)
        close(tuple(response.slopes(s, w)), expected)


def test_an_entry_that_is_forgotten_is_left_alone_by_pre():
    rule = flat_rule(HeavyBall(ETA, 0.0))
    w, g, s = warm_state(rule, D)
    response = Response(rule, Structure(True, True, "none", True))
    assert jnp.all(response.slopes(s, w).m == 0)
    assert jnp.all(response.pre(s, 2 * g, w).m == s.m)
    close(response.step_from(s, 2 * g, w), -2 * ETA * g)


@pytest.mark.parametrize("name", ["gd", "scalar_rmsprop", "rmsprop", "rmsprop debiased", "adam"])
def test_average_of_the_state_over_an_oscillation(derived, name):
    response, s, w, g = derived(name)
    q, r = jr.normal(KEY, (2, D))

    def average(*amplitudes):
        states = [response.advance(s, g + a, w) for a in amplitudes]
        return jax.tree.map(lambda *x: sum(x) / len(x), *states)

    def predicted(*pairs):
        added = [response.quadratic(s, g, w, *pair) for pair in pairs]
        return jax.tree.map(lambda f, *c: f + sum(c), response.advance(s, g, w), *added)

    close(average(q, -q), predicted((q, q)), 1e-10)
    # correlated oscillations along both: E[...] has the cross term twice
    close(average(q + r, -q - r), predicted((q, q), (r, r), (q, r), (r, q)), 1e-10)
    # uncorrelated ones: no cross term
    close(average(q + r, -q - r, q - r, r - q), predicted((q, q), (r, r)), 1e-10)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "gd": (True, True, "none", False),
        "scalar_rmsprop": (True, True, "none", False),
        "rmsprop": (False, True, "none", False),
        "heavy ball": (True, True, "none", True),
        "adam": (False, True, "none", True),
        "gd decayed": (False, True, "diagonal", False),
        "heavy ball coupled": (False, True, "diagonal", True),
    }.items(),
)
def test_structure(derived, name, expected):
    assert tuple(derived(name)[0].structure) == expected


A = jnp.asarray(symmetric(np.linspace(0.2, 1, D), seed=1))
W = jnp.asarray(symmetric(np.linspace(-0.5, 1.5, D), seed=2))


def precondition(g):
    return -A @ g


def skew(g):
    return -g - jnp.concatenate([g[1:], jnp.zeros(1)])


def derive_fresh(optimizer):
    rule = flat_rule(optimizer)
    w, g, s = warm_state(rule, D)
    return derive(rule, s, w, g, KEY), s, w


def test_a_full_preconditioner_takes_the_general_path():
    response, s, w = derive_fresh(Stateless(precondition))
    assert tuple(response.structure) == (False, False, "none", False)
    close(dense(response.gain(s, w)), A)
    H = symmetric(np.linspace(-1, 3, D), seed=3)
    theta = np.sort(np.linalg.eigvals(dense(response.gain(s, w)) @ H).real)
    root = np.linalg.cholesky(A)
    close(theta, np.linalg.eigvalsh(root.T @ H @ root), 1e-10)


def test_a_matrix_decay_takes_the_general_path():
    response, s, w = derive_fresh(DecoupledDecay(GD(ETA), W))
    assert tuple(response.structure) == (False, True, "general", False)
    expected = ETA * jnp.linalg.inv(jnp.eye(D) - W / 2)
    close(dense(response.gain(s, w)), expected, 1e-10)


def test_a_decay_that_spoils_the_symmetry_of_the_gain_is_refused():
    with pytest.raises(UnsupportedRule, match="not a symmetric operator"):
        derive_fresh(DecoupledDecay(RMSProp(ETA, BETA2), W))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Stateless(jnp.sign), "does not respond to a small oscillation"),
        (RMSProp(ETA, beta2=0.0), "does not respond to a small oscillation"),
        (Stateless(skew), "not a symmetric operator"),
        (Recursion(lambda m: B * jnp.roll(m, 1)), "depends on other entries"),
        (Recursion(lambda m: -0.5 * m), "multiplies itself by -0.5 to 1 a step"),
        (Recursion(lambda m: 1.25 * m), "multiplies itself by 1 to 1.25 a step"),
    ],
    ids=["sign", "rmsprop without memory", "asymmetric", "mixing", "alternating", "growing"],
)
def test_rules_outside_the_theory_are_refused(optimizer, message):
    with pytest.raises(UnsupportedRule, match=message):
        derive_fresh(optimizer)
