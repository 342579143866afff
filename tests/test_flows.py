"""Flows as time steppers: accuracy in the step, compilation, the smooth flow."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _losses import (
    MatrixDecay,
    Quadratic,
    TinyMLP,
    flat_rule,
    symmetric,
    warm_state,
)

from centralflow_eqx.engine.curvature import unsolved
from centralflow_eqx.engine.response import derive
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.engine.state_rate import Exponential
from centralflow_eqx.experiment import start
from centralflow_eqx.experiment.advance import move
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.optimizers import GD, RMSProp
from centralflow_eqx.processes import PROCESSES, STOP, AbstractProcess, Setting

pytestmark = pytest.mark.optimized
COMPILATION = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """A list that grows by one entry with every compilation."""
    events = []

    def listen(event, duration, **_):
        if event == COMPILATION:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def tiny_weights(scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(3).normal(size=TinyMLP.SIZE))


MOVERS = [n for n in PROCESSES.names() if issubclass(PROCESSES[n], AbstractProcess)]
DECAYED = MatrixDecay(GD(0.1), symmetric(np.linspace(0, 0.3, TinyMLP.SIZE)))


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [*((RMSProp(0.02, 0.9), name) for name in MOVERS), (DECAYED, "central")],
)
def test_no_process_calls_back_to_the_host(optimizer, name):
    # Callbacks hold the device up, and programs that have one stay out of JAX's compilation cache.
    loss, rule, key = TinyMLP.make(), flat_rule(optimizer), jr.key(0)
    w, grad, s = warm_state(rule, TinyMLP.SIZE)
    setting = Setting(
        loss,
        derive(rule, s, w, grad, key),
        Exponential(),
        Settings().resolved(w.dtype, restoration=0.5),
        minibatch=lambda w, number, key: loss(w),
    )
    process, zero = PROCESSES[name](setting), jnp.zeros((), jnp.int32)
    state = process.init(w, s, unsolved(w.size, 2, w.dtype, key), key)
    arguments = process, state, STOP.running, zero, zero, zero + 1, jnp.inf * loss(w), 4
    program = move.lower(*arguments).as_text()
    assert "stablehlo.while" in program and "callback" not in program


def test_everything_is_compiled_by_the_first_row_of_the_first_run(compilations):
    rows = simulate(TinyMLP.make(), RMSProp(0.02, 0.9), tiny_weights(), steps=6)
    next(rows)
    before = len(compilations)
    assert before > 0  # the listener hears something
    assert len(list(rows)) == 5
    assert len(compilations) == before
    # Other values of the hyperparameters are arguments of the same programs.
    list(simulate(TinyMLP.make(), RMSProp(0.021, 0.91), tiny_weights(), steps=2))
    assert len(compilations) == before


def growing(room, steps=20):
    """Rows of a flow on which four weights sit in wells that sharpen together."""

    def loss(w):
        return jnp.exp(w[0]) * jnp.sum(w[1:5] ** 2) / 2 + jnp.sum(w[5:] ** 2) / 20 - 0.2 * w[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "_ROOM", room)
        return simulate(
            loss,
            GD(0.5),
            jnp.zeros(16).at[0].set(0.9),
            processes=("central",),
            steps=steps,
            settings=Settings(critical_above=1.99, tol=1e-6),
        )


@pytest.mark.slow
def test_a_growing_spectrum_compiles_what_it_must_once_more(compilations):
    capacities, counts = [], []
    for row in growing(room=2):
        capacities.append(row.series["central"]["eigenvalues"].size)
        counts.append(len(compilations))
    assert capacities[0] < 8 == capacities[-1]
    compiled = np.flatnonzero(np.diff(counts)) + 1
    grown = np.flatnonzero(np.diff(capacities)) + 1
    assert set(compiled) <= set(grown)


@pytest.mark.slow
def test_room_changes_no_result():
    narrow, wide = list(growing(room=2)), list(growing(room=8))
    for a, b in zip(narrow, wide, strict=True):
        # eigenpairs are exact to 1e-6, eigenvalues and weights to its square
        np.testing.assert_allclose(a.weights["central"], b.weights["central"], rtol=0, atol=1e-11)


@pytest.mark.slow
def test_the_central_flow_converges_at_first_order_in_the_substep():
    loss, start = TinyMLP.make(), tiny_weights()
    sharpness = jnp.linalg.eigvalsh(jax.hessian(loss)(start))[-1]

    def end(substeps):
        *_, last = simulate(
            loss,
            GD(float(1.9 / sharpness)),  # it reaches 2 within a few steps
            start,
            processes=("central",),
            steps=25,
            settings=Settings(method="euler", substeps=substeps),
            record_every=24,
        )
        return last

    finest = end(32)
    assert finest.series["central"]["sigma_eigenvalues"][0] > 1e-4  # it does oscillate
    errors = [
        np.linalg.norm(end(n).weights["central"] - finest.weights["central"]) for n in (2, 4, 8)
    ]
    # The error of the reference itself, 1/32, is subtracted from a first-order error.
    expected = np.array([1 / 2 - 1 / 32, 1 / 4 - 1 / 32, 1 / 8 - 1 / 32])
    slopes = errors / expected
    np.testing.assert_allclose(slopes / slopes[1], 1, atol=0.35)


def test_the_stable_flow_of_gradient_descent_is_gradient_flow():
    eigenvalues = np.array([8.0, 3.0, 1.0, 0.5, 0.2, 0.1, -0.05, 0.02])
    H, lr = symmetric(eigenvalues), 0.7
    w = np.random.default_rng(1).normal(size=8)
    values, vectors = np.linalg.eigh(H)
    rows = simulate(
        Quadratic(jnp.asarray(H)), GD(lr), jnp.asarray(w), processes=("stable",), steps=8
    )
    for row in rows:
        exact = vectors @ (np.exp(-lr * row.step * values) * (vectors.T @ w))
        np.testing.assert_allclose(row.weights["stable"], exact, atol=1e-5 * np.linalg.norm(w))
