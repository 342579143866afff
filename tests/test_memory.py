"""The estimate of memory against what the compiler allocates."""

from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from centralflow_eqx import simulate
from centralflow_eqx.data import Dataset
from centralflow_eqx.engine.curvature import local_model, third_derivative
from centralflow_eqx.experiment import advance, start
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.memory import estimate_peak, peak_bytes, remedies, warning
from centralflow_eqx.experiment.prepare import prepare
from centralflow_eqx.losses import MSE
from centralflow_eqx.models import MLP, Interface
from centralflow_eqx.optimizers import GD
from centralflow_eqx.placement import Placement
from centralflow_eqx.processes import STOP
from centralflow_eqx.spec import load_spec
from centralflow_eqx.task import Memory, Task

SPECS = Path(__file__).parents[1] / "specs" / "models"

pytestmark = pytest.mark.optimized

COLUMNS = 4


def task(memory=Memory()):  # noqa: B008
    """A perceptron whose activations take far more room than its weights."""
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(1024, 8)), rng.integers(0, 3, 1024), None, None, 3)
    network = MLP((64, 64)).build(Interface((8,), 3), jax.random.key(0))
    return Task(network, MSE(), data, "float32", memory=memory)


def allocated(loss, chunk=0):
    """Bytes of temporary memory of the compiled products and of a third derivative."""
    w = loss.initial_weights
    V = jnp.zeros((w.size, COLUMNS), w.dtype)
    programs = {
        "hvps": (lambda w, V: local_model(loss, w, chunk).hvps(V), (w, V)),
        "third_derivative": (lambda w, u: third_derivative(loss, w, u, u), (w, V[:, 0])),
    }
    return {
        name: jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes
        for name, (f, args) in programs.items()
    }


def test_peak_of_a_program_that_can_be_counted_by_hand():
    n = 8 * 1000  # bytes of a vector

    def f(x):
        a = x + 1  # alive: a
        b = a * 2  # a, b
        c = jnp.sin(b)  # b, c once a is gone
        return c + b  # b, c and the result

    jaxpr = jax.make_jaxpr(f)(jnp.zeros(1000)).jaxpr
    assert peak_bytes(jaxpr) == 3 * n

    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: f(x), x)

    jaxpr = jax.make_jaxpr(loop)(jnp.zeros(1000)).jaxpr
    assert 4 * n <= peak_bytes(jaxpr) <= 4 * n + 100  # the loop's result, and its body


@pytest.mark.parametrize("memory", [Memory(), Memory(microbatch=64)], ids=["full", "microbatch"])
def test_the_estimate_is_near_what_the_compiler_allocates(memory):
    loss = task(memory)
    basis = 20 * loss.initial_weights.size * COLUMNS * 4
    expected = estimate_peak(loss, loss.initial_weights, COLUMNS)
    for name, measured in allocated(loss).items():
        estimated = expected[name] - (basis if name == "hvps" else 0)
        assert 0.4 < estimated / measured < 2.5, name


def test_microbatches_and_chunks_need_less():
    full, micro = allocated(task()), allocated(task(Memory(microbatch=64)))
    assert all(micro[name] < full[name] / 4 for name in full)
    assert allocated(task(), chunk=1)["hvps"] < 0.8 * full["hvps"]
    w = task().initial_weights
    full, micro = (estimate_peak(task(m), w, COLUMNS) for m in (Memory(), Memory(microbatch=64)))
    assert all(micro[name] < full[name] for name in full)
    assert estimate_peak(task(), w, COLUMNS, chunk=1)["hvps"] < full["hvps"]


def test_the_warning_names_the_options_to_change():
    two = Placement(tuple(jax.devices()) * 2)
    assert warning("central", 5 * 2**30, 6 * 2**30, remedies(1, None)) is None
    assert warning("central", 5 * 2**30, None, remedies(1, None)) is None
    message = warning("central", 5 * 2**30, 4 * 2**30, remedies(0, two))
    assert message is not None
    assert "a step of central needs 5.0 GiB, 4.0 GiB are free" in message
    for option in ("memory.hvp_chunk", "memory.microbatch", "shard: both"):
        assert option in message
    assert remedies(1, None) == ["memory.microbatch (examples at a time)"]
    assert len(remedies(1, replace(two, shard="both", parts=2))) == 1


def test_a_run_warns_of_what_its_programs_need(monkeypatch):
    """The bytes are those of the compiler, and told before a step is taken."""
    monkeypatch.setattr(start, "free_memory", lambda: 2**10)
    with pytest.warns(UserWarning, match=r"memory: a step of discrete needs 0\.0 GiB, 0\.0 GiB"):
        rows = simulate(lambda w: w @ w, GD(0.1), np.ones(3), processes=["discrete"], steps=2)
        assert len(list(rows)) == 2


VECTORS = 40
"""Vectors of the length of the weights that a step keeps for each column: eigenvectors, now and
before, in three bases each, the solver's basis with its images, third derivatives, rows."""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["{type: gd, lr: 1e-3}", "{type: adam, lr: 1e-3}"])
@pytest.mark.parametrize("model", ["cnn", "transformer"])
def test_a_central_step_takes_a_few_gradients_memory(model, optimizer):
    settings = [f"optimizer={optimizer}", "processes=[central]", "memory.hvp_chunk=1"]
    spec = load_spec(SPECS / f"{model}.yaml", settings)
    task = build_task(spec)
    experiment, state = prepare(spec, task)
    flow, w, none = state.processes["central"], task.initial_weights, jnp.zeros((), jnp.int32)
    step = advance.move.lower(
        experiment.members["central"],
        flow,
        STOP.running,
        none,
        none,
        experiment.every,
        experiment.loss_limit,
        experiment.rows,
    )
    gradient = eqx.filter_jit(lambda task, w: jax.grad(task)(w)).lower(task, w)
    taken, one = (
        program.compile().compiled.memory_analysis().temp_size_in_bytes
        for program in (step, gradient)
    )
    assert taken < 6 * one + VECTORS * flow.pairs.theta.size * w.nbytes
