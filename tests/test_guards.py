"""What is counted stays small, what was mended stays mended."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import Quadratic, TinyMLP, flat_rule, symmetric, warm_state

from centralflow_eqx.engine.curvature import local_model, unsolved
from centralflow_eqx.engine.response import derive
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.engine.state_rate import Exponential
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.optimizers import GD, AbstractOptimizer, RMSProp
from centralflow_eqx.processes import Central, Setting

W = np.random.default_rng(3).normal(size=TinyMLP.SIZE)
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("J", [0.0, 0.5, 0.9999, 1 - 1e-7, 1.0])
def test_the_fraction_of_an_increment_keeps_its_digits(J, dtype):
    """(1 - J^dt)/(1 - J), which cancels for J close to 1, against long double."""
    J, dt = dtype(J), 0.25
    rest = 1 - np.longdouble(J)
    with np.errstate(divide="ignore"):
        expected = dt if rest == 0 else -np.expm1(dt * np.log1p(-rest)) / rest
    found = Exponential().fraction(jnp.asarray(J), jnp.asarray(dt, dtype))
    # 1 - J is exact where J > 1/2; three functions of a few roundings each follow
    np.testing.assert_allclose(found, float(expected), rtol=10 * np.finfo(dtype).eps)
    assert Exponential().fraction(jnp.asarray(J), 0.0) == 0


class Counted(AbstractOptimizer):
    """Another rule that counts how often Python runs it, with more state beside."""

    rule: AbstractOptimizer
    leaves: int = eqx.field(static=True)
    calls: list = eqx.field(static=True)

    def init(self, params):
        return self.rule.init(params), [jnp.zeros(()) for _ in range(self.leaves)]

    def update(self, grad, state, params):
        self.calls.append(1)
        step, own = self.rule.update(grad, state[0], params)
        return step, (own, [0.5 * x for x in state[1]])

    def __hash__(self):
        return id(self)


def test_tracing_does_not_grow_with_the_leaves_of_the_state():
    def calls(leaves):
        rule = flat_rule(Counted(RMSProp(0.02, 0.9), leaves, []))
        w, grad, s = warm_state(rule, TinyMLP.SIZE)
        derive(rule, s, w, grad, jr.key(0))
        return len(rule.optimizer.calls)

    few = calls(1)
    assert few < 60
    assert calls(12) == few


def test_programs_that_a_run_compiles_are_counted():
    """Three members, one eigensolver for all observers, and nothing twice."""
    lowered = collections.Counter()

    def listen(event, _, fun_name="", **__):
        if event == LOWERED:
            lowered[fun_name] += 1

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        list(simulate(TinyMLP.make(), GD(0.1), W, steps=3))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    ours = {
        "move": 3,  # discrete, stable, central
        "_first_state": 3,
        "watch": 1,  # for the survey, the optimizer and its midpoints
        "judge": 1,
        "compare": 1,
        "warm_up": 1,
        "after_update": 1,
        "_probe": 1,
    }
    assert {name: lowered[f"jit({name})"] for name in ours} == ours


def test_products_follow_the_columns_that_are_tracked():
    """Eight columns of room, three eigenvalues above 1.5: room costs no products."""
    spectrum = np.r_[1.8, 1.7, 1.6, np.linspace(0.4, 0.0, 61)]
    loss = Quadratic(jnp.asarray(symmetric(spectrum)))
    rows = list(simulate(loss, GD(1.0), np.zeros(64), processes=("central", "stable"), steps=4))
    # Working on all the room would take eight products at least, wherever a step begins.
    looks = [row.series["central"] for row in rows[1:] if not row.series["central"]["interpolated"]]
    assert looks and all(0 < look["hvps"] < 8 for look in looks)
    assert rows[-1].series["stable"]["hvps"] < 8


@pytest.mark.slow
def test_one_at_a_time_or_all_at_once():
    loss, V = TinyMLP.make(), np.random.default_rng(0).normal(size=(TinyMLP.SIZE, 5))
    whole = local_model(loss, jnp.asarray(W)).hvps(jnp.asarray(V))
    for chunk in (1, 2, 5, 7):
        parts = local_model(loss, jnp.asarray(W), chunk).hvps(jnp.asarray(V))
        size = np.abs(whole).max()
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e3 * np.finfo(float).eps * size)


def test_chunks_of_products_change_no_trajectory():
    def last(chunk):
        settings = Settings(hvp_chunk=chunk, initial=3, tol=1e-6)
        *_, row = simulate(
            TinyMLP.make(), GD(0.3), W, processes=("central",), steps=6, settings=settings
        )
        return row.weights["central"]

    # eigenvectors are converged to 1e-6; what the flow takes from them errs by its square
    np.testing.assert_allclose(last(3), last(1), rtol=0, atol=1e-10)


def test_a_direction_that_is_found_late_is_let_down_gently():
    """Nothing was known of an eigenvalue of 2.6: half of the excess is left after two steps."""
    loss = Quadratic(jnp.asarray(np.diag([2.6, 1.7, 1.6, *np.linspace(0.5, 0, 29)])))
    rule = flat_rule(GD(1.0))
    w, grad, s = warm_state(rule, 32)
    settings = Settings(method="euler", substeps=1, restoration=0.25).resolved(w.dtype, 0.5)
    flow = Central(Setting(loss, derive(rule, s, w, grad, jr.key(0)), Exponential(), settings))
    hidden = jnp.eye(32)[:, 1:5]
    pairs = eqx.tree_at(
        lambda p: (p.Y, p.U, p.previous, p.theta, p.fresh, p.active),
        unsolved(32, 4, w.dtype, jr.key(1)),
        (*(hidden,) * 3, jnp.array([1.7, 1.6, 0.5, 0.48]), jnp.zeros(4, bool), jnp.asarray(3)),
    )
    state = eqx.tree_at(
        lambda s: s.slack, flow.init(jnp.zeros(32), s, pairs, jr.key(2)), jnp.zeros(())
    )
    move, seen = eqx.filter_jit(flow.move), []
    for _ in range(8):
        state, view, verdict = move(state)
        seen.append((float(view.series["eigenvalues"][0]), float(state.slack)))
    found = [slack for theta, slack in seen if theta > 2.5]
    assert found and found[0] == pytest.approx(0.75 * 0.6, rel=1e-6)
