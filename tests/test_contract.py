"""What every optimizer of the list in `_rules.py` has to satisfy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _losses import symmetric
from _marks import quick
from _rules import RULES, SHAPES, D, after, example, tree, unravel
from jax.flatten_util import ravel_pytree

from centralflow_eqx.engine.curvature import apply_columns
from centralflow_eqx.engine.response import Response, Rule, Structure, relax
from centralflow_eqx.engine.state_rate import Exponential
from centralflow_eqx.optimizers import OPTIMIZERS, Optax

every_rule = pytest.mark.parametrize("name", RULES)
KINDS = (
    "gd",
    "heavy_ball",
    "rmsprop",
    "adamw",
    "shampoo",
    "optax chain",
    "optax multi_transform",
    "optax rmsprop with momentum",
)
each_kind_of_rule = pytest.mark.parametrize("name", quick(RULES, *KINDS))


def close(a, b, tol=1e-12):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


def forms(x):
    return jax.tree.map(lambda x: (x.shape, x.dtype), x)


def test_every_registered_optimizer_is_listed():
    listed = {type(entry.optimizer) for entry in RULES.values()}
    assert {OPTIMIZERS[name] for name in OPTIMIZERS.names()} <= listed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@every_rule
def test_shapes_and_dtypes_are_kept(name, dtype):
    optimizer = RULES[name].optimizer
    params, state = tree(0, dtype), optimizer.init(tree(0, dtype))
    before = forms(state)
    for i in range(2):
        step, state = optimizer.update(tree(i, dtype), state, params)
    assert forms(step) == forms(params)
    assert forms(state) == before
    floating = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x == dtype for x in floating)


@every_rule
def test_jit_changes_nothing(name):
    optimizer = RULES[name].optimizer
    arguments = tree(5), after(optimizer, 2), tree(0)
    close(jax.jit(optimizer.update)(*arguments), optimizer.update(*arguments))


@every_rule
def test_the_first_step_descends(name):
    optimizer = RULES[name].optimizer
    step, _ = optimizer.update(tree(1), optimizer.init(tree(0)), tree(0))
    assert sum(jnp.vdot(step[k], tree(1)[k]) for k in SHAPES) < 0


@every_rule
def test_counters_count_in_integers_and_between_them(name):
    optimizer, params, grad = RULES[name].optimizer, tree(0), tree(1)

    def counters(state):
        return [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]

    state = after(optimizer, 3)
    assert all(x == 3 for x in counters(state))
    relaxed = relax(state, jnp.zeros(1))
    close(optimizer.update(grad, relaxed, params)[0], optimizer.update(grad, state, params)[0])

    halfway = jax.tree.map(lambda x: 2.5 if x.dtype == jnp.int32 else x, state)
    new = optimizer.update(grad, halfway, params)[1]
    between = jax.tree.map(lambda x, n: n if x.dtype == jnp.int32 else None, state, new)
    assert jax.tree.leaves(between) == [3.5] * len(counters(state))


@eqx.filter_jit
def whole_substep(response, before, g, w):
    s = relax(before, w)
    excess = jax.tree.map(jnp.zeros_like, s)
    return Exponential().substep(response, s, w, (g, g), excess, 1.0)


@each_kind_of_rule
def test_a_whole_exponential_substep_is_the_discrete_step(name):
    _, response, before, _, w, g = example(name)
    step, state = response.rule.update(g, before, w)
    close(whole_substep(response, before, g, w), (w + step, relax(state, w)), 1e-13)


@eqx.filter_jit
def responses(response, s, w, g):
    """The dense gain, the answer to a constant gradient, the inverses of `pre` and `advance`."""
    gain = apply_columns(response.gain(s, w), jnp.eye(D))
    inverses = (
        response.advance(response.pre(s, g, w), g, w),
        response.pre(response.advance(s, g, w), g, w),
    )
    return gain, response.mean_gain(s, w, g), inverses


def dense(scale):
    return scale if np.ndim(scale) == 2 else np.diag(scale * np.ones(D))


def critical_hessian(entry, s):
    """A quadratic whose largest eigenvalue of scale(s) H is the threshold."""
    H, root = symmetric(np.linspace(0.5, 1, D)), np.linalg.cholesky(dense(entry.scale(s)))
    return H * entry.threshold / np.linalg.eigvalsh(root.T @ H @ root)[-1]


@each_kind_of_rule
def test_the_response_is_the_literatures(name):
    entry, response, _, s, w, g = example(name)
    gain, mean, inverses = responses(response, s, w, g)
    np.testing.assert_allclose(gain, gain.T, rtol=0, atol=1e-13 * np.abs(gain).max())
    theta = np.linalg.eigvals(gain @ critical_hessian(entry, s))
    assert abs(theta.real.max() - 2) < 1e-10
    close(np.asarray(mean), entry.mean * (dense(entry.scale(s)) @ g))
    for recovered in inverses:
        close(recovered, s)


def momentum_only(changed, kept):
    """The state with the momenta of `changed` and everything else of `kept`."""

    def choose(path, new, old):
        names = {getattr(key, "name", getattr(key, "key", None)) for key in path}
        return new if names & {"m", "mu", "trace"} else old

    return jax.tree_util.tree_map_with_path(choose, changed, kept)


@eqx.filter_jit
def growth(rule, s, hessians, w):
    """How much the weights grow in 400 steps on quadratics, all state but momentum held fixed."""

    def grow(H):
        def step(_, now):
            w, s = now
            delta, new = rule.update(H @ w, s, w)
            return w + delta, momentum_only(new, s)

        return jnp.linalg.norm(jax.lax.fori_loop(0, 400, step, (w, s))[0]) / jnp.linalg.norm(w)

    return jax.lax.map(grow, hessians)


@each_kind_of_rule
def test_the_discrete_rule_turns_unstable_at_the_threshold(name):
    entry, response, before, _, w, _ = example(name)
    rule = response.rule
    start = momentum_only(jax.tree.map(jnp.zeros_like, before), before)
    H = critical_hessian(entry, rule.update(jnp.zeros(D), start, w)[1])
    # Of weights this small the squared gradients do not count.
    below, above = growth(rule, start, jnp.stack([0.99 * H, 1.01 * H]), 1e-8 * w)
    assert below < 1e-2
    assert above > 1e2


@eqx.filter_jit
def without_gradient(rule, w, alive):
    """The first step and its derivative, and what a flow differentiates after it."""
    one, s = jnp.ones(D), relax(rule.init(w), w)
    first = jax.jvp(rule.update, (alive, s, w), jax.tree.map(jnp.ones_like, (alive, s, w)))
    response, s = Response(rule, Structure()), first[0][1]

    def gain(s, w):
        return response.gain(s, w).mv(one)

    return *first, jax.jvp(gain, (s, w), jax.tree.map(jnp.ones_like, (s, w)))


@pytest.mark.parametrize(
    "dead", ["an array and a row", pytest.param("everything", marks=pytest.mark.slow)]
)
@each_kind_of_rule
def test_weights_without_gradient_stay_and_are_differentiable(name, dead):
    rule = Rule(RULES[name].optimizer, unravel)
    w = ravel_pytree(tree(0))[0]
    alive = jnp.zeros(D) if dead == "everything" else w.at[4:].set(0)
    update, rate, gain = without_gradient(rule, w, alive)
    finite = update, gain
    if not isinstance(rule.optimizer, Optax):  # its roots are not guarded
        finite += (rate,)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(finite))
    step = without_gradient(rule, 0 * w, alive)[0][0]  # where nothing decays
    assert jnp.all(step[alive == 0] == 0)
