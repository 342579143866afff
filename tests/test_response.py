"""The derived response: its structure, the state's averages, and what is refused.

Thresholds and gains of every rule are in test_contract.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from _losses import (
    MatrixDecay,
    MeanSize,
    Recursion,
    Stateless,
    flat_rule,
    symmetric,
    warm_state,
)
from _marks import quick

from centralflow_eqx.engine.curvature import apply_columns
from centralflow_eqx.engine.response import (
    Response,
    Rule,
    Structure,
    derive,
    examine,
    traced_numbers,
)
from centralflow_eqx.errors import UnsupportedRule
from centralflow_eqx.optimizers import (
    GD,
    AbstractOptimizer,
    AdaGrad,
    Adam,
    DecoupledDecay,
    HeavyBall,
    Optax,
    RMSProp,
    ScalarRMSProp,
)

D, ETA, B, BETA2 = 12, 0.1, 0.6, 0.9
DECAY = 0.3
KEY = jr.key(0)
CASES = {
    "gd": GD(ETA),
    "scalar_rmsprop": ScalarRMSProp(ETA, BETA2),
    "rmsprop": RMSProp(ETA, BETA2),
    "rmsprop debiased": RMSProp(ETA, BETA2, 0.05, True),
    "heavy_ball": HeavyBall(ETA, B),
    "adam": Adam(ETA, B, BETA2),
    "gd decayed": DecoupledDecay(GD(ETA), ETA, DECAY),
    "adagrad": AdaGrad(ETA),
}


@pytest.fixture(scope="module")
def derived():
    """`name -> (response, s, w, g)`; each rule is derived once."""
    cache = {}

    def get(name):
        if name not in cache:
            rule = flat_rule(CASES[name])
            w, g, s = warm_state(rule, D)
            cache[name] = derive(rule, s, w, g, KEY), s, w, g
        return cache[name]

    return get


def dense(operator):
    return np.asarray(apply_columns(operator, jnp.eye(D)))


def close(a, b, tol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


@pytest.mark.parametrize("name", quick(CASES, "rmsprop debiased", "adam"))
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
        "adam": (1.0, np.full(D, B), np.full(D, BETA2)),
        "adagrad": (1.0, np.ones(D)),
    }.items():
        response, s, w, _ = derived(name)
        close(tuple(response.slopes(s, w)), expected)


def test_an_entry_that_is_forgotten_is_left_alone_by_pre():
    rule = flat_rule(HeavyBall(ETA, 0.0))
    w, g, s = warm_state(rule, D)
    response = Response(rule, Structure())
    assert jnp.all(response.slopes(s, w).m == 0)
    assert jnp.all(response.pre(s, 2 * g, w).m == s.m)
    close(response.step_from(s, 2 * g, w), -2 * ETA * g)


@pytest.mark.parametrize("name", CASES)
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
        "gd": ("scalar", "none", False, False, False, False, "", ()),
        "scalar_rmsprop": ("scalar", "none", False, False, True, False, "", ()),
        "rmsprop": ("diagonal", "none", False, False, True, False, "", ()),
        "heavy_ball": ("scalar", "none", False, True, False, False, "", ()),
        "adam": ("diagonal", "none", False, True, True, False, "", ()),
        "gd decayed": ("diagonal", "diagonal", False, False, False, False, "", ()),
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
    assert tuple(response.structure) == ("general", "none", False, False, False, False, "", ())
    close(dense(response.gain(s, w)), A)
    H = symmetric(np.linspace(-1, 3, D), seed=3)
    theta = np.sort(np.linalg.eigvals(dense(response.gain(s, w)) @ H).real)
    root = np.linalg.cholesky(A)
    close(theta, np.linalg.eigvalsh(root.T @ H @ root), 1e-10)


def test_a_matrix_decay_takes_the_general_path():
    response, s, w = derive_fresh(MatrixDecay(GD(ETA), W))
    assert tuple(response.structure) == ("diagonal", "general", *[False] * 4, "", ())
    expected = ETA * jnp.linalg.inv(jnp.eye(D) - W / 2)
    close(dense(response.gain(s, w)), expected, 1e-10)


def test_what_solves_for_the_decay_decomposes_no_batch():
    response, s, w = derive_fresh(MatrixDecay(GD(ETA), W))

    def gain(w, rows):
        return jax.vmap(response.gain(s, w).mv)(rows)

    program = jax.jit(gain).lower(w, jnp.eye(D)).compile().as_text()
    ranks = [shape.count(",") + 1 for shape in re.findall(r"f64\[([\d,]+)\].*lapack", program)]
    assert ranks and max(ranks) == 2


def test_hyperparameters_become_arrays_unless_a_rule_has_to_know_them():
    class Branching(AbstractOptimizer):
        lr: float

        def init(self, params):
            return ()

        def update(self, grad, state, params):
            return (-self.lr * grad if self.lr > 0 else grad), state

    w = jnp.ones(D, jnp.float32)
    traced = traced_numbers(flat_rule(DecoupledDecay(RMSProp(ETA, BETA2), ETA, DECAY)), w)
    assert len(jax.tree.leaves(eqx.filter(traced, eqx.is_array))) == 5
    state = traced.init(w)
    step, new = eqx.filter_eval_shape(traced.optimizer.update, w, state, w)
    assert step.dtype == new.rule.nu.dtype == jnp.float32  # as Python's numbers would leave it
    branching = flat_rule(Branching(ETA))
    assert traced_numbers(branching, w) is branching


def orthogonalised(g):
    """The polar factor of the gradient as a matrix, as Muon's step."""
    left, _, right = jnp.linalg.svd(g.reshape(4, 3), full_matrices=False)
    return -(left @ right).ravel()


class Circle(AbstractOptimizer):
    """Two momenta, each of which depends on the other's last value."""

    def init(self, params):
        return [jnp.zeros_like(params)] * 2

    def update(self, grad, state, params):
        a, b = state
        new = [0.5 * a + 0.2 * b + grad, 0.5 * b + 0.2 * a + grad]
        return -ETA * new[0], new


class Mixture(AbstractOptimizer):
    """A momentum of g + g^2, in a step with another momentum of it."""

    def init(self, params):
        return [jnp.zeros_like(params)] * 2

    def update(self, grad, state, params):
        mixed = 0.9 * state[0] + grad + grad**2
        new = [mixed, 0.5 * state[1] + mixed]
        return -ETA * new[1], new


REFUSED = {
    "sign": (Stateless(lambda g: -jnp.sign(g)), "zero response"),
    "rmsprop without memory": (RMSProp(ETA, beta2=0.0), "zero response"),
    "lion": (Optax(optax.lion(ETA)), "zero response"),
    "sign of optax": (Optax(optax.sign_sgd(ETA)), "zero response"),
    "normalised": (Optax(optax.normalize_by_update_norm()), "nonlinear response"),
    "orthogonalised": (Stateless(orthogonalised), "nonlinear response"),
    "clipped by norm": (
        Optax(optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(ETA))),
        "nonlinear response",
    ),
    "clipped": (Optax(optax.chain(optax.clip(0.5), optax.sgd(ETA, B))), "nonlinear response"),
    "mean size": (MeanSize(ETA, BETA2), "nonlinear response"),
    "asymmetric": (Stateless(skew), "asymmetric response"),
    "decay without symmetry": (MatrixDecay(RMSProp(ETA, BETA2), W), "asymmetric response"),
    "mixing": (Recursion(lambda m: B * jnp.roll(m, 1)), "depends on other entries"),
    "uphill": (Optax(optax.scale_by_adam()), "moves uphill"),
    "every second step": (
        Optax(optax.chain(optax.apply_every(2), optax.sgd(ETA))),
        "only moves in some steps",
    ),
    "half in every fifth step": (
        Optax(
            optax.chain(
                optax.conditionally_transform(optax.scale(0.5), lambda i: i % 5 == 0),
                optax.sgd(ETA),
            )
        ),
        "differently in different ones",
    ),
    "masked in every third step": (
        Optax(optax.conditionally_mask(optax.sgd(ETA, B), lambda i: i % 3 > 0)),
        "only moves in some steps",
    ),
    "up and down": (
        Optax(optax.contrib.sam(optax.sgd(ETA), optax.sgd(ETA))),
        "differently in different ones",
    ),
    "masked until later": (
        Optax(optax.conditionally_mask(optax.sgd(ETA), lambda i: i > 100)),
        "does not move where the processes start",
    ),
    "in a circle": (Circle(), "depend on each other in a circle"),
    "neither momentum nor average": (Mixture(), "neither changes sign with the gradients"),
    "alternating": (Recursion(lambda m: -0.5 * m), "multiplies itself by -0.5 to 1 a step"),
    "growing": (Recursion(lambda m: 1.25 * m), "multiplies itself by 1 to 1.25 a step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rules_outside_the_theory_are_refused(name):
    optimizer, reason = REFUSED[name]
    with pytest.raises(UnsupportedRule, match=reason):
        derive_fresh(optimizer)


WRAPPED = {
    "guarded": optax.apply_if_finite(optax.sgd(ETA, B), 3),
    "without nans": optax.chain(optax.zero_nans(), optax.sgd(ETA, B)),
    "from the third step on": optax.conditionally_mask(optax.sgd(ETA, B), lambda i: i > 2),
    "flattened": optax.flatten(optax.sgd(ETA, B)),
}


@pytest.mark.parametrize("name", quick(WRAPPED, "without nans", "flattened"))
def test_wrappers_answer_as_what_they_wrap(name):
    response, s, w = derive_fresh(Optax(WRAPPED[name]))
    close(dense(response.gain(s, w)), ETA / (1 + B) * np.eye(D))


@pytest.mark.slow
def test_muon_is_refused():
    rule = Rule(Optax(optax.contrib.muon(ETA)), lambda w: {"W": w.reshape(4, 3)})
    w, g, s = warm_state(rule, D)
    assert "nonlinear response" in examine(rule, s, w, g, KEY).structure.refusal


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        ("sign", "none"),
        ("asymmetric", "none"),
        ("clipped", "scalar"),
        ("clipped by norm", "scalar"),
    ],
)
def test_effective_eigenvalues_are_defined_where_a_small_oscillation_has_an_answer(name, gain):
    rule = flat_rule(REFUSED[name][0])
    w, g, s = warm_state(rule, D)
    response = examine(rule, s, w, g, KEY)
    assert response.structure.gain == gain
    if gain == "none":
        close(dense(response.gain(s, w)), np.eye(D))


def test_clipping_that_is_not_active_changes_nothing():
    clipped = Optax(optax.chain(optax.clip_by_global_norm(1e3), optax.clip(1e2), optax.sgd(ETA)))
    response, s, w = derive_fresh(clipped)
    close(dense(response.gain(s, w)), ETA * np.eye(D))
    assert response.nonlinearity(s, w, jnp.ones(D)) < 1e-12
    assert response.nonlinearity(s, w, 1e4 * jnp.ones(D)) > 0.3
