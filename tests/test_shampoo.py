"""Shampoo: its steps in NumPy, its gain in closed form, its threshold, and how the gain moves."""

import os
import subprocess
import sys
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import symmetric, warm_state
from _marks import quick

from centralflow_eqx.engine.curvature import apply_columns
from centralflow_eqx.engine.response import Rule, derive
from centralflow_eqx.optimizers import Shampoo
from centralflow_eqx.optimizers.shampoo import Factors

ETA, BETA2, EPS, M, N = 0.1, 0.9, 0.05, 4, 3
D = M * N + N


def unravel(w):
    return {"W": w[: M * N].reshape(M, N), "b": w[M * N :]}


def unravel_dead(w):
    """The weights of the second row have no gradient."""
    return {"W": w[: M * N].reshape(M, N).at[1].multiply(0), "b": w[M * N :]}


def power(A, p, eps):
    """(A + eps I)^{-p} in NumPy; of the pseudo-inverse for eps = 0."""
    x, V = np.linalg.eigh(A)
    x = x + eps
    kept = x > 1e-12 * x[-1]
    return V[:, kept] * x[kept] ** -p @ V[:, kept].T


def descend(gradients, lr, beta2, eps, p):
    """Steps for a sequence of gradients of one array, in NumPy."""
    nu = L = R = 0
    for t, g in enumerate(gradients):
        if g.ndim < 2:
            nu = beta2 * nu + (1 - beta2) * g**2
            yield -lr(t) * g / (np.sqrt(nu) + eps)
        else:
            G = g.reshape(len(g), -1)
            L = beta2 * L + (1 - beta2) * G @ G.T
            R = beta2 * R + (1 - beta2) * G.T @ G
            yield -lr(t) * (power(L, p, eps) @ G @ power(R, p, eps)).reshape(g.shape)


def constant(t):
    return ETA


def falling(t):
    return ETA / (1 + t)


@pytest.mark.parametrize(
    ("options", "lr"),
    [
        ({"lr": ETA, "beta2": BETA2}, constant),
        ({"lr": falling, "beta2": BETA2, "eps": EPS, "power": 0.4}, falling),
        ({"lr": ETA, "beta2": BETA2, "eps": 0.0}, constant),
    ],
    ids=["default", "scheduled", "no eps"],
)
def test_the_first_steps(options, lr):
    rng, optimizer = np.random.default_rng(0), Shampoo(**options)
    shapes = {"W": (M, N), "tensor": (2, 3, 2), "row": (1, 3), "b": (N,), "scalar": ()}
    gradients = {name: rng.normal(size=(4, *shape)) for name, shape in shapes.items()}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    expected = {
        name: list(descend(g, lr, BETA2, optimizer.eps, optimizer.power))
        for name, g in gradients.items()
    }
    state = optimizer.init(params)
    for t in range(4):
        step, state = eqx.filter_jit(optimizer.update)(
            {name: jnp.asarray(g[t]) for name, g in gradients.items()}, state, params
        )
        for name in shapes:
            np.testing.assert_allclose(step[name], expected[name][t], rtol=0, atol=1e-12)
    assert state.count == 4


def test_the_first_step_without_eps_is_orthogonal():
    """L = (1 - beta2) G G^T and R = (1 - beta2) G^T G leave the polar factor of G."""
    G = jnp.asarray(np.random.default_rng(0).normal(size=(M, N)))
    optimizer = Shampoo(ETA, BETA2, eps=0.0)
    step, _ = optimizer.update(G, optimizer.init(G), G)
    np.testing.assert_allclose(step.T @ step, ETA**2 / (1 - BETA2) * np.eye(N), atol=1e-14)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_rows_and_arrays_without_gradient_never_move(eps):
    rng, optimizer = np.random.default_rng(0), Shampoo(ETA, BETA2, eps)
    params = {"W": jnp.zeros((M, N)), "dead": jnp.zeros((2, 3))}
    state = optimizer.init(params)
    for G in rng.normal(size=(3, M, N)):
        grad = {"W": jnp.asarray(G).at[1].set(0), "dead": params["dead"]}
        step, state = eqx.filter_jit(optimizer.update)(grad, state, params)
        assert jnp.all(step["dead"] == 0)
        moved = jnp.max(jnp.abs(step["W"]), axis=1)
        assert moved[1] < 1e-11
        assert jnp.all(jnp.delete(moved, 1) > 1e-2)


CASES = {
    "eps": (Shampoo(ETA, BETA2, EPS), unravel),
    "no eps": (Shampoo(ETA, BETA2, 0.0, power=0.5), unravel),
    "dead row": (Shampoo(ETA, BETA2, 0.0), unravel_dead),
    "dead row, eps": (Shampoo(ETA, BETA2, EPS), unravel_dead),
}


@pytest.fixture(scope="module")
def derived():
    """`name -> (response, s, w)`; each rule is derived once."""
    cache = {}

    def get(name):
        if name not in cache:
            rule = Rule(*CASES[name])
            w, g, s = warm_state(rule, D)
            cache[name] = derive(rule, s, w, g, jr.key(0)), s, w
        return cache[name]

    return get


@eqx.filter_jit
def dense(response, s, w):
    return apply_columns(response.gain(s, w), jnp.eye(w.size))


def closed_form(optimizer, s):
    """lr L^{-p} kron R^{-p} for the matrix, weights row by row, and lr / root for the vector."""
    (L, R), nu = s.statistics["W"], s.statistics["b"]
    K = np.zeros((D, D))
    K[: M * N, : M * N] = np.kron(*(power(A, optimizer.power, optimizer.eps) for A in (L, R)))
    K[M * N :, M * N :] = np.diag(1 / (np.sqrt(nu) + optimizer.eps))
    return ETA * K


@pytest.mark.parametrize("name", quick(CASES, "eps", "dead row"))
def test_the_gain_is_a_kronecker_product(derived, name):
    response, s, w = derived(name)
    K = np.asarray(dense(response, s, w))
    expected = closed_form(CASES[name][0], s)
    if CASES[name][1] is unravel_dead:
        dead = np.zeros(D, bool)
        dead[N : 2 * N] = True  # their gradient does not oscillate either
        expected[dead] = expected[:, dead] = 0
    np.testing.assert_allclose(K, expected, rtol=0, atol=1e-10 * expected.max())
    np.testing.assert_allclose(K, K.T, rtol=0, atol=1e-13 * expected.max())
    assert response.structure.gain == "general"
    assert response.structure.decay == "none"
    assert not response.structure.momentum
    assert response.structure.refusal == ""


@eqx.filter_jit
def growth(rule, s, H, w):
    """How much the weights grow in 400 steps on a quadratic."""

    def step(_, now):
        w, s = now
        delta, s = rule.update(H @ w, s, w)
        return w + delta, s

    return jnp.linalg.norm(jax.lax.fori_loop(0, 400, step, (w, s))[0]) / jnp.linalg.norm(w)


@pytest.mark.parametrize("name", quick(["eps", "no eps"], "eps"))
def test_the_discrete_rule_turns_unstable_at_the_threshold(derived, name):
    response, s, w = derived(name)
    K, H = dense(response, s, w), symmetric(np.linspace(0.5, 1, D))
    H = H * 2 / np.linalg.eigvals(K @ H).real.max()
    frozen = Rule(replace(CASES[name][0], beta2=1.0), unravel)
    assert growth(frozen, s, 0.99 * H, w) < 1e-2
    assert growth(frozen, s, 1.01 * H, w) > 1e2


def change_of(s, dead_row):
    """A symmetric change of the statistics; a dead row's stay zero."""
    rng, live = np.random.default_rng(3), np.ones(M)
    live[1] = 0 if dead_row else 1
    E, F = rng.normal(size=(M, M)) * np.outer(live, live), rng.normal(size=(N, N))
    W = Factors(jnp.asarray(E + E.T), jnp.asarray(F + F.T))
    b = jnp.asarray(rng.normal(size=N))
    return jax.tree.map(jnp.zeros_like, s)._replace(statistics={"W": W, "b": b})


@eqx.filter_jit
def moving_gain(response, s, ds, w, y):
    """The gain's change along `ds`: by forward mode, and by central differences."""

    def image(s):
        return response.gain(s, w).mv(y)

    def along(h):
        return image(jax.tree.map(lambda x, d: x + h * d, s, ds))

    h = 1e-4 * jnp.min(s.statistics["b"])
    numeric = (along(-2 * h) - 8 * along(-h) + 8 * along(h) - along(2 * h)) / (12 * h)
    return jax.jvp(image, (s,), (ds,))[1], numeric


@pytest.mark.parametrize("name", quick(CASES, "eps", "dead row"))
def test_how_the_gain_moves_with_the_state(derived, name):
    response, s, w = derived(name)
    ds = change_of(s, CASES[name][1] is unravel_dead)
    y = jnp.asarray(np.random.default_rng(4).normal(size=D))
    exact, numeric = moving_gain(response, s, ds, w, y)
    assert jnp.max(jnp.abs(exact)) > 1e-2
    np.testing.assert_allclose(exact, numeric, rtol=0, atol=1e-7 * float(jnp.max(jnp.abs(exact))))


def test_how_the_gain_moves_where_eigenvalues_meet(derived):
    response, s, w = derived("eps")
    ds, y = change_of(s, False), jnp.ones(D)
    met = Factors(2 * jnp.eye(M), jnp.diag(jnp.array([3.0, 3.0, 5.0])))
    s = s._replace(statistics={**s.statistics, "W": met})
    exact, numeric = moving_gain(response, s, ds, w, y)
    np.testing.assert_allclose(exact, numeric, rtol=0, atol=1e-7 * float(jnp.max(jnp.abs(exact))))


PROBED = """
import jax
import jax.numpy as jnp

from centralflow_eqx.engine.response import Response, Rule, Structure, relax
from centralflow_eqx.optimizers import Shampoo

jax.config.update("jax_enable_x64", True)
SHAPE = (MATRICES, 48, 48)
w = jnp.cos(jnp.arange(float(jnp.prod(jnp.array(SHAPE)))))
rule = Rule(Shampoo(0.1), lambda w: list(w.reshape(SHAPE)))
s = relax(rule.update(w, rule.init(w), w)[1], w)
nonlinearity = jax.jit(Response(rule, Structure()).nonlinearity)
assert all(nonlinearity(s, w, w) < 1e-8 for _ in range(10))
"""


def test_decompositions_do_not_wait_for_each_other():
    # Batches of matrices would for ever, once as many as there are threads are due.
    program = PROBED.replace("MATRICES", str(min(2 * (os.cpu_count() or 1), 16)))
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
