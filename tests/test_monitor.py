"""A monitor of training loops says what runs record, and what can be known exactly."""

import json
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _losses import Quadratic, TinyMLP, symmetric
from _marks import quick
from jax.experimental import io_callback

import centralflow_eqx as cf
from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode
from centralflow_eqx.experiment.drive import chunks
from centralflow_eqx.monitor import Monitor
from centralflow_eqx.optimizers import GD, AbstractOptimizer, Adam, HeavyBall, RMSProp

NET = TinyMLP.make()
PARAMS = TinyMLP.unravel(jnp.asarray(np.random.default_rng(1).normal(size=TinyMLP.SIZE) / 2))
# Eigenpairs to rounding, and a run that has no memory of how it started: a start above the
# threshold is repaired at once, wherever it is.
TOL = 1e-9
EXACT = cf.Settings(method="euler", restoration=math.inf, tol=TOL)
ROW = 25
LR = 0.6
SAME = 1e-6


class Case(NamedTuple):
    """An optimizer, and the steps after which it is at the edge on `NET`."""

    optimizer: AbstractOptimizer
    warm_start: int


CASES = {
    "gd": Case(GD(LR), 20),
    "heavy_ball": Case(HeavyBall(1.0, 0.5), 5),
    "rmsprop": Case(RMSProp(0.02, beta2=0.9), 20),
    "adam": Case(Adam(0.05, beta1=0.5, beta2=0.9), 20),
}


class Seen(NamedTuple):
    """A run's row, the row after it, and what evolves at the first."""

    experiment: cf.Experiment
    state: cf.RunState
    row: cf.Row
    after: cf.Row


def seen(case):
    experiment, state = cf.start(
        NET.of,
        case.optimizer,
        PARAMS,
        processes=["discrete", "midpoint", "central"],
        settings=EXACT,
        warm_start=case.warm_start,
    )
    rows, states = [], {0: state}
    for chunk in chunks(experiment, state, ROW + 2, pause_every=ROW):
        rows += chunk.rows
        states[chunk.step] = chunk.state
    return Seen(experiment, states[ROW], rows[ROW], rows[ROW + 1])


@pytest.mark.parametrize("name", quick(CASES, "gd"))
def test_a_measurement_has_the_numbers_of_a_runs_row(name):
    case = CASES[name]
    run = seen(case)
    setting, flow = run.experiment.setting, run.state.processes["central"]
    response, grad = setting.response, jax.grad(setting.loss)(flow.w)
    post = setting.rate.post(response, flow.s, grad, flow.w, setting.settings.dt)
    unravel = response.rule.unravel
    monitor = Monitor(NET.of, case.optimizer, PARAMS, at="weights", tol=TOL, settings=EXACT)
    found = monitor.measure(unravel(flow.w), response.pre(post, grad, flow.w), step=ROW)

    row = run.row.series["central"]
    k = len(found.eigenvalues)
    assert found.oscillating and abs(found.eigenvalues[0] - 2) < 0.05  # it is at the edge
    for mine, theirs in [
        (found.loss, row["train_loss"]),
        (found.averaged_loss, row["predicted_loss"]),
        (found.eigenvalues, row["eigenvalues"][:k]),
        (found.variances, row["sigma_eigenvalues"][:k]),
        (found.stabilised_by_state, row["stabilised_by_state"]),
        *(
            (found.trust[name], np.nanmax(row[name]))
            for name in ("trust_cubic", "trust_quartic", "trust_response")
        ),
    ]:
        np.testing.assert_allclose(mine, theirs, rtol=SAME, atol=1e-12)

    # Between iterates it is at the midpoint that the next row has.
    monitor = Monitor(NET.of, case.optimizer, PARAMS, tol=TOL, settings=EXACT)
    loop = run.state.processes["discrete"]
    found = monitor.measure(unravel(loop.w), loop.s)
    theirs = run.after.series["midpoint"]["eigenvalues"][: len(found.eigenvalues)]
    np.testing.assert_allclose(found.eigenvalues, theirs, rtol=SAME)


def valley(w):
    """Sharpness 1 + y^2 in x, which a slope in y drives up."""
    x, y = w[0], w[1]
    return (1 + y**2) * x**2 / 2 + (y - 3) ** 2 / 20


@pytest.fixture(scope="module")
def in_the_valley():
    """At x = 0 the Hessian is diag(1 + y^2, 1/10), and grad S = (0, 2 y)."""
    eta, y = 0.5, math.sqrt(3)
    monitor = Monitor(valley, GD(eta), np.array([0.1, y]), at="weights", tol=TOL)
    found = monitor.measure(np.array([0.0, y]), GD(eta).init(None))
    return eta, y, monitor, found


def test_one_direction_at_the_edge_is_as_the_formula_says(in_the_valley):
    """sigma^2 = -2 g.grad S / |grad S|^2 of gradient descent with S = 2/eta; the averaged loss is
    higher by S sigma^2/2, and the penalty is minus the gradient's share along grad S: all of it."""
    eta, y, _, found = in_the_valley
    slope = (y - 3) / 10
    variance = -2 * slope / (2 * y)
    assert found.effective_sharpness == pytest.approx(2, rel=1e-12)
    assert (found.sharpness, found.threshold) == pytest.approx((1 + y**2, 2 / eta), rel=1e-9)
    assert list(found.locked) == [True] + [False] * (len(found.locked) - 1)
    assert found.variances[0] == pytest.approx(variance / eta, rel=1e-6)
    excess = (1 + y**2) * variance / 2
    assert found.averaged_loss - found.loss == pytest.approx(excess, rel=1e-6)
    assert found.penalty_share == pytest.approx(1 / 2, rel=1e-6)
    assert not found.unfinished and found.stabilised_by_state == 0


def test_the_learning_rate_at_the_edge(in_the_valley):
    eta, _, monitor, _ = in_the_valley
    y = 0.5
    found = monitor.measure(np.array([0.0, y]), GD(eta).init(None))
    advice = monitor.advise(learning_rate=eta)
    assert advice.edge_factor == pytest.approx(2 / (eta * (1 + y**2)), rel=1e-6)
    assert advice.learning_rate == pytest.approx(2 / (1 + y**2), rel=1e-6)
    assert found.effective_sharpness * advice.edge_factor == pytest.approx(2, rel=1e-9)


LITERATURE = {  # optimizer, threshold, and the factor that makes 5 the threshold
    "momentum": (optax.sgd(0.1, 0.6), 2 * 1.6 / 0.1, 32 / 5),
    "nesterov": (optax.sgd(0.1, 0.6, True), 2 / 0.1 * 1.6 / 2.2, 32 / 2.2 / 5),
    "decay": (
        optax.chain(optax.add_decayed_weights(3.0), optax.scale(-0.1)),
        2 / 0.1 - 3.0,
        2 / (0.1 * (5 + 3)),
    ),
}


@pytest.mark.parametrize("name", quick(LITERATURE, "nesterov", "decay"))
def test_thresholds_are_those_of_the_literature(name):
    """Cohen et al. 2021 (arXiv 2103.00065); and the advice, for weights that decay too."""
    optimizer, threshold, edge = LITERATURE[name]
    loss = Quadratic(jnp.asarray(symmetric([5.0, 2.0, 1.0])))
    w = jnp.ones(3)
    monitor = Monitor(loss, optimizer, w)
    found = monitor.measure(w, optimizer.init(w))
    assert found.threshold == pytest.approx(threshold, rel=1e-6)
    assert found.sharpness == pytest.approx(5, rel=1e-6)
    assert found.effective_sharpness == pytest.approx(2 * 5 / threshold, rel=1e-6)
    assert monitor.advise().edge_factor == pytest.approx(edge, rel=1e-6)


@pytest.fixture(scope="module")
def loop():
    """A loop at the edge: a monitor without a budget, weights and states of its steps."""
    optimizer = optax.sgd(LR)
    params, state = PARAMS, optimizer.init(PARAMS)
    visited = []
    for _ in range(80):
        visited.append((params, state))
        updates, state = optimizer.update(jax.grad(NET.of)(params), state, params)
        params = optax.apply_updates(params, updates)
    return Monitor(NET.of, optimizer, PARAMS, tol=TOL), optimizer, visited


@pytest.mark.parametrize("budget", [7, 10, 16, 30])
def test_a_budget_is_kept_and_what_it_was_too_short_for_is_told(loop, budget):
    unlimited, optimizer, visited = loop
    monitor = Monitor(NET.of, optimizer, PARAMS, tol=TOL, budget=budget)
    whole, first = (m.measure(*visited[60]) for m in (unlimited, monitor))
    assert whole.oscillating and not whole.unfinished
    assert first.cost <= budget and first.untrusted and first.unfinished[0].startswith("eigenpairs")
    for _ in range(60):  # it goes on from where it was
        again = monitor.measure(*visited[60])
        assert again.cost <= budget
    assert again.effective_sharpness == pytest.approx(whole.effective_sharpness, rel=SAME)
    if budget == 30:
        assert not again.unfinished
        assert again.averaged_loss == pytest.approx(whole.averaged_loss, rel=SAME)
    else:
        lacking = "oscillation: only" if budget < 12 else "trust_quartic: only"
        assert any(words.startswith(lacking) for words in again.unfinished)


def test_a_tolerance_is_what_it_says(loop):
    """Eigenvalues are right to its square over the gap to the next, 0.7, variances to itself."""
    exact, optimizer, visited = loop
    tol = 1e-2
    monitor = Monitor(NET.of, optimizer, PARAMS, tol=tol)
    for place in visited[55:70]:
        rough, whole = monitor.measure(*place), exact.measure(*place)
        assert not rough.unfinished and rough.residuals[0] <= tol
        assert rough.effective_sharpness == pytest.approx(
            whole.effective_sharpness, rel=tol**2 * 2 / 0.7
        )
        if rough.oscillating and whole.oscillating:
            assert rough.variances[0] == pytest.approx(whole.variances[0], rel=3 * tol)


def test_what_a_compiled_loop_records_is_measured_after_it(loop):
    monitor, optimizer, visited = loop

    @jax.jit
    def train(params, state):
        def step(now, i):
            params, state = now
            jax.lax.cond(i % 20 == 0, lambda: monitor.record(params, state, step=i), lambda: None)
            updates, state = optimizer.update(jax.grad(NET.of)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jnp.arange(61))[0]

    jax.block_until_ready(train(*visited[0]))
    found = monitor.collect()
    assert [seen.step for seen in found] == [0, 20, 40, 60]
    assert monitor.collect() == []
    for seen in found:
        direct = monitor.measure(*visited[seen.step])
        assert seen.effective_sharpness == pytest.approx(direct.effective_sharpness, rel=SAME)
        assert seen.loss == pytest.approx(direct.loss, rel=SAME)
    monitor.record(*visited[3], step=3)  # outside of compiled functions, too
    assert monitor.collect()[0].step == 3


def test_large_weights_are_recorded_as_they_are():
    """More than a device hands over at once, from a loop that goes on to change them."""
    d = 1_000_000
    monitor = Monitor(lambda w: w @ w / 2, GD(0.5), jnp.ones(d), directions=1)
    state = GD(0.5).init(None)

    @jax.jit
    def halve(w):
        def step(w, i):
            monitor.record(w, state, step=i)
            return w / 2, None

        return jax.lax.scan(step, w, jnp.arange(5))[0]

    jax.block_until_ready(halve(jnp.arange(d, dtype=float)))
    jax.effects_barrier()
    for i, kept in enumerate(monitor._waiting):
        np.testing.assert_array_equal(kept.params, np.arange(d) / 2**i)


def test_nothing_is_computed_inside_of_compiled_functions(loop):
    monitor, _, visited = loop
    params, state = visited[0]
    with pytest.raises(RuntimeError, match="call `record` there"):
        jax.jit(lambda params: monitor.measure(params, state).loss)(params)
    told = []

    def callback(params):
        try:
            monitor.measure(params, state)
        except RuntimeError as error:
            told.append(str(error))

    jax.block_until_ready(jax.jit(lambda p: io_callback(callback, None, p) or p["b1"])(params))
    jax.effects_barrier()
    assert told and "host callback" in told[0] and "`collect`" in told[0]


def test_a_loops_precision_is_left_alone(loop):
    _, optimizer, _ = loop
    with jax.enable_x64(False):
        net = jax.tree.map(lambda x: x.astype(jnp.float32), NET)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
        monitor = Monitor(lambda p, net: net.of(p), optimizer, params, net)
        found = monitor.measure(params, optimizer.init(params))
        assert jnp.zeros(1).dtype == jnp.float32 and not jax.config.jax_enable_x64
    exact = loop[0].measure(*loop[2][0])
    assert found.effective_sharpness == pytest.approx(exact.effective_sharpness, rel=1e-5)


def test_half_precision_is_measured_in_float32():
    """The numbers are those of the rounded weights and state, not of rounded derivatives."""
    optimizer = optax.sgd(LR)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    net = jax.tree.map(lambda x: x.astype(jnp.float32), NET)
    found = []
    for params in (half, single):
        monitor = Monitor(net.of, optimizer, params)
        found.append(monitor.measure(params, optimizer.init(params)))
    assert found[0].as_dict() == found[1].as_dict()


def test_an_equinox_model_and_another_batch():
    """Parameters are a module's arrays; what else it holds, and a batch, come with them."""
    model = eqx.nn.MLP(3, 2, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    optimizer = optax.sgd(LR)

    def loss(model, x, y):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    monitor = Monitor(loss, optimizer, model, NET.x, NET.y, at="weights", tol=TOL, settings=EXACT)
    for batch in [(), (NET.x[::-1], NET.y)]:
        x, y = batch or (NET.x, NET.y)
        H = jax.hessian(lambda w: loss(eqx.combine(unravel(w), rest), x, y))(flat)  # noqa: B023
        found = monitor.measure(model, optimizer.init(params), *batch)
        sharpness = np.linalg.eigvalsh(H)[-1]
        assert found.effective_sharpness == pytest.approx(LR * sharpness, rel=SAME)


def test_weights_that_are_lost_are_told(loop):
    monitor, _, visited = loop
    params, state = visited[0]
    lost = monitor.measure(jax.tree.map(lambda x: x * jnp.nan, params), state)
    assert lost.untrusted and "not finite" in lost.doubts[0] and "not finite" in str(lost)
    assert lost.as_dict()["loss"] is None
    assert not monitor.measure(params, state).unfinished  # what it knew is not lost with them


def test_advice_follows_the_flow_from_here(loop):
    """A larger learning rate oscillates in more directions, and the present flow is the run's."""
    monitor, optimizer, visited = loop
    monitor.measure(*visited[60])
    advice = monitor.advise(1.3, steps=10, learning_rate=LR)
    present, changed = advice.present, advice.changed
    assert len(present.step) == len(changed.step) == 10
    assert advice.edge_factor * monitor.measure(*visited[60]).effective_sharpness == pytest.approx(
        2, rel=1e-6
    )
    assert changed.effective_sharpness[0] == pytest.approx(
        1.3 * present.effective_sharpness[0], rel=1e-6
    )
    assert np.all(changed.averaged_loss[1:] > present.averaged_loss[1:])
    assert "1.3 times the learning rate" in str(advice)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m, p, s: m.measure({**p, "b3": p["b1"]}, s), r"params\['b3'\] is an array \[5\]"),
        (lambda m, p, s: m.measure({**p, "b1": p["b2"]}, s), r"params\['b1'\] is an array \[2\]"),
        (lambda m, p, s: m.measure(p, {"m": p["b1"]}), "opt_state.*nothing was expected.*init"),
        (lambda m, p, s: Monitor(NET.of, optax.sgd(0.1), p, budget=4), "budget .* >= 7"),
        (lambda m, p, s: Monitor(NET.of, optax.sgd(0.1), p, at="here"), "at must be 'midpoint'"),
        (lambda m, p, s: Monitor(NET.of, "sgd", p), "optimizer must be"),
        (lambda m, p, s: Monitor(NET.of, optax.lion(0.1), p), "zero response"),
        (lambda m, p, s: m.advise(-1.0), "factor must be"),
    ],
)
def test_mistakes_are_told(loop, wrong, message):
    monitor, _, visited = loop
    monitor.measure(*visited[0])
    with pytest.raises(ValueError, match=message):
        wrong(monitor, *visited[0])


def test_advice_without_a_measurement(loop):
    with pytest.raises(RuntimeError, match="call measure first"):
        Monitor(NET.of, loop[1], PARAMS).advise()


SPEC = """\
name: stored
precision: float64
data: {type: moons, n: 20}
model: {type: mlp, widths: [3], activation: tanh}
loss: {type: mse}
optimizer: {type: gd, lr: 0.4}
processes: [discrete]
steps: 3
"""
SHAPES = {
    "layers.0.weight": (3, 2),
    "layers.0.bias": (3,),
    "layers.1.weight": (1, 3),
    "layers.1.bias": (1,),
}
FLAT = np.random.default_rng(0).normal(size=13)


def by_name(flat):
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])
    parts = np.split(flat, ends[:-1])
    named = zip(SHAPES.items(), parts, strict=True)
    return {name: part.reshape(shape) for (name, shape), part in named}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SPEC)
    np.savez("flat.npz", w=FLAT)
    return tmp_path


def test_stored_weights(stored, capsys):
    """The Hessian's own eigenvalue, however the weights are stored, and where steps lead to."""
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(by_name(FLAT), "named.safetensors")
    task = cf.make_task(
        cf.data.Moons(n=20), cf.models.MLP((3,), activation="tanh"), cf.losses.MSE(), dtype=float
    )
    w = jnp.asarray(FLAT)
    for file, steps in (("flat.npz", 0), ("named.safetensors", 0), ("flat.npz", 2)):
        arguments = ["measure", file, "s.yaml", "--at", "weights", "--json", "--steps", str(steps)]
        assert main(arguments) == ExitCode.DONE
        found = json.loads(capsys.readouterr().out)
        for _ in range(steps):
            w = w - 0.4 * jax.grad(task)(w)
        sharpness = np.linalg.eigvalsh(jax.hessian(task)(w))[-1]
        assert found["effective_sharpness"] == pytest.approx(0.4 * sharpness, rel=1e-4)
        assert found["threshold"] == pytest.approx(2 / 0.4, rel=SAME)
    assert main(["measure", "flat.npz", "s.yaml", "--at", "weights"]) == ExitCode.DONE
    assert "effective sharpness" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "more", "message"),
    [
        (None, [], "w.npz: no such file; give an npz or safetensors file"),
        ({"w": FLAT[1:]}, [], "w.npz: w: must be all 13 weights of the model in one array, got"),
        ({"a": FLAT, "b": FLAT}, ["--key", "c"], "w.npz: c: no such array, the file has a, b"),
        ({"a": FLAT, "b": FLAT}, [], "w.npz: layers.0.weight: missing; the file has a, b"),
        (by_name(FLAT) | {"layers.0.bias": FLAT[:2]}, [], "layers.0.bias: must be of shape [3]"),
        (by_name(FLAT) | {"extra": FLAT}, [], "w.npz: extra: no parameter of the model, remove"),
        ({"w": FLAT * np.nan}, [], "w.npz: w: must hold finite numbers, 13 of 13 are not"),
        ({"w": FLAT}, ["--set", "sweep.grid.seed=[0, 1]"], "s.yaml: sweep: has a sweep"),
        ({"w": FLAT}, ["--set", "optimizer={type: optax, name: lion, args: {learning_rate: 1}}"],
         "optimizer: zero response"),
    ],
)  # fmt: skip
def test_mistakes_with_stored_weights(stored, capsys, arrays, more, message):
    if arrays is not None:
        np.savez("w.npz", **arrays)
    assert main(["measure", "w.npz", "s.yaml", *more]) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err


def test_what_is_no_file_of_weights(stored, capsys):
    for name in ("w.npz", "w.safetensors"):
        (stored / name).write_text("words")
        assert main(["measure", name, "s.yaml"]) == ExitCode.BAD_INPUT
        assert f"{name}: not a readable" in capsys.readouterr().err
